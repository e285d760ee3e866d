"""Trained reward models: any sequence-classification model of Hugging Face.

A decoder runs as a model of the engine. Its cached pages are found by their tokens, so of an answer that grew only what
is new is read, and candidates share their prompt; rating a beginning and then the whole gives what rating the whole
gives. The template's end of the assistant's turn, which comes after the answer and has to be read anew each time, is
just more tokens. Encoders read the whole text every time, in a thread (``encoder``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trimtab.decode.ops import Context, Value, gather
from trimtab.decode.rewards.base import EngineReward, Reward, Sample, distinct_prompts, turns
from trimtab.decode.rewards.fitting import fitted
from trimtab.decode.rewards.options import OptionError, choice, text
from trimtab.decode.rewards.readings import Reading, reading

if TYPE_CHECKING:
    from trimtab.decode.rewards.registry import Site

__all__ = ["Classifier", "classifier"]


class Classifier(EngineReward):
    """A decoder with a linear head, run by the engine.

    Args:
        model: its name in the engine.
        read: how its outputs become one number.
        partial: how a beginning of an answer is read: ``closed`` as if the answer ended there, as the model was trained
            to read answers; ``open`` without the end of the turn.
        end: text that ends an answer; None: what the model's template writes there.
        pooling: what the head reads: ``last``, the last token, as transformers does; ``mean``, all tokens of the answer
            and its end, and their mean counts. The answer is then read anew each time, its prompt is not.

    Where prompt and answer are longer than the model takes, the prompt's beginning is left out; the answer is always
    read whole, and one that doesn't fit alone is refused with a ValueError.
    """

    kind = "prefix"
    reads_prompt = True

    def __init__(
        self,
        model: str,
        read: Reading,
        partial: str = "closed",
        end: str | None = None,
        pooling: str = "last",
    ) -> None:
        self.model, self.read, self.end = model, read, end
        self.partial = choice("partial", partial, ("closed", "open"))
        self.pooling = choice("pooling", pooling, ("last", "mean"))
        self.models = (model,)
        self.description = f"reward model {model}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        end = context.turn_end(self.model) if self.end is None else self._encoded(context, self.end)
        keys, first = distinct_prompts(samples)
        read = {key: context.render(self.model, turns(sample.prompt)) for key, sample in first.items()}
        answers = [self._answer(context, sample, end) for sample in samples]
        fit = [self._fitted(context, read[key], ids) for key, ids in zip(keys, answers, strict=True)]
        if len(samples) > len(read):  # several answers to one prompt: it is read once, before them
            limit = context.limit(self.model)
            await gather(*(self._outputs(context, ids, 1) for ids in read.values() if len(ids) <= limit))
        outputs = await gather(
            *(self._outputs(context, [*prompt, *ids], len(ids)) for prompt, ids in zip(fit, answers, strict=True))
        )
        return [self.read(one) for one in outputs]

    def _fitted(self, context: Context, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        special = context.vocabulary(self.model).special_ids
        keep = int(bool(prompt) and prompt[0] in special)
        return fitted(prompt, len(answer), context.limit(self.model), keep)

    def _answer(self, context: Context, sample: Sample, end: Sequence[int]) -> list[int]:
        closed = sample.finished or self.partial == "closed"
        return [*self._encoded(context, sample.text), *(end if closed else ())]

    def _encoded(self, context: Context, said: str) -> list[int]:
        return context.vocabulary(self.model).encode(said, False, continues=True)

    async def _outputs(self, context: Context, tokens: Sequence[int], answer: int) -> list[float]:
        """Of tokens, the last so many of which are the answer's."""
        seq = context.open(self.model, tokens)
        try:
            return await Value(seq, last=max(1, answer) if self.pooling == "mean" else 1)
        finally:
            seq.close()


def classifier(
    site: Site,
    source: str | None = None,
    model: str | None = None,
    label: str | int | None = None,
    reading: str | None = None,
    level: float = 0.25,
    partial: str = "closed",
    end: str | None = None,
    pooling: str | None = None,
    on: str = "auto",
    reads: str = "auto",
    template: str | None = None,
    dtype: str = "auto",
    batch: int = 16,
) -> Reward:
    """The type ``classifier``.

    Args:
        site: of the engine.
        source: a folder or a hub id; or
        model: a model of the engine that has a head.
        label, reading, level: which output counts, see ``readings.reading``.
        partial, end, pooling: see ``Classifier``, and ``Encoder``, which has ``partial`` alone; a model that 'trimtab
            bench train-reward' made knows the last two itself.
        on: ``engine`` (decoders with a linear head), ``thread`` (every model), or ``auto``.
        reads: what an encoder is given: ``pair`` (prompt and answer), ``answer``, or ``auto``: messages through the
            tokenizer's chat template where it has one, otherwise the pair.
        template: Jinja template in place of the model's own.
        dtype: of the weights.
        batch: answers that an encoder reads at a time.

    Raises:
        OptionError: naming the option.
        UnsupportedModel: no reward model can be read from ``source``.
    """
    from trimtab.decode.config import ModelConfig
    from trimtab.decode.models.reward import labels_of, read_config, reads_causally

    choice("on", on, ("auto", "engine", "thread"))
    choice("dtype", dtype, ("auto", "float32", "bfloat16", "float16"))
    if (source is None) == (model is None):
        raise OptionError("source", source, "a folder or a hub id, or else the option model")
    if model is not None:
        site.model("model", model)
        if on == "thread":
            raise OptionError("on", on, "engine for a model of the engine")
        if not reads_causally(site.models[model].source):
            raise OptionError("model", model, "a model with a linear head over its last token")
        config = read_config(site.models[model].source)
        read = _reading(reading, labels_of(config), label, level)
        return Classifier(model, read, partial, _end(end, config), _pooling(pooling, config))
    where = text("source", source, "a folder or a hub id")
    causal = reads_causally(where)
    config = read_config(where)
    read = _reading(reading, labels_of(config), label, level)
    if on == "engine" and not causal:
        raise OptionError("on", on, "thread or auto: it is not a decoder with a linear head")
    if causal and on != "thread":
        name = f"{site.name}.model"
        if name in site.models:
            raise OptionError("source", where, f"no model of the engine named {name!r} beside it")
        made = Classifier(name, read, partial, _end(end, config), _pooling(pooling, config))
        made.brings = {name: ModelConfig(source=where, role="reward", template=template, dtype=dtype)}  # type: ignore[arg-type]
        return made
    if _pooling(pooling, config) != "last":
        raise OptionError("pooling", "mean", "last where a model doesn't run in the engine (on = 'thread', encoders)")
    from trimtab.decode.rewards.encoder import Encoder

    if end is not None:
        raise OptionError("end", end, "no end where a model doesn't run in the engine; its template writes it")
    return Encoder(where, read, reads=reads, batch=batch, dtype=dtype, partial=partial, template=template)


def _end(given: object, config: Any) -> str | None:
    if given is not None and not isinstance(given, str):
        raise OptionError("end", given, "a text")
    own = getattr(config, "answer_end", None)
    return given if given is not None else own if isinstance(own, str) else None


def _pooling(given: str | None, config: Any) -> str:
    own = getattr(config, "reward_pooling", None)
    return given if given is not None else own if isinstance(own, str) else "last"


_reading = reading
