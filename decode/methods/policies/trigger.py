"""When the base is unsure enough for the nudger to take over."""

from __future__ import annotations

from math import log

from trimtab.decode.ops import Read
from trimtab.decode.request.methods import (
    Branching,
    Entropy,
    TopProb,
    Trigger,
)

__all__ = ["DEFAULT_TRIGGER", "fires"]

# Chosen on the tune rows of IFEval and AlpacaEval with the bundled pair: see docs/nudging.md.
DEFAULT_TRIGGER: Trigger = Entropy(above=1.5)


def fires(when: Trigger, read: Read) -> bool:
    """Whether ``read``, of the base's distribution at temperature 1, is beyond the bound."""
    match when:
        case Entropy(above):
            return read.entropy > above
        case Branching(above):
            return read.entropy > log(above)
        case TopProb(below):
            return read.top_prob < below
