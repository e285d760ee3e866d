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
from trimtab.decode.rewards.base import EngineReward, Reward, Sample, turns
from trimtab.decode.rewards.options import OptionError, choice, text
from trimtab.decode.rewards.readings import Reading, reading

if TYPE_CHECKING:
    from trimtab.decode.rewards.registry import Site

__all__ = ["Classifier", "classifier"]


class Classifier(EngineReward):
    """A decoder with a head over its last token, run by the engine.

    Args:
        model: its name in the engine.
        read: how its outputs become one number.
        partial: how a beginning of an answer is read: ``closed`` as if the answer ended there, as the model was trained
            to read answers; ``open`` without the end of the turn.
        end: text that ends an answer; None: what the model's template writes there.
    """

    kind = "prefix"

    def __init__(self, model: str, read: Reading, partial: str = "closed", end: str | None = None) -> None:
        self.model, self.read, self.end = model, read, end
        self.partial = choice("partial", partial, ("closed", "open"))
        self.models = (model,)
        self.description = f"reward model {model}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        end = context.turn_end(self.model) if self.end is None else self._encoded(context, self.end)
        keys = [repr(sample.prompt) for sample in samples]
        prompts = {key: sample.prompt for key, sample in zip(keys, samples, strict=True)}
        read = {key: context.render(self.model, turns(prompt)) for key, prompt in prompts.items()}
        if len(samples) > len(read):  # several answers to one prompt: it is read once, before them
            await gather(*(self._outputs(context, ids) for ids in read.values()))
        whole = [self._tokens(context, read[key], sample, end) for key, sample in zip(keys, samples, strict=True)]
        return [self.read(outputs) for outputs in await gather(*(self._outputs(context, ids) for ids in whole))]

    def _tokens(self, context: Context, prompt: Sequence[int], sample: Sample, end: Sequence[int]) -> list[int]:
        answer = self._encoded(context, sample.text)
        closed = sample.finished or self.partial == "closed"
        tokens = [*prompt, *answer, *(end if closed else ())]
        if len(tokens) > (limit := context.limit(self.model)):
            raise ValueError(f"prompt and answer take {len(tokens)} tokens; accepted: at most {limit}")
        return tokens

    def _encoded(self, context: Context, said: str) -> list[int]:
        return context.vocabulary(self.model).encode(said, False, continues=True)

    async def _outputs(self, context: Context, tokens: Sequence[int]) -> list[float]:
        seq = context.open(self.model, tokens)
        try:
            return await Value(seq)
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
        partial, end: see ``Classifier``; a model that 'trimtab bench train-reward' made knows its end itself.
        on: ``engine`` (decoders with a linear head), ``thread`` (every model), or ``auto``.
        reads: what an encoder is given: ``pair`` (prompt and answer), ``answer``, or ``auto``: messages through the
            tokenizer's chat template where it has one, otherwise the pair.
        template: Jinja template in place of a decoder's own.
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
        return Classifier(model, _reading(reading, labels_of(config), label, level), partial, _end(end, config))
    where = text("source", source, "a folder or a hub id")
    causal = reads_causally(where)
    read = _reading(reading, labels_of(read_config(where)), label, level)
    if on == "engine" and not causal:
        raise OptionError("on", on, "thread or auto: it is not a decoder with a linear head")
    if causal and on != "thread":
        name = f"{site.name}.model"
        if name in site.models:
            raise OptionError("source", where, f"no model of the engine named {name!r} beside it")
        made = Classifier(name, read, partial, _end(end, read_config(where)))
        made.brings = {name: ModelConfig(source=where, role="reward", template=template, dtype=dtype)}  # type: ignore[arg-type]
        return made
    from trimtab.decode.rewards.encoder import Encoder

    return Encoder(where, read, reads=reads, batch=batch, dtype=dtype)


def _end(given: object, config: Any) -> str | None:
    if given is not None and not isinstance(given, str):
        raise OptionError("end", given, "a text")
    own = getattr(config, "answer_end", None)
    return given if given is not None else own if isinstance(own, str) else None


_reading = reading
