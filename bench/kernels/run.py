"""Speed of the kernels over logits beside the eager formulas: the same logits, in turn, medians.

On a CPU that is the torch path, which the engine runs there, as a plain call on one and on all threads. On a GPU it is
the Triton kernels as a plain call by the wall clock, and their launches alone in a CUDA graph, in both cases with cold
caches; and beside eager also what ``torch.compile`` makes of the formula. What a call has to read, over the time it
takes, is compared with the rate at which the same device copies memory in the same run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from trimtab.bench.kernels.cases import KERNELS, Work
from trimtab.bench.kernels.clock import Graph, copy_rate, seconds
from trimtab.bench.kernels.names import COMPILED, COPY, EAGER, GRAPH, OURS, PLAIN, Case, share_of
from trimtab.bench.kernels.table import GOALS
from trimtab.bench.progress import Progress
from trimtab.bench.record import Recorder
from trimtab.bench.timing import interleaved, paired_ratio
from trimtab.decode.errors import InvalidRequest

__all__ = ["Options", "bench_kernels"]

_CPU_KERNELS = ("stats", "greedy", "sample", "top-p", "mixture", "mixture-flat", "verify")
_CPU_VOCABULARIES = (49_152, 262_144)
_CPU_ROWS = (1, 16, 64)
_GPU_KERNELS = ("stats", "mix3", "mix3-top-p", "mix3-plausible", "verify")
_GPU_VOCABULARIES = (128_256,)
_GPU_ROWS = (1, 8, 64, 256)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# In a graph each call reads logits of its own, as many as fit into this.
_GRAPH_BYTES = 8 << 30
_GRAPH_CALLS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What ``trimtab bench kernels`` is asked for; None takes what suits the device.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        kernels: keys of ``KERNELS``.
        rows, vocabularies: sizes of the logits; windows for ``verify``.
        dtypes: of the logits.
        threads: numbers of threads to measure a CPU with.
        compiled: whether to measure ``torch.compile`` as well.
        repeats: measured rounds.
        limit: seconds for the rounds of one case, of which at least three are measured.
        seed: of the logits.
        quick: whether this is a smoke run: two kernels, one size, three rounds.
        goals: whether to measure also what has a goal at another size (kernel, rows, vocabulary); None: on a GPU, if
            neither rows nor vocabularies are given.
        unfinished: folder in which cases are kept until the run is done; None keeps none.
    """

    device: str = "auto"
    kernels: tuple[str, ...] | None = None
    rows: tuple[int, ...] | None = None
    vocabularies: tuple[int, ...] | None = None
    dtypes: tuple[str, ...] = ("bfloat16",)
    threads: tuple[int, ...] | None = None
    compiled: bool | None = None
    repeats: int = 9
    limit: float = 8.0
    seed: int = 0
    quick: bool = False
    goals: bool | None = None
    unfinished: Path | None = None

    def checked(self) -> Options:
        """With nothing left open, and with the values of a smoke run if it is one.

        Raises:
            InvalidRequest: a value out of range.
        """
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidRequest.of("device", self.device, "'auto', 'cpu' or 'cuda'")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InvalidRequest.of("device", self.device, "'cpu': there is no CUDA device")
        gpu = self.device == "cuda" or (self.device == "auto" and torch.cuda.is_available())
        for name, accepted in (("kernels", KERNELS), ("dtypes", _DTYPES)):
            for value in getattr(self, name) or ():
                if value not in accepted:
                    raise InvalidRequest.of(name, value, ", ".join(accepted))
        for name in ("rows", "vocabularies", "threads"):
            values = getattr(self, name)
            if values is not None and (not values or min(values) < 1):
                raise InvalidRequest.of(name, values, "numbers, each 1 or more")
        if self.repeats < 1:
            raise InvalidRequest.of("repeats", self.repeats, "1 or more")
        if not self.limit > 0:
            raise InvalidRequest.of("limit", self.limit, "seconds, more than 0")
        most = torch.get_num_threads()
        found = replace(
            self,
            device="cuda" if gpu else "cpu",
            kernels=self.kernels or (_GPU_KERNELS if gpu else _CPU_KERNELS),
            rows=self.rows or (_GPU_ROWS if gpu else _CPU_ROWS),
            vocabularies=self.vocabularies or (_GPU_VOCABULARIES if gpu else _CPU_VOCABULARIES),
            threads=(0,) if gpu else self.threads or tuple(dict.fromkeys((1, most))),
            compiled=gpu if self.compiled is None else self.compiled,
            goals=gpu and not (self.rows or self.vocabularies or self.quick) if self.goals is None else self.goals,
        )
        if not self.quick:
            return found
        return replace(
            found,
            kernels=self.kernels or ("stats", "mixture"),
            rows=self.rows or (4,),
            vocabularies=self.vocabularies or (4096,),
            repeats=min(self.repeats, 3),
        )


