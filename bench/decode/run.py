"""Speed of plain decoding: this engine beside transformers' ``generate``, each in its own process, in turn.

Both get the same token ids, load the same weights in the same dtype, use the same threads, decode greedily and write
exactly the same number of tokens per prompt. What a repeat asks is new to both (its prompts begin with its number), so
neither can answer from a cache. The time ends when all tokens are there: reading the prompts is part of it.
transformers gets its prompts as one batch padded to the longest, the only form in which ``generate`` takes several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.bench.data import prompt_of, read_rows
from trimtab.bench.progress import Progress
from trimtab.bench.prompts import PROMPTS, spaced
from trimtab.bench.record import Recorder
from trimtab.bench.timing import interleaved, paired_ratio
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest

if TYPE_CHECKING:
    from trimtab.bench.contestants import Batch, Contestant

__all__ = ["Options", "bench_decode", "compare"]

Prompts = Callable[[int], list[list[int]]]  # number of the repeat -> token ids of the prompts

_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench decode`` is asked for.

    Attributes:
        model: a bundled name, a folder or a hub id.
        batches: numbers of prompts at a time.
        max_new_tokens: tokens written per prompt.
        repeats: measured rounds per batch size.
        data: JSONL file of prompts; None takes the project's own.
        threads: of torch; None leaves torch's setting alone.
        quick: whether this is a smoke run: sizes 1 and 4, 8 tokens, one repeat.
        unfinished: folder in which cases are kept until the run is done; None keeps none.
    """

    model: str = _MODEL
    batches: tuple[int, ...] = (1, 4, 16)
    max_new_tokens: int = 64
    repeats: int = 5
    data: Path | None = None
    threads: int | None = None
    quick: bool = False
    unfinished: Path | None = None

    def checked(self) -> Options:
        """With the values of a smoke run if it is one.

        Raises:
            InvalidRequest: a value out of range.
        """
        if not self.batches or min(self.batches) < 1:
            raise InvalidRequest.of("batches", self.batches, "numbers of prompts, each 1 or more")
        if self.max_new_tokens < 2:
            raise InvalidRequest.of("max_new_tokens", self.max_new_tokens, "2 or more: the first is timed by itself")
        if self.repeats < 1:
            raise InvalidRequest.of("repeats", self.repeats, "1 or more")
        if self.threads is not None and self.threads < 1:
            raise InvalidRequest.of("threads", self.threads, "1 or more")
        if not self.quick:
            return self
        return replace(self, batches=(1, 4), max_new_tokens=min(self.max_new_tokens, 8), repeats=1)


def bench_decode(options: Options) -> Recorder:
    """Run the benchmark; the caller saves what it returns.

    Raises:
        InvalidRequest: an option or the data can't be used. UnsupportedModel, ModelCacheError: the model can't.
    """
    import torch

    from trimtab.bench.contestants import Apart, Transformers, Trimtab
    from trimtab.decode.config import EngineOptions
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.models.bundled import bundled, ensure

    options = options.checked()
    texts = _texts(options.data)
    names = [model.name for model in bundled()]
    source = str(ensure(options.model)) if options.model in names else options.model
    with Engine(models={"model": source}, options=EngineOptions(threads=options.threads)) as engine:
        info = engine.models["model"]
        sizes = {text: len(engine.tokenize("model", text)[0]) for text in texts}
        theirs = Apart(partial(Transformers, source, getattr(torch, info.dtype), info.device), options.threads)
        contestants: dict[str, Contestant] = {"trimtab": Trimtab(engine, "model"), "transformers": theirs}
        recorder = Recorder(
            "decode",
            seed=0,
            dtype=info.dtype,
            settings={
                "model": options.model if options.model in names else Path(options.model).name,
                "max_new_tokens": options.max_new_tokens,
                "prompts": "own" if options.data is None else options.data.name,
                "prompt_tokens": [min(sizes.values()), max(sizes.values())],
                "quantisation": quantised(options.model),
            },
            quick=options.quick,
            unfinished=options.unfinished,
        )
        with closing(theirs):
            for size in options.batches:
                chosen = spaced(sorted(texts, key=sizes.__getitem__), size)

                def prompts(repeat: int, chosen: Sequence[str] = chosen) -> list[list[int]]:
                    return [engine.tokenize("model", f"[{repeat}] {text}")[0] for text in chosen]

                case = f"{size} prompt{'s' * (size > 1)}"
                if not recorder.has(case):
                    first = len(recorder.rows)
                    compare(recorder, case, contestants, prompts, options)
                    recorder.keep(case, first)
    return recorder


def compare(
    recorder: Recorder,
    case: str,
    contestants: Mapping[str, Contestant],
    prompts: Prompts,
    options: Options,
) -> None:
    """Time the contestants on one batch size and record the rows; the first is measured against each other one."""

    def measure(contestant: Contestant, repeat: int) -> Batch:
        asked = prompts(repeat)
        batch = contestant.run(asked, options.max_new_tokens)
        wrong = [len(written) for written in batch.tokens if len(written) != options.max_new_tokens]
        if wrong:  # a comparison of different amounts of work would be worthless
            raise RuntimeError(f"{type(contestant).__name__} wrote {wrong} tokens instead of {options.max_new_tokens}")
        return batch

    runs = {name: (lambda repeat, c=contestant: measure(c, repeat)) for name, contestant in contestants.items()}
    with Progress(f"decode, {case}", len(runs) * (options.repeats + 1)) as progress:
        batches = interleaved(runs, options.repeats, progress=progress)
    for name, found in batches.items():
        recorder.spread(case, name, "speed", "tokens/s", [batch.rate for batch in found])
        recorder.spread(case, name, "first token", "s", [batch.mean_first for batch in found])
        recorder.spread(case, name, "decoding alone", "tokens/s", [batch.decode_rate for batch in found])
    ours, *others = batches
    for other in others:
        subject = f"{ours} / {other}"
        for metric, figure in (("speed", "rate"), ("first token", "mean_first"), ("decoding alone", "decode_rate")):
            pairs = [[getattr(batch, figure) for batch in batches[name]] for name in (ours, other)]
            recorder.ratio(case, subject, metric, paired_ratio(*pairs))
        same = [_agreement(a, b) for a, b in zip(batches[ours], batches[other], strict=True)]
        recorder.spread(case, subject, "same tokens", "share", same)


def _agreement(ours: Batch, theirs: Batch) -> float:
    """Share of tokens up to which both wrote the same, mean over prompts. Below 1 in bf16: rounding decides ties."""
    shares = []
    for a, b in zip(ours.tokens, theirs.tokens, strict=True):
        same = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
        shares.append(same / len(a))
    return sum(shares) / len(shares)


def _texts(data: Path | None) -> list[str]:
    if data is None:
        return list(PROMPTS)
    texts = list(dict.fromkeys(prompt_of(row) for row in read_rows(data)))
    if not texts:
        raise InvalidRequest.of("data", data.name, "a file with at least one prompt")
    return texts
