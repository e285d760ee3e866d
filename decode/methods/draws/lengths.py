"""When to stop drafting, token by token: the rules behind ``Fixed``, ``Confidence`` and ``Acceptance``.

``Acceptance`` is the rule of SpecDec++ (Huang, Guo, Wang, 2024, theorem 3.1): stop once

    P(some drafted token is rejected) >= (c2 + D) / (c1 + c2 + D),

with c1 the cost of drafting a token, c2 that of the target's pass, and D whatever a longer block saves beyond it. What
D is follows from asking what one more token is worth. In a long run at L seconds per written token, a drafted token
that is accepted saves L seconds. It is accepted if all before it are, and then with a probability a. So it pays while

    P(all before it are accepted) * a * L > c1:

the theorem with c1 + c2 + D = a L, the *value* of a token that follows accepted ones. D = a L - c1 - c2 is negative
wherever speculation helps at all, since then L < c2: with D = 0 blocks would be far too long. (With c2 = 10 c1 they
would stop at 0.91; at a = 0.8 the best fixed length has L = 4.05 c1, which gives 0.69.)

c1 counts everything that one more drafted token costs: the draft's pass *and* by how much it lengthens the pass that
verifies it. The latter is nothing where a pass is bound by reading the weights, as on a GPU with few rows; on a CPU or
with many rows it can exceed the former.

*Together.* Rows of a batch share the draft's passes, of which most costs the same whoever takes part. So a row wants
another token if that is worth more than its own share, and there is a pass if what it is worth to all who want one,
summed up, exceeds what the pass itself costs (``together``). For a row alone that is the bound above.

*Dropping.* A token's own probability of acceptance is known when the draft has been read, and then its draft is paid
for; only the target's share is still to be saved. So it is verified while

    P(all before it are accepted) * P(it is accepted) * L >= what it adds to the target's pass,

and dropped otherwise, with the block ending before it, perhaps empty. That leaves the answer's distribution as it is,
since the head reads what was written before the token and not the token: whether a position is verified never depends
on what was drawn there. (Dropping tokens for what they are would not: the target's residual corrects for all of them.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.decode.methods.draws.length import (
    Acceptance,
    Confidence,
    Fixed,
    Length,
)

__all__ = ["UNMEASURED_STOP", "Rule", "TokenCosts", "longest", "measured", "rule", "together"]

# The bound of ``Acceptance`` until costs are measured: that of the example above.
UNMEASURED_STOP = 0.7


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """What one more drafted token costs one row of the present batch, and what it is worth. Seconds.

    Attributes:
        draft: by how much the draft's pass grows with this row.
        verify: by how much the target's pass grows with one more token to verify.
        saves: what an accepted token is worth: seconds per written token.
        chance: that it is accepted if all before it are.
        shared: the draft's pass, but for ``draft``.
    """

    draft: float
    verify: float
    saves: float
    chance: float
    shared: float = 0.0

    @property
    def stop(self) -> float:
        """The theorem's bound on the probability of a rejection, in [0, 1), before the token is drafted; ``shared``,
        which isn't this row's alone, is left out.
        """
        spent, value = self.draft + self.verify, self.chance * self.saves
        return 1 - spent / value if 0 <= spent < value else 0.0

    @property
    def least(self) -> float:
        """The least probability of being accepted with which it pays to verify the token, once drafted."""
        return self.verify / self.saves


@dataclass(slots=True)
class Rule:
    """Stops one block.

    Attributes:
        max_tokens: longest block, >= 1.
        top_prob_below: stop after a token whose top probability under the draft was below this; 0 never does.
        stops: after each token, the last standing for all later ones: stop once the probability that some token is
            rejected reaches this; none never does.
        least: for each token, the last standing for all later ones: drop it if the probability that it and all before
            it are accepted is below this; none never does.
        costs: of each token, the last standing for all later ones; none while they are unknown.
        even: whether the block has the length that others of its round have, whatever its tokens' chances.
        trial: whether the block is drafted to learn what blocks cost, and says nothing of whether they pay.
        dropped: the probability that all before the dropped token are accepted, and that it is if they are.
    """

    max_tokens: int
    top_prob_below: float = 0.0
    stops: tuple[float, ...] = ()
    least: tuple[float, ...] = ()
    costs: tuple[TokenCosts, ...] = ()
    even: bool = False
    trial: bool = False
    dropped: tuple[float, float] | None = field(default=None, init=False)
    _drafted: int = field(default=0, init=False)
    _all_accepted: float = field(default=1.0, init=False)

    @property
    def wants_acceptance(self) -> bool:
        """Whether the acceptance head's probabilities are read."""
        return bool(self.stops)

    def keeps(self, accept_prob: float | None) -> bool:
        """Whether the token that is being drawn is worth verifying; if not, the block ends before it.

        Args:
            accept_prob: probability that it is accepted if those before it are, whichever token it is.
        """
        if not self.least or accept_prob is None:
            return True
        chance = min(max(accept_prob, 0.0), 1.0)
        if self._all_accepted * chance >= self.least[min(self._drafted, len(self.least) - 1)]:
            return True
        self.dropped = self._all_accepted, chance
        return False

    def goes_on(self, top_prob: float, accept_prob: float | None) -> bool:
        """Whether to draft another token; called once after each that is kept.

        Args:
            top_prob: largest probability of the distribution that the token was drawn from.
            accept_prob: probability that this token is accepted if those before it are.

        Raises:
            ValueError: the rule reads it and it is None.
        """
        self._drafted += 1
        if self.wants_acceptance:
            if accept_prob is None:
                raise ValueError("length = Acceptance: the draft has no acceptance head: accepted: Confidence or Fixed")
            self._all_accepted *= min(max(accept_prob, 0.0), 1.0)
        return (
            self._drafted < self.max_tokens
            and top_prob >= self.top_prob_below
            and (not self.stops or 1 - self._all_accepted < self.stops[min(self._drafted, len(self.stops)) - 1])
        )

    @property
    def _next(self) -> TokenCosts | None:
        """Of the token that would be drafted next."""
        return self.costs[min(self._drafted, len(self.costs) - 1)] if self.costs else None

    @property
    def surplus(self) -> float:
        """Seconds that the next token is worth beyond what it costs this row, were the draft's pass made anyway;
        infinite if the rule doesn't ask for costs.
        """
        costs = self._next
        if costs is None:
            return float("inf")
        return self._all_accepted * costs.chance * costs.saves - costs.draft - costs.verify

    @property
    def shared(self) -> float:
        """Seconds of the next pass of the draft that are no row's own; 0 while they are unknown."""
        return 0.0 if self._next is None else self._next.shared


