"""When the base is unsure enough for the nudger to take over."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Annotated

from trimtab.decode.ops import Read
from trimtab.decode.request.fields import OneOf, Range

__all__ = ["DEFAULT_TRIGGER", "TRIGGERS", "Branching", "Entropy", "TopProb", "Trigger", "entropy_level", "fires"]


@dataclass(frozen=True, slots=True)
class Entropy:
    """Fires where the base's entropy (nats) is above a bound."""

    above: Annotated[float, Range("[0, inf)")]


@dataclass(frozen=True, slots=True)
class TopProb:
    """Fires where the base's top probability is below a bound (the rule of the nudging paper, with 0.3 or 0.4)."""

    below: Annotated[float, Range("[0, 1]")]


@dataclass(frozen=True, slots=True)
class Branching:
    """Fires where the base's branching factor exp(entropy) is above a bound."""

    above: Annotated[float, Range("[1, inf)")]


Trigger = Entropy | TopProb | Branching


# The alternatives as the proto has them.
TRIGGERS = OneOf(
    "trigger", {"entropy_nats_above": Entropy, "top_prob_below": TopProb, "branching_above": Branching}, scalar=True
)

# Chosen on the tune rows of IFEval and AlpacaEval with the bundled pair: see docs/nudging.md.
DEFAULT_TRIGGER: Trigger = Entropy(above=1.5)


def entropy_level(when: Trigger) -> float | None:
    """The entropy, in nats, above which it fires; None where it goes by the top probability."""
    match when:
        case Entropy(above):
            return above
        case Branching(above):
            return log(above)
        case TopProb():
            return None


def fires(when: Trigger, read: Read) -> bool:
    """Whether ``read``, of the base's distribution at temperature 1, is beyond the bound."""
    match when:
        case Entropy(above):
            return read.entropy > above
        case Branching(above):
            return read.entropy > log(above)
        case TopProb(below):
            return read.top_prob < below
