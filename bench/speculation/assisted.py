"""Speculation beside assisted generation of transformers: one target, one draft, one dtype, in one run.

Every contestant has a process of its own, all take turns, and what a repeat asks is new to each. Answers end where the
model ends them. The draft of theirs is the draft of ours: the same layers, and the same cut head, whose logits are put
among minus infinities, so that it draws nothing else and costs hardly more. Theirs runs as it comes, and with a fixed
number of drafted tokens; which number suits the draft, the benchmark ``speculation`` says.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.bench.contestants import Apart, Batch, Contestant
from trimtab.bench.data import prompt_of, read_rows, select
from trimtab.bench.progress import Progress
from trimtab.bench.prompts import PROMPTS
from trimtab.bench.record import Recorder
from trimtab.bench.speculation.run import answers
from trimtab.bench.timing import interleaved, paired_ratio
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest, UnsupportedModel
from trimtab.decode.methods.draws.autoregressive import Autoregressive
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.models.draft import read_draft
from trimtab.decode.models.sources import resolve
from trimtab.decode.request.method import Draw
from trimtab.decode.request.spec_string import parse_draw

__all__ = ["Assisted", "Options", "Ours", "bench_assisted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench assisted`` is asked for.

    Attributes:
        target: a bundled name, a folder or a hub id.
        draft: the name of a bundled draft, or a draft's folder.
        draw: of this engine, in the notation of the command line; its draft is called ``draft``. Where it doesn't copy,
            it is timed with copies beside its drafts too.
        assistant_tokens: of theirs, besides its defaults.
        data: JSONL files of prompts, taken from in turn; none takes the project's own.
        split: which rows of the data; None takes all.
        prompts: asked in every round.
        temperatures: each a case of its own.
        batches: answers at a time, each a case of its own.
        max_new_tokens: per answer.
        repeats: measured rounds.
        threads: of torch; None leaves torch's setting alone.
        memory_mb: for this engine's pages.
        quick: whether this is a smoke run: two prompts, 8 tokens, one repeat.
        unfinished: folder in which cases are kept until the run is done; None keeps none.
    """

    target: str = "smollm2-135m-instruct"
    draft: str = "smollm2-135m-draft"
    draw: str = "speculative:draft"
    assistant_tokens: int = 3
    data: tuple[Path, ...] = ()
    split: str | None = None
    prompts: int = 8
    temperatures: tuple[float, ...] = (0.0, 1.0)
    batches: tuple[int, ...] = (1, 8)
    max_new_tokens: int = 96
    repeats: int = 3
    threads: int | None = None
    memory_mb: int = 1024
    quick: bool = False
    unfinished: Path | None = None

    def checked(self) -> Options:
        """With the values of a smoke run if it is one.

        Raises:
            InvalidRequest: a value out of range.
        """
        for name in ("assistant_tokens", "prompts", "max_new_tokens", "repeats", "memory_mb"):
            if getattr(self, name) < 1:
                raise InvalidRequest.of(name, getattr(self, name), "1 or more")
        if not self.batches or min(self.batches) < 1:
            raise InvalidRequest.of("batches", self.batches, "numbers of answers, each 1 or more")
        if not self.temperatures or min(self.temperatures) < 0:
            raise InvalidRequest.of("temperatures", self.temperatures, "one or more, each 0 or above")
        if not self.quick:
            return self
        return replace(self, prompts=2, max_new_tokens=8, repeats=1)


class Ours:
    """This project's engine.

    Args:
        target, draft: sources of the models.
        draw: how it draws tokens.
        temperature: of sampling, from the whole distribution.
        batch: answers at a time.
        threads: of torch.
        memory_bytes: for its pages.
    """

    def __init__(
        self,
        target: str,
        draft: str,
        draw: Draw,
        temperature: float,
        batch: int,
        threads: int | None,
        memory_bytes: int,
    ) -> None:
        from trimtab.decode.config import EngineOptions, ModelConfig
        from trimtab.decode.engine.engine import Engine

        models = {"target": ModelConfig(source=target), "draft": ModelConfig(source=draft, role="draft")}
        self._engine = Engine(models, options=EngineOptions(threads=threads, memory_bytes=memory_bytes))
        self._draw, self._temperature, self._batch = draw, temperature, batch

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        asked = [list(prompt) for prompt in prompts]
        seconds, results = answers(self._engine, asked, self._draw, self._temperature, self._batch, new_tokens)
        return Batch([[token.id for token in result.tokens] for result in results], [], seconds, 0)


