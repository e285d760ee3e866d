"""From starting Python to the first token of an answer: the time, where it goes, and the most memory.

Each repeat is a process of its own that does what a program of a user's would, and looks at the clock between. A first
process that isn't counted brings the files into the system's memory, and has trimtab remember of the model what it
remembers (see ``decode.models.reading``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.bench.cells import run_of, spread
from trimtab.bench.progress import Progress
from trimtab.bench.record import Recorder, Row
from trimtab.bench.timing import LEAST
from trimtab.bench.weights import quantised, weights

__all__ = ["Options", "bench_startup", "startup_table"]

# Without imports of its own: what a program needs of Python's library is a part of what is measured.
_PROGRAM = """
import time
at = [time.time()]
import json, sys
from trimtab.decode import Chunk, Engine
at.append(time.time())
engine = Engine(models={"chat": sys.argv[1]})
at.append(time.time())
question = [{"role": "user", "content": "Give me three tips for staying healthy."}]
with engine:
    events = engine.stream(question, temperature=0, max_new_tokens=16)
    next(event for event in events if isinstance(event, Chunk))
    at.append(time.time())
    for event in events:
        pass
# Not what getrusage says: a process inherits that from the one that started it.
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(json.dumps([*at, peak]))
"""
_METRICS = (
    ("python", "s"),
    ("import", "s"),
    ("load", "s"),
    ("first token", "s"),
    ("altogether", "s"),
    ("peak", "MB"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        models: sources, each with processes of its own.
        repeats: processes that count.
    """

    models: Sequence[str] = ("smollm2-135m-instruct", "gemma-3-270m")
    repeats: int = 5


def bench_startup(options: Options) -> Recorder:
    """Start processes, model by model in turn, and record seconds and MB."""
    recorder = Recorder("startup", seed=0, dtype="", settings={"quantisation": quantised(*options.models)})
    runs: dict[str, list[list[float]]] = {model: [] for model in options.models}
    with Progress("startup", (options.repeats + 1) * len(options.models), unit="process") as progress:
        for repeat in range(options.repeats + 1):
            for model in options.models:
                run = _run(model)
                progress.add()
                if repeat:
                    runs[model].append(run)
    for model, found in runs.items():
        for i, (metric, unit) in enumerate(_METRICS):
            recorder.spread(model, "trimtab", metric, unit, [run[i] for run in found])
    return recorder


def _run(model: str) -> list[float]:
    """A value for each of the metrics."""
    # -P: the current folder isn't searched, as it isn't for an installed program.
    command = [sys.executable, "-P", "-c", _PROGRAM, model]
    begun = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the program failed: {done.stderr.strip()[-2000:]}")
    *at, peak = json.loads(done.stdout.splitlines()[-1])
    parts = [after - before for before, after in zip((begun, *at[:-1]), at, strict=True)]
    return [*parts, at[-1] - begun, peak / 1024]


def startup_table(rows: Sequence[Row]) -> list[str]:
    """A line for each model."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    lines = [f"| model | {' | '.join(metrics)} |", "|---" * (len(metrics) + 1) + "|"]
    models = list(dict.fromkeys(row.case for row in rows))
    for model in models:
        cells = {row.metric: _cell(row) for row in rows if row.case == model}
        lines.append(f"| {model} | {' | '.join(cells.get(metric, '') for metric in metrics)} |")
    median = "Median (20th to 80th percentile)" if rows[0].repeats >= LEAST else "Median"
    caption = (
        f"{', '.join(models)}, {weights(rows[0], *models)}. Seconds in a process that asks one question: Python "
        "itself, importing `trimtab.decode` with its `Engine`, "
        "loading the model, and from there to the first token; and the most memory in MB. "
        f"{median} of {rows[0].repeats} process{'es' * (rows[0].repeats > 1)}. {run_of(rows[0])}"
    )
    return [*lines, "", caption]


def _cell(row: Row) -> str:
    if row.unit == "MB":
        return spread(row)
    if row.metric != "altogether":
        return f"{row.value:.2f}"
    if row.p20 is None or row.p80 is None or row.repeats < LEAST:
        return f"**{row.value:.1f}**"
    return f"**{row.value:.1f}** ({row.p20:.1f} to {row.p80:.1f})"
