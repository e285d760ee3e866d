"""How the outputs of a reward model's head become one number."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from trimtab.decode.rewards.options import OptionError, choice, number, whole

__all__ = ["READINGS", "Reading", "cvar", "quantile", "reading"]

Reading = Callable[[Sequence[float]], float]

READINGS = ("value", "probability", "mean", "quantile", "cvar")


def reading(kind: str | None, labels: Sequence[str], label: str | int | None, level: float) -> Reading:
    """How to read the outputs of a head.

    Args:
        kind: ``value``: one output as it is. ``probability``: the softmax of one output. The others take all outputs
            for the quantiles of one reward, evenly spaced (QRM; Dorka, 2024): ``mean``; ``quantile``: the one at
            ``level``, pessimistic below 0.5; ``cvar``: the mean of the worst ``level`` of the distribution. None:
            ``value`` of a head with one output; otherwise one has to be chosen.
        labels: names of the outputs.
        label: the output, by name or number; needed by the first two where there are several.
        level: in (0, 1].

    Raises:
        OptionError: a name that isn't known, or a reading that this head doesn't allow.
    """
    if kind is None and label is None and len(labels) > 1:
        outputs = ", ".join(map(repr, labels[:8])) + (", ..." if len(labels) > 8 else "")
        raise OptionError("reading", kind, f"one of {', '.join(READINGS)}, or a label: the head has {outputs}")
    kind = choice("reading", kind or "value", READINGS)
    number("level", level, above=0, high=1)
    if kind in ("value", "probability"):
        index = _index(labels, label)
        if kind == "value":
            return lambda outputs: outputs[index]
        if len(labels) == 1:
            raise OptionError("reading", kind, "'value': the head has one output only")
        return lambda outputs: _softmax(outputs, index)
    if label is not None:
        raise OptionError("label", label, f"no label beside reading = {kind!r}, which takes all outputs")
    if len(labels) < 2:
        raise OptionError("reading", kind, f"'value': the head has {len(labels)} output, and quantiles need several")
    match kind:
        case "mean":
            return lambda outputs: cvar(outputs, 1.0)
        case "quantile":
            return lambda outputs: quantile(outputs, level)
        case _:
            return lambda outputs: cvar(outputs, level)


def quantile(outputs: Sequence[float], level: float) -> float:
    """The quantile at ``level`` of a distribution given by its quantiles at 1/(n+1), ..., n/(n+1).

    Linear between them and constant beyond the outermost. Crossing quantiles are sorted (Chernozhukov et al., 2010).
    """
    ascending = sorted(outputs)
    at = level * (len(ascending) + 1) - 1
    low = min(max(math.floor(at), 0), len(ascending) - 1)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + min(max(at - low, 0.0), 1.0) * (ascending[high] - ascending[low])


def cvar(outputs: Sequence[float], level: float) -> float:
    """The mean of the lowest ``level`` of that distribution: conditional value at risk; its mean at level 1."""
    knots = [i / (len(outputs) + 1) for i in range(1, len(outputs) + 1)]
    inside = [0.0, *(k for k in knots if k < level), level]
    values = [quantile(outputs, k) for k in inside]
    area = sum((b - a) * (u + v) / 2 for a, b, u, v in zip(inside, inside[1:], values, values[1:], strict=False))
    return area / level


def _index(labels: Sequence[str], label: str | int | None) -> int:
    if label is None and len(labels) == 1:
        return 0
    if isinstance(label, str) and label in labels:
        return labels.index(label)
    if isinstance(label, int) and not isinstance(label, bool):
        return whole("label", label, 0, len(labels) - 1)
    raise OptionError("label", label, f"one of {', '.join(map(repr, labels))}, or its number")


def _softmax(outputs: Sequence[float], index: int) -> float:
    top = max(outputs)
    return math.exp(outputs[index] - top) / math.fsum(math.exp(o - top) for o in outputs)
