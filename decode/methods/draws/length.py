"""How long a drafted block may be: what a request can ask for. The rules that follow are in ``length_rules``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trimtab.decode.request.fields import OneOf, Range

__all__ = ["LENGTHS", "Acceptance", "Confidence", "Fixed", "Length"]


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always drafts this many tokens, in [1, 32]."""

    tokens: Annotated[int, Range("[1, 32]")]


@dataclass(frozen=True, slots=True)
class Confidence:
    """Stops drafting after a token whose top probability under the draft was below a bound (the rule of transformers).

    Attributes:
        top_prob_below: in (0, 1).
        max_tokens: in [1, 32].
    """

    top_prob_below: Annotated[float, Range("(0, 1)")] = 0.4
    max_tokens: Annotated[int, Range("[1, 32]")] = 16


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Stops drafting where some drafted token is probably rejected (SpecDec++; Huang et al., 2024, theorem 3.1).

    The probability comes from the draft's trained acceptance head.

    Attributes:
        max_tokens: in [1, 32].
        stop: the bound, in (0, 1); None takes the theorem's (c2 + D) / (c1 + c2 + D) from costs measured at the
            current batch.
    """

    max_tokens: Annotated[int, Range("[1, 32]")] = 16
    stop: Annotated[float | None, Range("(0, 1)")] = None


Length = Fixed | Confidence | Acceptance
LENGTHS = OneOf("length", {"fixed": Fixed, "confidence": Confidence, "acceptance": Acceptance})