def bench_kernels(options: Options) -> Recorder:
    """Run the benchmark; the caller saves what it returns.

    Raises:
        InvalidRequest: an option can't be used.
    """
    options = options.checked()
    device = torch.device(options.device)
    recorder = Recorder(
        "kernels",
        seed=options.seed,
        dtype=" ".join(options.dtypes),
        settings={"device": options.device, "logits": "Zipf, exponent 1.6"},
        quick=options.quick,
        unfinished=options.unfinished,
    )
    threads_used = options.threads or ()
    cases = len(threads_used) * len(options.dtypes) * len(_shapes(options))
    before = torch.get_num_threads()
    try:
        with Progress("kernels", cases, unit="case") as progress:
            for threads in threads_used:
                if threads:
                    torch.set_num_threads(threads)
                _measure(recorder, options, device, threads, progress)
    finally:
        torch.set_num_threads(before)
    return recorder


def _measure(recorder: Recorder, options: Options, device: torch.device, threads: int, progress: Progress) -> None:
    """All kernels and sizes on one number of threads."""
    with torch.inference_mode():
        copied = str(Case(COPY, 1, 1, "int8", threads))
        if not recorder.has(copied):
            first = len(recorder.rows)
            recorder.spread(copied, COPY, "bandwidth", "B/s", copy_rate(device, options.repeats))
            recorder.keep(copied, first)
        rate = next(row.value for row in recorder.rows if row.case == copied)
        for dtype in options.dtypes:
            for name, rows, vocabulary in _shapes(options):
                case = Case(name, rows, vocabulary, dtype, threads)
                if not recorder.has(str(case)):
                    first = len(recorder.rows)
                    _one(recorder, options, case, device, rate)
                    recorder.keep(str(case), first)
                progress.add()


def _shapes(options: Options) -> list[tuple[str, int, int]]:
    """Kernel, rows, vocabulary of what is measured, by kernel."""
    names = options.kernels or ()
    shapes = [
        (name, rows, size) for name in names for size in options.vocabularies or () for rows in options.rows or ()
    ]
    if options.goals:
        shapes += [shape for shape in GOALS if shape[0] in names]
    return sorted(dict.fromkeys(shapes), key=lambda shape: (names.index(shape[0]), shape[2], shape[1]))


def _one(recorder: Recorder, options: Options, case: Case, device: torch.device, rate: float) -> None:
    def make(seed: int) -> Work:
        return KERNELS[case.kernel](case.rows, case.vocabulary, _DTYPES[case.dtype], device, seed)

    work = make(options.seed)
    calls: dict[str, Callable[[int], object]] = {OURS: work.ours, EAGER: partial(_formula, work.formula, work)}
    compiled: Callable[..., object] | None = None
    if options.compiled:
        torch.compiler.reset()  # what other sizes left behind counts against the limit of one function
        compiled = torch.compile(work.formula, dynamic=False)
        calls[COMPILED] = partial(_formula, compiled, work)
    gpu = device.type == "cuda"
    _record(recorder, case, PLAIN, seconds(calls, options.repeats, options.limit, device, cold=gpu), work.read, rate)
    if gpu:
        count = max(1, min(_GRAPH_CALLS, _GRAPH_BYTES // work.read))
        works = [work, *(make(options.seed + 100 * i) for i in range(1, count))]
        _record(recorder, case, GRAPH, _replays(case, works, compiled, options.repeats), work.read, rate)


def _replays(
    case: Case, works: Sequence[Work], compiled: Callable[..., object] | None, repeats: int
) -> dict[str, list[float]]:
    """Seconds of a call in a graph of one call for each of ``works``."""
    captures: dict[str, list[Callable[[], object]]] = {
        OURS: [work.captured for work in works],
        EAGER: [partial(_formula, work.formula, work, 0) for work in works],
    }
    if compiled is not None:
        captures[COMPILED] = [partial(_formula, compiled, work, 0) for work in works]
    graphs: dict[str, Graph] = {}
    for name, captured in captures.items():
        try:
            graphs[name] = Graph(captured)
        except RuntimeError as error:
            if name == OURS:
                raise
            # A formula that waits for the host can't be captured, which is no fault of the benchmark.
            sys.stderr.write(f"trimtab: {case}: {name} is not captured: {str(error).splitlines()[0]}\n")
    return interleaved({name: graph.seconds for name, graph in graphs.items()}, repeats)


def _formula(formula: Callable[..., object], work: Work, _: int) -> object:
    """Call a formula, or what it was compiled into."""
    return formula(*work.inputs)


def _record(recorder: Recorder, case: Case, how: str, found: Mapping[str, list[float]], read: int, rate: float) -> None:
    """Times, ratios to what else was measured, bytes read, and the share of the rate of a copy."""
    for name, taken in found.items():
        recorder.spread(str(case), name, how, "s", taken)
        if name != OURS:
            recorder.ratio(str(case), f"{name} / {OURS}", how, paired_ratio(taken, found[OURS]))
    recorder.value(str(case), OURS, f"bytes, {how}", "B", read, 1)
    recorder.spread(str(case), OURS, share_of(how), "share", [read / t / rate for t in found[OURS]])
