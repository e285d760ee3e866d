"""Rules for the lengths of blocks, replayed on recorded ones: what each would have drafted, at given costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trimtab.decode.engine.lengths import LengthController
from trimtab.decode.methods.draws.length import Length
from trimtab.decode.methods.draws.length_rules import Rule, together

__all__ = ["Block", "Blocks", "Replay"]

# Of each token the draft's top probability and the acceptance head's, and how many tokens were accepted.
Block = tuple[Sequence[tuple[float, float | None]], int]
Blocks = Sequence[Block]


class _Row:
    """Answers that are written one after the other.

    Attributes:
        tokens: that the draft would propose from here on.
        accepted: how many of them would be.
    """

    def __init__(self, answers: list[Blocks]) -> None:
        self._answers, self._at = answers, 0
        self._blocks: list[Block] = []
        self.tokens: Sequence[tuple[float, float | None]] = ()
        self.accepted = 0

    def advance(self, written: int) -> bool:
        """Take tokens of the text; whether there are more."""
        self._at += written
        while True:
            if self._blocks:
                tokens, accepted = self._blocks[0]
                if self._at <= accepted and self._at < len(tokens):
                    self.tokens, self.accepted = tokens[self._at :], accepted - self._at
                    return True
                self._blocks, self._at = self._blocks[1:], 0
            elif self._answers:
                self._blocks = list(self._answers.pop())
            else:
                return False


class Replay:
    """An engine that answers with recorded blocks, rows in step.

    Args:
        answers: blocks of each.
        rows: answers at a time.
        length: as requested; None decodes plainly.
        target, draft: seconds of a pass over so many tokens, and of so many rows.
        controller: decides.

    Attributes:
        seconds, tokens: all that were spent, and written.
        lengths: of the blocks that were verified.
    """

    def __init__(
        self,
        answers: Sequence[Blocks],
        rows: int,
        length: Length | None,
        target: Callable[[float], float],
        draft: Callable[[float], float],
        controller: LengthController,
    ) -> None:
        waiting = list(answers)[::-1]
        self._rows = [_Row(waiting) for _ in range(rows)]
        self._rows = [row for row in self._rows if row.advance(0)]
        self._length, self._costs, self._controller = length, {"target": target, "draft": draft}, controller
        self.seconds, self.tokens, self.lengths = 0.0, 0, list[int]()

    def run(self) -> None:
        """Until all is written."""
        while self._rows:
            self.round()

    def round(self) -> None:
        """Each row drafts, then all are verified."""
        rules: dict[_Row, Rule] = {}
        for row in self._rows:
            if self._length is not None:
                found = self._controller.length_rule(self._length, "draft", "target", len(self._rows))
                if found is not None:
                    rules[row] = found
        drafted = self._draft(rules)
        self._spend("target", len(self._rows) + sum(drafted.values()))
        left = []
        for row in self._rows:
            accepted = min(drafted.get(row, 0), row.accepted)
            if row in rules:
                self._controller.observe_block(rules[row], accepted)
            self.tokens += accepted + 1
            self.lengths.append(drafted.get(row, 0))
            if row.advance(accepted + 1):
                left.append(row)
        self._rows = left

    def _draft(self, rules: dict[_Row, Rule]) -> dict[_Row, int]:
        """Tokens to verify, by row."""
        drafted = dict.fromkeys(rules, 0)
        growing = list(rules)
        while growing:
            self._spend("draft", len(growing))
            going = []
            for row in growing:
                top_prob, accept_prob = row.tokens[drafted[row]]
                if rules[row].keeps(top_prob, accept_prob):
                    drafted[row] += 1
                    if drafted[row] < len(row.tokens) and rules[row].goes_on(top_prob):
                        going.append(row)
            growing = going if together([rules[row] for row in going]) else []
        return drafted

    def _spend(self, model: str, size: int) -> None:
        seconds = self._costs[model](size)
        self.seconds += seconds
        self._controller.observe_pass(model, size, seconds, drafting=model == "draft")