def together(rules: Sequence[Rule]) -> bool:
    """Whether another pass of the draft pays, for blocks that each want another token."""
    return sum(rule.surplus for rule in rules) > max((rule.shared for rule in rules), default=0.0)


def measured(length: Length) -> bool:
    """Whether it is costs that decide how long blocks are, token by token."""
    return isinstance(length, Acceptance) and length.stop is None


def longest(length: Length) -> int:
    """Tokens of the longest block that a length allows."""
    return length.tokens if isinstance(length, Fixed) else length.max_tokens


def rule(length: Length, costs: Sequence[TokenCosts] = (), cap: int | None = None, *, drops: bool = True) -> Rule:
    """The rule for one block.

    Args:
        length: as requested.
        costs: of the first token, the second and so on, the last standing for all later ones, in the present batch;
            none while they are unknown. Only ``Acceptance`` without a bound of its own reads them.
        cap: a longer block doesn't pay at the present load; ``Fixed`` doesn't mind.
        drops: whether tokens may be dropped that, by these costs, are not worth verifying.
    """
    most = longest(length) if cap is None else max(1, min(cap, longest(length)))
    match length:
        case Fixed(tokens):
            return Rule(tokens)
        case Confidence(top_prob_below):
            return Rule(most, top_prob_below=top_prob_below)
        case Acceptance(stop=None):
            stops = tuple(each.stop for each in costs[1:] or costs)
            least = tuple(each.least for each in costs) if drops else ()
            return Rule(most, stops=stops or (UNMEASURED_STOP,), least=least, costs=tuple(costs))
        case Acceptance(stop=stop):
            assert stop is not None
            return Rule(most, stops=(stop,))
