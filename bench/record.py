"""One schema for every result: a row of JSON per measured quantity, appended to ``results/BENCH.jsonl``."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab.bench.data import append_rows, read_rows
from trimtab.bench.timing import Ratio, Spread
from trimtab.bench.unfinished import Unfinished
from trimtab.decode.errors import InvalidRequest

__all__ = ["Device", "Recorder", "Row", "commit", "latest", "load", "newest"]

_PACKAGES = ("torch", "transformers", "trimtab")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a run ran on.

    Attributes:
        name: model of the processor, or of the GPU.
        cores: processors that the process may use.
        threads: of torch's CPU kernels.
        python, torch, transformers, trimtab: versions.
    """

    name: str
    cores: int
    threads: int
    python: str
    torch: str
    transformers: str
    trimtab: str

    @classmethod
    def here(cls) -> Device:
        import torch

        versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
        return cls(
            name=name,
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            **versions,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured quantity.

    Attributes:
        bench: name of the benchmark, and of the file.
        case: what it was measured on, e.g. ``4 prompts``.
        subject: what was measured, e.g. ``trimtab`` or ``transformers``.
        metric, unit: the quantity.
        value: the median over repeats; where there is one measurement over many samples, that measurement.
        p20, p80: percentiles over repeats; None where there are fewer than three.
        low, high: 95 % bootstrap interval of ``value``; None where none was computed, or of fewer than three repeats.
        repeats: measurements, or samples, behind ``value``.
        dtype: of the weights; empty where models of several were used.
        settings: what else determines the value.
        quick: whether this was a smoke run, whose values mean nothing.
        device, commit, seed, time, command: of the run. ``time`` (UTC) is that of its start and identifies it.
            ``commit`` ends in ``+`` if the tree had changes, and is empty outside a repository.
    """

    bench: str
    case: str
    subject: str
    metric: str
    unit: str
    value: float
    repeats: int
    device: Device
    commit: str
    seed: int
    time: str
    command: str
    p20: float | None = None
    p80: float | None = None
    low: float | None = None
    high: float | None = None
    dtype: str = ""
    quick: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ``from_json`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        """Raises InvalidRequest, naming the fields that are missing, unknown or of a wrong type."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        required = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
        wrong = sorted((data.keys() - known.keys()) | (required - data.keys()))
        wrong += [n for n in ("value", "repeats", "seed") if n not in wrong and not _is_number(data[n])]
        if wrong:
            raise InvalidRequest.of("result", wrong, f"rows with the fields {', '.join(known)}")
        try:
            device = Device(**data["device"])
        except TypeError as error:
            raise InvalidRequest.of("result.device", data["device"], f"fields of a device ({error})") from error
        return cls(**{**data, "device": device})


class Recorder:
    """Makes rows of one run of one benchmark, and appends them to its file.

    Args:
        bench: name of the benchmark.
        seed: of the run.
        dtype: of the weights.
        settings: what else determines the values.
        quick: whether this is a smoke run.
        unfinished: folder in which cases are kept until the run is done; None keeps none, nor does a smoke run.
    """

    def __init__(
        self,
        bench: str,
        *,
        seed: int,
        dtype: str,
        settings: Mapping[str, Any],
        quick: bool = False,
        unfinished: Path | None = None,
    ) -> None:
        self._common: dict[str, Any] = {
            "bench": bench,
            "device": Device.here(),
            "commit": commit(),
            "seed": seed,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "command": _command(sys.argv),
            "dtype": dtype,
            "settings": dict(settings),
            "quick": quick,
        }
        self.bench = bench
        self.rows: list[Row] = []
        self._unfinished: Unfinished | None = None
        if unfinished is not None and not quick:
            run = {key: value for key, value in self._common.items() if key != "time"}
            self._unfinished = Unfinished({**run, "device": dataclasses.asdict(run["device"])}, unfinished)

    def spread(self, case: str, subject: str, metric: str, unit: str, values: Sequence[float]) -> None:
        """Repeated measurements."""
        s = Spread.of(values)
        self._add(case, subject, metric, unit, value=s.median, p20=s.p20, p80=s.p80, repeats=s.repeats)

    def ratio(self, case: str, subject: str, metric: str, ratio: Ratio) -> None:
        """A paired ratio."""
        s = ratio.spread
        quantiles = {"p20": s.p20, "p80": s.p80, "low": ratio.low, "high": ratio.high}
        self._add(case, subject, metric, "ratio", value=s.median, repeats=s.repeats, **quantiles)

    def value(
        self,
        case: str,
        subject: str,
        metric: str,
        unit: str,
        value: float,
        samples: int,
        interval: tuple[float, float] | None = None,
    ) -> None:
        """One measurement over ``samples`` samples, with its interval if there is one."""
        low, high = interval or (None, None)
        self._add(case, subject, metric, unit, value=value, repeats=samples, low=low, high=high)

    def has(self, case: str) -> bool:
        """Whether a run of the same kind that was cut short has measured this case; then its rows are taken."""
        known = None if self._unfinished is None else self._unfinished.cases.get(case)
        if known is None:
            return False
        rows = [Row.from_json(row) for row in known]
        self._common["time"] = rows[0].time  # it is one run
        self.rows = [dataclasses.replace(row, time=rows[0].time) for row in self.rows] + rows
        return True

    def keep(self, case: str, first: int) -> None:
        """A case is done, of which the rows are those from ``rows[first]`` on."""
        if self._unfinished is not None:
            self._unfinished.add(case, [row.to_json() for row in self.rows[first:]])

    def _add(self, case: str, subject: str, metric: str, unit: str, **figures: Any) -> None:
        rounded: dict[str, Any] = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in figures.items()}
        names: dict[str, Any] = {"case": case, "subject": subject, "metric": metric, "unit": unit}
        self.rows.append(Row(**names, **rounded, **self._common))

    def save(self, folder: Path) -> Path:
        """Append the rows to ``folder/BENCH.jsonl``; returns that file."""
        path = folder / f"{self.bench}.jsonl"
        append_rows(path, [row.to_json() for row in self.rows])
        if self._unfinished is not None:
            self._unfinished.done()
        return path


def load(path: Path) -> list[Row]:
    """The rows of a results file; none if there is no such file.

    Raises:
        InvalidRequest: a line is not a result.
    """
    return [Row.from_json(data) for data in read_rows(path)] if path.exists() else []


def latest(rows: Sequence[Row]) -> list[Row]:
    """The rows of the last run that was not a smoke run."""
    rows = [row for row in rows if not row.quick]
    last = max((row.time for row in rows), default="")
    return [row for row in rows if row.time == last]


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last measurement of each quantity, of whichever run, but for smoke runs: also of what is no longer there."""
    return list({(row.case, row.subject, row.metric): row for row in rows if not row.quick}.values())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _command(argv: Sequence[str]) -> str:
    """The command line without the folders of the machine that ran it, and without the place of the results."""
    words = [Path(word).name if word.startswith(("/", "~")) else word for word in argv[1:]]
    while "--results" in words[:-1]:
        at = words.index("--results")
        del words[at : at + 2]
    return shlex.join(("trimtab", *words))


@functools.cache
def commit() -> str:
    """Of the repository that holds this file, with ``+`` if the tree has changes; empty outside a repository."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
        return done.stdout.strip()

    # Results of an earlier bench in the same session are no change of what is measured.
    changes = ("status", "--porcelain", "--untracked-files=no", "--", ":(top)", ":(top,exclude)bench/results")
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git(*changes) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@functools.cache
def _processor() -> str:
    """Model of the processor; the virtual machine may hide its number."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
