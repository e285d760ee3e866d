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
with many rows it can exceed the former. In a batch a pass is shared by the rows that still draft: the fewer they are,
the dearer the next token is to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.decode.types import Acceptance, Confidence, Draw, Fixed, Length, Speculative

__all__ = ["UNMEASURED_STOP", "Rule", "TokenCosts", "longest", "reproducible", "rule"]

# The bound of ``Acceptance`` until costs are measured: that of the example above.
UNMEASURED_STOP = 0.7


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """What one more drafted token costs one row of the present batch, and what it is worth. Seconds.

    Attributes:
        draft: the draft's pass.
        verify: by how much the target's pass grows with one more token to verify.
        value: saved by the token if all before it are accepted: the probability that it is, too, times the seconds
            per written token.
    """

    draft: float
    verify: float
    value: float

    @property
    def stop(self) -> float:
        """The theorem's bound on the probability of a rejection, in [0, 1)."""
        spent = self.draft + self.verify
        return 1 - spent / self.value if 0 <= spent < self.value else 0.0


@dataclass(slots=True)
class Rule:
    """Stops one block.

    Attributes:
        max_tokens: longest block, >= 1.
        top_prob_below: stop after a token whose top probability under the draft was below this; 0 never does.
        stops: after each token, the last standing for all later ones: stop once the probability that some token is
            rejected reaches this; none never does.
    """

    max_tokens: int
    top_prob_below: float = 0.0
    stops: tuple[float, ...] = ()
    _drafted: int = field(default=0, init=False)
    _all_accepted: float = field(default=1.0, init=False)

    @property
    def wants_acceptance(self) -> bool:
        """Whether the acceptance head's probabilities are read."""
        return bool(self.stops)

    def goes_on(self, top_prob: float, accept_prob: float | None) -> bool:
        """Whether to draft another token; called once after each.

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


def longest(length: Length) -> int:
    """Tokens of the longest block that a length allows."""
    return length.tokens if isinstance(length, Fixed) else length.max_tokens


def rule(length: Length, costs: Sequence[TokenCosts] = (), cap: int | None = None) -> Rule:
    """The rule for one block.

    Args:
        length: as requested.
        costs: of the second token, the third and so on, the last standing for all later ones, in the present batch;
            none while they are unknown. Only ``Acceptance`` without a bound of its own reads them.
        cap: a longer block doesn't pay at the present load; ``Fixed`` doesn't mind.
    """
    most = longest(length) if cap is None else max(1, min(cap, longest(length)))
    match length:
        case Fixed(tokens):
            return Rule(tokens)
        case Confidence(top_prob_below):
            return Rule(most, top_prob_below=top_prob_below)
        case Acceptance(stop=None):
            return Rule(most, stops=tuple(each.stop for each in costs) or (UNMEASURED_STOP,))
        case Acceptance(stop=stop):
            assert stop is not None
            return Rule(most, stops=(stop,))


def reproducible(draw: Draw, temperature: float) -> bool:
    """Whether the tokens depend on the request and its seed alone (law 3).

    Greedy and coupled decoding write what plain decoding would, however long the blocks are. Otherwise lengths decide
    which random number decides what: ``Fixed`` ones are the request's own, the others also follow measured costs.
    """
    if not isinstance(draw, Speculative) or draw.coupled or temperature == 0:
        return True
    return isinstance(draw.length, Fixed)
