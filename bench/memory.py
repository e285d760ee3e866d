"""Memory of a process that answers by the README's first example, and of engines that are opened one after the other.

A process of its own measures itself by what the operating system counts as resident: the most at any time, and what is
left after an engine was closed. Weights that are mapped from their file count as far as they were read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trimtab.bench.cells import run_of
from trimtab.bench.record import Recorder, Row
from trimtab.bench.weights import quantised, weights

__all__ = ["bench_memory", "memory_table"]

_MB = 1 << 20
_CYCLES = 3  # engines, one after the other
_MODELS = {"base": "gemma-3-270m", "chat": "smollm2-135m-instruct"}


def bench_memory() -> Recorder:
    """Run the example in a process of its own and record what it took, in MB."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the example failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    models = list(_MODELS.values())
    settings = {"models": models, "quantisation": quantised(*models)}
    recorder = Recorder("memory", seed=7, dtype=found.pop("dtype"), settings=settings)
    for metric, value in found.items():
        recorder.value("README's first example", "trimtab", metric, "MB", value, samples=1)
    return recorder


def _resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def _peak() -> float:
    # Not what getrusage says: a process inherits that from the one that started it.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@contextmanager
def _quiet() -> Iterator[None]:
    """Whatever libraries print goes to standard error: the last line of the output is the result's."""
    kept, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = kept


def _example() -> dict[str, Any]:
    from trimtab.decode import Engine, Entropy, Nudged

    question = [{"role": "user", "content": "Give me three tips for staying healthy."}]
    found: dict[str, Any] = {"imported": _resident()}
    for cycle in range(_CYCLES):
        with Engine(models=_MODELS) as engine:
            if not cycle:
                found["loaded"] = _resident()
                found["dtype"] = " ".join(dict.fromkeys(info.dtype for info in engine.models.values()))
            engine.generate(question, model="base", policy=Nudged("chat", when=Entropy(above=2.0)), temperature=0)
            for _ in engine.stream(question, model="base", policy=Nudged("chat"), max_new_tokens=32, seed=7):
                pass
            if not cycle:
                found["answered"] = _resident()
        del engine
        if not cycle:
            found["peak"], found["closed"] = _peak(), _resident()
    return {**found, f"closed, after {_CYCLES}": _resident()}


if __name__ == "__main__":
    with _quiet():
        result = _example()
    print(json.dumps(result))


def memory_table(rows: Sequence[Row]) -> list[str]:
    lines = [f"| {' | '.join(row.metric for row in rows)} |", "|---" * len(rows) + "|"]
    cells = (f"**{row.value:.0f}**" if row.metric == "peak" else f"{row.value:.0f}" for row in rows)
    models = " and ".join(rows[0].settings["models"])
    caption = (
        f"MB resident in a process that runs {rows[0].case} with {models}, "
        f"{weights(rows[0], *rows[0].settings['models'])}. {run_of(rows[0])}"
    )
    return [*lines, f"| {' | '.join(cells)} |", "", caption]
