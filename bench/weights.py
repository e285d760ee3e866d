"""What the weights of a measurement were made from: those of the bundled models have lost what 4 bits can't say."""

from __future__ import annotations

import re

from trimtab.bench.record import Row
from trimtab.decode.models.bundled import bundled

__all__ = ["quantised", "weights"]


def quantised(*sources: str) -> dict[str, str]:
    """How the files of the bundled models among ``sources`` were quantised, by name."""
    known = {model.name: model.quantisation for model in bundled()}
    return {source: known[source] for source in sources if source in known}


def weights(row: Row, *names: str) -> str:
    """What a caption says of the weights behind a row, e.g. ``4-bit weights (Q4_1) dequantised to bfloat16``.

    Args:
        row: of the measurement.
        names: of its models, for rows that were recorded before they said it themselves.
    """
    kinds: dict[str, str] = row.settings.get("quantisation") or {}
    if "quantisation" not in row.settings:
        kinds = quantised(*names)
    dtype = row.dtype.removeprefix("torch.")
    if not kinds:
        return f"weights in {dtype}" if dtype else "weights as they were"
    bits = sorted({found[0] for kind in kinds.values() if (found := re.search(r"\d", kind))})
    whose = f" of {' and '.join(kinds)}" if len(kinds) < len(names) else ""
    to = f" to {dtype}" if dtype else ""
    return f"{' and '.join(bits)}-bit weights ({', '.join(dict.fromkeys(kinds.values()))}){whose} dequantised{to}"