class Assisted:
    """``generate`` of transformers, with an assistant model or without.

    Args:
        target, draft: folders; None for the draft is plain generation.
        dtype: of the weights.
        device: where they are.
        temperature: of sampling, from the whole distribution; 0 is greedy.
        batch: prompts at a time, padded.
        assistant_tokens: drafted at a time; None leaves all of its defaults.
    """

    def __init__(
        self,
        target: str,
        draft: str | None,
        dtype: torch.dtype,
        device: str,
        temperature: float,
        batch: int,
        assistant_tokens: int | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(target, dtype=dtype)
        self._model = model.eval().to(device)
        self._assistant = None if draft is None else _assistant(self._model, draft, assistant_tokens)
        eos = self._model.generation_config.eos_token_id
        self._pad = eos[0] if isinstance(eos, list) else eos
        self._sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            self._sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        self._batch = batch

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        began = time.perf_counter()
        tokens: list[list[int]] = []
        for start in range(0, len(prompts), self._batch):
            tokens += self._together(prompts[start : start + self._batch], new_tokens)
        return Batch(tokens, [], time.perf_counter() - began, 0)

    def _together(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Iterator[list[int]]:
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad or 0, dtype=torch.long, device=self._model.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # a decoder continues the right edge, so the padding is on the left
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        assistant = {} if self._assistant is None else {"assistant_model": self._assistant}
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                pad_token_id=self._pad,
                **assistant,
                **self._sampling,
            )
        for row in out[:, width:].tolist():
            end = row.index(self._pad) + 1 if self._pad in row else len(row)  # the end token counts, padding doesn't
            yield row[:end]


class _Spread(nn.Module):
    """A cut head whose logits stand where the target's would; all others are minus infinity."""

    def __init__(self, head: nn.Module, ids: Tensor, vocab_size: int) -> None:
        super().__init__()
        self.head = head
        self.ids: Tensor
        self.register_buffer("ids", ids)
        self.vocab_size = vocab_size

    def forward(self, hidden: Tensor) -> Tensor:
        cut: Tensor = self.head(hidden)
        return cut.new_full((*cut.shape[:-1], self.vocab_size), -torch.inf).index_copy_(-1, self.ids, cut)


def _assistant(target: Any, folder: str, tokens: int | None) -> Any:
    draft = read_draft(folder)
    if draft is None:
        raise UnsupportedModel(Path(folder).name, "it is no draft's folder: it has no draft.json")
    model = draft.build(target).to(target.device)
    model.lm_head = _Spread(model.lm_head, draft.ids.to(target.device), target.config.vocab_size)
    model.generation_config = copy.deepcopy(target.generation_config)  # what is set below is the assistant's alone
    if tokens is not None:
        model.generation_config.num_assistant_tokens = tokens
        model.generation_config.num_assistant_tokens_schedule = "constant"
        model.generation_config.assistant_confidence_threshold = 0.0
    return model


def bench_assisted(options: Options) -> Recorder:
    """Run the benchmark; the caller saves what it returns.

    Raises:
        InvalidRequest: an option or the data can't be used. UnsupportedModel, ModelCacheError: a model can't.
    """
    from transformers import AutoTokenizer

    from trimtab.decode.config import EngineOptions
    from trimtab.decode.engine.engine import Engine

    options = options.checked()
    draw = parse_draw(options.draw)
    target, draft = resolve(options.target), resolve(options.draft)
    tokenizer: Any = AutoTokenizer.from_pretrained(target)

    def ids_of(text: str) -> list[int]:
        chat = [{"role": "user", "content": text}]
        ids: list[int] = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        return ids

    asked = {repeat: list(map(ids_of, texts)) for repeat, texts in _rounds(options).items()}
    # Only to say what the model is; nothing of it runs beside those that are timed.
    with Engine({"target": target}, options=EngineOptions(memory_bytes=64 << 20, threads=options.threads)) as engine:
        info = engine.models["target"]
    lengths = [len(prompt) for repeat, prompts in asked.items() if repeat >= 0 for prompt in prompts]
    settings: dict[str, Any] = {
        "target": Path(options.target).name,
        "draft": Path(options.draft).name,
        "draw": options.draw,
        "data": [path.stem for path in options.data],
        "prompts": options.prompts,
        "prompt_tokens": [min(lengths), max(lengths)],
        "max_new_tokens": options.max_new_tokens,
        "quantisation": quantised(options.target),
    }
    recorder = Recorder(
        "assisted", seed=0, dtype=info.dtype, settings=settings, quick=options.quick, unfinished=options.unfinished
    )
    for temperature in options.temperatures:
        for batch in options.batches:
            theirs = partial(
                Assisted,
                target,
                dtype=getattr(torch, info.dtype),
                device=info.device,
                temperature=temperature,
                batch=batch,
            )
            ours = partial(
                Ours,
                target,
                draft,
                temperature=temperature,
                batch=batch,
                threads=options.threads,
                memory_bytes=options.memory_mb << 20,
            )
            copying: dict[str, Callable[[], Contestant]] = {}
            if isinstance(draw, Speculative) and draw.copying is None:
                # Assisted generation of transformers drafts or copies, never both.
                copying["trimtab, drafts and copies"] = partial(ours, replace(draw, copying=PromptLookup()))
            makers: dict[str, Callable[[], Contestant]] = {
                "trimtab": partial(ours, draw),
                **copying,
                "trimtab, plain": partial(ours, Autoregressive()),
                "transformers, assisted": partial(theirs, draft),
                f"transformers, assisted, {options.assistant_tokens} tokens": partial(
                    theirs, draft, assistant_tokens=options.assistant_tokens
                ),
                "transformers, plain": partial(theirs, None),
            }
            case = json.dumps({"temperature": temperature, "batch": batch})
            if not recorder.has(case):
                first = len(recorder.rows)
                _compare(recorder, case, makers, asked, options)
                recorder.keep(case, first)
    return recorder


def _rounds(options: Options) -> dict[int, list[str]]:
    """Texts by number of the round, -1 the warm-up: all different, as far as there are enough."""
    files = [list(PROMPTS)]
    if options.data:
        files = [list(map(prompt_of, select(read_rows(path), options.split, None))) for path in options.data]
    mixed = [texts[i] for i in range(max(map(len, files))) for texts in files if i < len(texts)]
    count = options.prompts
    if len(mixed) < count:
        raise InvalidRequest.of("prompts", count, f"at most {len(mixed)}, as many as there are in the data")
    rounds = {}
    for repeat in range(-1, options.repeats):
        start = (repeat + 1) * count
        rounds[repeat] = [mixed[(start + i) % len(mixed)] for i in range(count)]
    return rounds


def _compare(
    recorder: Recorder,
    case: str,
    makers: Mapping[str, Callable[[], Contestant]],
    asked: Mapping[int, Sequence[Sequence[int]]],
    options: Options,
) -> None:
    """Time the contestants in turn; of one that refuses a batch that alone is recorded."""
    with ExitStack() as stack:
        contestants = {
            name: stack.enter_context(closing(Apart(make, options.threads))) for name, make in makers.items()
        }
        for name, contestant in list(contestants.items()):
            try:
                contestant.run(asked[-1], options.max_new_tokens)
            except ValueError as error:
                if not name.startswith("transformers, assisted"):
                    raise
                del contestants[name]
                recorder.value(case, name, "refused", "calls", 1.0, 1)
                sys.stderr.write(f"trimtab: {name}, {case}: {error}\n")
        runs = {
            name: (lambda repeat, c=contestant: c.run(asked[repeat], options.max_new_tokens))
            for name, contestant in contestants.items()
        }
        name = f"assisted, T = {json.loads(case)['temperature']:g}, {json.loads(case)['batch']} at a time"
        with Progress(name, len(runs) * options.repeats) as progress:
            found = interleaved(runs, options.repeats, warm_up=0, progress=progress)
    rates = {name: [batch.rate for batch in batches] for name, batches in found.items()}
    for name, values in rates.items():
        recorder.spread(case, name, "speed", "tokens/s", values)
        lengths = [len(tokens) for batch in found[name] for tokens in batch.tokens]
        recorder.value(case, name, "length", "tokens", sum(lengths) / len(lengths), len(lengths))
    for name in list(rates)[1:]:
        recorder.ratio(case, f"trimtab / {name}", "speed", paired_ratio(rates["trimtab"], rates[name]))
