"""When to stop drafting, token by token: the rules behind ``Fixed``, ``Confidence`` and ``Acceptance``.

The theorem of SpecDec++ (Huang, Guo, Wang, 2024, theorem 3.1): stop once

    P(some drafted token is rejected) >= (c2 + D) / (c1 + c2 + D),

with c1 the cost of drafting a token, c2 that of the target's pass, and D whatever a longer block saves beyond it. What
D is follows from asking what one more token is worth. In a long run at L seconds per written token, a drafted token
that is accepted saves L seconds. It is accepted if all before it are, and then with a probability a. So it pays while

    P(all before it are accepted) * a * L > c1:

the theorem with c1 + c2 + D = a L. D is negative wherever speculation helps, since then L < c2.

*Dropping.* c1 has two parts: the draft's pass, and what one more token adds to the pass that verifies it, which on a
CPU can exceed the former. Once the draft has been read, the token's own probability of acceptance is known and only the
second part is still to be saved. So the token is verified while P(all up to it are accepted) * L is at least that much,
and dropped otherwise, with the block ending before it, perhaps empty. That leaves the answer's distribution as it is:
the probability is read from what was written before the token, not from the token. (Dropping tokens for what they are
would not: the target's residual corrects for all of them.)

*Rows.* Most of a draft's pass costs the same whichever rows of a batch take part. A row wants another token if that is
worth more than what the row adds; there is a pass if what it is worth to all that want one, summed up, exceeds its
cost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from trimtab.decode.methods.draws.acceptance import AcceptanceStatistics
from trimtab.decode.methods.draws.length import (
    Acceptance,
    Confidence,
    Fixed,
    Length,
)

__all__ = ["Rule", "TokenValue", "longest", "rule", "together"]


class TokenValue:
    """What drafting one more token is worth, in seconds.

    Its probability of acceptance isn't known before it is drafted, only how such probabilities were distributed of
    late; tokens that turn out not to be worth verifying are dropped.

    Args:
        chances: probabilities of acceptance, given that all before is accepted; at least one.
        seconds_per_token: L, what an accepted token saves.
        verify: seconds that one more token adds to the target's pass.
        draft: seconds that one more row adds to the draft's pass.
        shared: seconds of the draft's pass, whoever takes part.
    """

    def __init__(
        self, chances: Sequence[float], seconds_per_token: float, verify: float, draft: float, shared: float = 0.0
    ) -> None:
        self.seconds_per_token, self.verify, self.draft, self.shared = seconds_per_token, verify, draft, shared
        self._negative = [-chance for chance in sorted(chances, reverse=True)]
        self._sums = [0.0, *accumulate(-chance for chance in self._negative)]

    def surplus(self, survival: float) -> float:
        """By how much the token is worth more than what its row adds to the draft's pass.

        Args:
            survival: probability that all before it are accepted.
        """
        saves = survival * self.seconds_per_token
        verified = bisect_left(self._negative, -self.verify / saves) if saves > 0 else 0  # of the chances, so many
        return (saves * self._sums[verified] - verified * self.verify) / len(self._negative) - self.draft

    def pays(self, survival: float) -> bool:
        """Whether it pays to verify a drafted token. ``survival``: probability that it and all before are accepted."""
        return survival * self.seconds_per_token >= self.verify


@dataclass(slots=True)
class Rule:
    """Stops one block.

    Attributes:
        max_tokens: longest block, >= 1.
        top_prob_below: stop after a token whose top probability under the draft was below this; 0 never does.
        stop: stop once the probability that some token is rejected reaches this, as the head has it; None never does.
        wants_acceptance: whether the acceptance head's probabilities are read, in place of top probabilities.
        statistics: calibrate what is read, and hear what became of the block; None for a length that is fixed.
        value: of another token by measured costs; None while they are unknown or not asked for.
        drops: whether tokens may be dropped that, by these costs, are not worth verifying.
        read: for each token of the block, the probability that was read.
        dropped: whether the block ended before a token that was not worth verifying.
        survival: probability that all tokens are accepted.
    """

    max_tokens: int
    top_prob_below: float = 0.0
    stop: float | None = None
    wants_acceptance: bool = False
    statistics: AcceptanceStatistics | None = None
    value: TokenValue | None = None
    drops: bool = True
    read: list[float] = field(default_factory=list, init=False)
    dropped: bool = field(default=False, init=False)
    survival: float = field(default=1.0, init=False)

    def keeps(self, top_prob: float, accept_prob: float | None) -> bool:
        """Whether the token that is being drawn is worth verifying; if not, the block ends before it.

        Args:
            top_prob: largest probability of the distribution that the token is drawn from.
            accept_prob: the acceptance head's probability that it is accepted if those before it are, whichever token
                it is; None without a head.

        Raises:
            ValueError: the rule reads a head's probability and there is none.
        """
        if self.wants_acceptance and accept_prob is None:
            raise ValueError("length = Acceptance: the draft has no acceptance head: accepted: Confidence or Fixed")
        read = accept_prob if self.wants_acceptance and accept_prob is not None else top_prob
        chance = read if self.statistics is None or self.stop is not None else self.statistics.chance(read)
        survival = self.survival * min(max(chance, 0.0), 1.0)
        self.dropped = self.drops and self.value is not None and not self.value.pays(survival)
        if not self.dropped:
            self.read.append(read)
            self.survival = survival
        return not self.dropped

    def goes_on(self, top_prob: float) -> bool:
        """Whether to draft another token, after one that was kept."""
        return (
            len(self.read) < self.max_tokens
            and top_prob >= self.top_prob_below
            and (self.stop is None or 1 - self.survival < self.stop)
            and self.surplus > 0
        )

    @property
    def surplus(self) -> float:
        """Seconds by which the next token is worth more than its own cost; infinite if costs aren't asked for."""
        return float("inf") if self.value is None else self.value.surplus(self.survival)


def together(rules: Sequence[Rule]) -> bool:
    """Whether another pass of the draft pays, for blocks that each want another token."""
    shared = (rule.value.shared for rule in rules if rule.value is not None)
    return sum(rule.surplus for rule in rules) > max(shared, default=0.0)


def longest(length: Length) -> int:
    """Tokens of the longest block that a length allows."""
    return length.tokens if isinstance(length, Fixed) else length.max_tokens


def rule(
    length: Length,
    statistics: AcceptanceStatistics | None = None,
    value: TokenValue | None = None,
    *,
    cap: int | None = None,
    drops: bool = True,
) -> Rule:
    """The rule for one block.

    Args:
        length: as requested. ``Fixed`` minds nothing else.
        statistics: of earlier blocks.
        value: of another token; None while costs are unknown. An ``Acceptance`` with a bound of its own doesn't ask.
        cap: of the block's tokens.
        drops: whether tokens may be dropped.
    """
    most = longest(length) if cap is None else max(1, min(cap, longest(length)))
    match length:
        case Fixed(tokens):
            return Rule(tokens)
        case Confidence(top_prob_below):
            return Rule(most, top_prob_below, statistics=statistics, value=value, drops=drops)
        case Acceptance(stop=stop):
            return Rule(most, 0.0, stop, True, statistics, value if stop is None else None, drops)
