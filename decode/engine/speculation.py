"""When speculation pays, and how long a block should be, from measured costs.

The interface that the scheduler uses: ``observe`` after every pass, ``rule`` before every block.
"""

from __future__ import annotations

from trimtab.decode.draws.lengths import Rule, rule
from trimtab.decode.types import Length

__all__ = ["Speculation"]


class Speculation:
    """Costs of passes by model, and what to draft now."""

    def observe(self, model: str, tokens: int, seconds: float, drafting: bool) -> None:
        """A pass of ``model`` over ``tokens`` tokens took so long; ``drafting``: it only grew blocks."""

    def verified(self, draft: str, target: str, request: str, drafted: int, accepted: int) -> None:
        """A block was verified."""

    def rule(self, length: Length, draft: str, target: str, request: str, load: int) -> Rule | None:
        """The rule for the next block; None where none should be drafted.

        Args:
            length: as requested.
            draft, target: models.
            request: its id, for estimates of its own.
            load: sequences that share the target's next pass.
        """
        return rule(length)
