"""Log-linear mixtures of several models' logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Blend", "Gate"]


@dataclass(frozen=True, slots=True)
class Gate:
    """Where the mixture applies: read from the base's distribution at temperature 1."""

    kind: Literal["entropy", "top_prob", "branching"]
    bound: float


@dataclass(frozen=True, slots=True)
class Blend:
    """Weights of the models, base first; see ``Mixture`` of ``trimtab.decode.types``."""

    weights: tuple[float, ...]
    gate: Gate | None = None
    plausibility: float = 0.0
