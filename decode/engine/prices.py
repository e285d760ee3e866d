"""What rounds of speculation cost at a load, and what a block adds to one.

A round of speculation by R rows with blocks of k tokens takes F(R) + (k - 1) D(R) + S(R (k + 1)) seconds, where S(n) is
the target's pass over n tokens and F(n) and D(n) are the draft's first pass of a round and its later ones, and writes
R (1 + a + ... + a^k) tokens, where a is the chance that a drafted token stands if those before it do. Its *price* is
the quotient, in seconds per token; plain decoding's is S(R) / R. S grows with its tokens on a CPU and with many rows,
and with positions the more, the more tokens attend to them; so the best k shrinks under load, down to none. F is more
than D: a first pass also reads the tokens that the last round wrote, and finds the caches full of the target's weights
(1.8 ms in place of 1.3, measured on two cores).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from trimtab.decode.engine.costs import DraftCosts, Load, PassCosts
from trimtab.decode.engine.counts import Counts
from trimtab.decode.engine.rounds import Verdict
from trimtab.decode.methods.draws.lengths import Rule, TokenCosts

__all__ = ["MARGIN", "NEAR", "Prices", "find"]

MARGIN = 0.01  # speculation must be better by this, since estimates err
NEAR = 0.05  # what is as good as equal
_BELIEVED = 4  # blocks, from which on what they were tells what the next ones will be


@dataclass(frozen=True, slots=True)
class Prices:
    """What things cost at a load, in seconds.

    Attributes:
        plain: a token by plain decoding.
        token: a token as things are: by speculation if it pays for the rows together, else plain.
        common: the best length of blocks of all rows; 0 where they don't pay together.
        worse: whether blocks as they have been cost more than that.
        drafts, verifies: by how much a round grows with a row's first, second, ... drafted token, if the draft's passes
            are made anyway.
        shared: what these passes cost beside.
        adds_draft, adds_verify: what a row must bring with a block of 0, 1, 2, ... tokens: these costs, or its share of
            common ones.
        verdict: of the rounds of so many rows, where there are several and enough of them have been seen.
        rules: found with these prices, by request.
    """

    plain: float
    token: float
    common: int
    worse: bool
    drafts: list[float]
    shared: list[float]
    verifies: list[float]
    adds_draft: list[float]
    adds_verify: list[float]
    verdict: Verdict | None
    rules: dict[str, Rule] = field(default_factory=dict)

    def adds(self, passes: float, tokens: float) -> float:
        """Seconds for a block of so many tokens that took so many passes of the draft."""
        return _between(self.adds_draft, passes) + _between(self.adds_verify, tokens)

    def costs(self, tokens: int, chance: float) -> list[TokenCosts]:
        """Of the first so many tokens of a block, with the chance that one of them stands if those before it do."""
        each = zip(self.drafts[:tokens], self.verifies[:tokens], self.shared[:tokens], strict=True)
        return [TokenCosts(draft, verify, self.token, chance, shared) for draft, verify, shared in each]


def find(
    target: PassCosts,
    draft: DraftCosts,
    load: Load,
    most: int,
    counts: Counts,
    blocks: float,
    verdict: Verdict | None,
) -> Prices:
    """Prices at a load.

    Args:
        target, draft: what their passes take; some must have been seen.
        load: rows that go together.
        most: tokens of the longest block.
        counts: what became of the blocks of all these rows, or is assumed.
        blocks: that were seen.
        verdict: of rounds of so many rows; None if they have said nothing yet, or there is one row.
    """
    rows = load.rows
    together = draft.growing(load, most)
    alone = draft.growing(load.alone, most)
    joined = [(t - a) / (rows - 1) for t, a in zip(together, alone, strict=True)] if rows > 1 else alone
    shared = [a - j for a, j in zip(alone, joined, strict=True)]
    target_pass = [target.at(load, rows * (k + 1)) for k in range(most + 1)]
    plain = target_pass[0] / rows
    drafted = list(accumulate(together, initial=0.0))
    rounds = [before + seconds for before, seconds in zip(drafted, target_pass, strict=True)]
    best, common = _best(rounds, rows, counts.chance)
    usual = best
    if blocks > _BELIEVED:  # a rule that picks its moments does better than any one length, or worse
        mean = counts.drafted / counts.blocks
        # A round has as many passes of the draft as its longest block has tokens.
        grown = max(counts.passes / counts.blocks, draft.passes_per_round)
        seconds = _between(drafted, grown) + _between(target_pass, mean)
        usual = seconds * counts.blocks / (rows * counts.written)
    token = min(best, usual) if verdict is None else min(verdict.drafting, plain)
    if verdict is not None or token < plain * (1 - MARGIN):
        last = max(1.0, 0.75 * rows)  # rows: most draft, so these show what one more token costs
        before_last = [target.at(load, rows * (k + 1) - last) for k in range(1, most + 1)]
        verifies = [(after - before) / last for before, after in zip(before_last, target_pass[1:], strict=True)]
        adds = [(after - before) / rows for before, after in pairwise(target_pass)]
        own = [seconds / rows for seconds in together]
    else:
        token, common, own = plain, 0, alone
        one_drafts = [target.at(load, rows + k) for k in range(most + 1)]
        verifies = adds = [after - before for before, after in pairwise(one_drafts)]
    shares = [joined[k] if k < common else own[k] for k in range(most)]
    adds_draft, adds_verify = (list(accumulate(costs, initial=0.0)) for costs in (shares, adds))
    worse = usual > best * (1 + NEAR)
    return Prices(plain, token, common, worse, joined, shared, verifies, adds_draft, adds_verify, verdict)


def _between(values: Sequence[float], place: float) -> float:
    """The value at a place between whole ones; the last one beyond the end."""
    low = min(int(place), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (min(place, len(values) - 1) - low)


def _best(rounds: Sequence[float], rows: int, chance: float) -> tuple[float, int]:
    """The least seconds per token with blocks of one length, at least one token, and that length."""
    best, tokens = (float("inf"), 1), 1.0
    for k in range(1, len(rounds)):
        tokens += chance**k
        best = min(best, (rounds[k] / (rows * tokens), k))
    return best
