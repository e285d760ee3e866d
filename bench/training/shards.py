"""Traces on disk: small files that are written whole, so that a run that was cut short goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trimtab.bench.training.rollout import Ask, Trace
from trimtab.decode.errors import InvalidRequest

__all__ = ["read_traces", "write_traces"]


def write_traces(folder: Path, traces: Sequence[Trace]) -> Path:
    """Write traces as the next file of a folder, complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"traces-{len(list(folder.glob('traces-*.safetensors'))):05d}.safetensors"
    arrays = {
        "tokens": np.concatenate([trace.tokens for trace in traces]),
        "lengths": np.asarray([len(trace.tokens) for trace in traces], np.int64),
        "prompts": np.asarray([len(trace.ask.prompt) for trace in traces], np.int64),
        "rows": np.concatenate([np.diff(trace.starts) for trace in traces]).astype(np.int32),
        "ids": np.concatenate([trace.ids for trace in traces]),
        "log_probs": np.concatenate([trace.log_probs for trace in traces]),
    }
    asks = [[trace.ask.index, trace.ask.temperature, trace.ask.source] for trace in traces]
    work = path.with_suffix(".tmp")
    save_file(arrays, work, {"asks": json.dumps(asks)})
    work.rename(path)
    return path


def read_traces(folder: Path) -> Iterator[Trace]:
    """All traces of a folder, in the order of the files.

    Raises:
        InvalidRequest: a file can't be read; names it.
    """
    for path in sorted(folder.glob("traces-*.safetensors")):
        try:
            with safe_open(path, "np") as file:
                asks = json.loads((file.metadata() or {})["asks"])
                tokens, lengths, prompts, rows, ids, log_probs = (
                    file.get_tensor(name) for name in ("tokens", "lengths", "prompts", "rows", "ids", "log_probs")
                )
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            accepted = f"a file of traces that 'trimtab bench train-draft' wrote ({error})"
            raise InvalidRequest.of("traces", path.name, accepted) from error
        ends, row, entry = np.cumsum(lengths), 0, 0
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(rows, dtype=np.int64)))
        for (index, temperature, source), length, prompt, end in zip(asks, lengths, prompts, ends, strict=True):
            own = tokens[end - length : end]
            answer = int(length - prompt)
            bounds = starts[row : row + answer + 1]
            entry, last = int(bounds[0]), int(bounds[-1])
            ask = Ask(int(index), tuple(own[:prompt].tolist()), float(temperature), str(source))
            yield Trace(ask, own, bounds - entry, ids[entry:last], log_probs[entry:last])
            row += answer
