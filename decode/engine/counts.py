"""What became of a draft's blocks: how many of their tokens stood, and what they brought."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counts"]

# Acceptance before anything is seen, in tokens that stood and fell.
_STOOD, _FELL = 2.1, 0.9
_LEAN = 20.0  # tokens and blocks that a request's own counts must outweigh: requests differ by 0.1 in acceptance


@dataclass(slots=True)
class Counts:
    """What became of blocks, fading.

    Attributes:
        stood, fell: drafted tokens that did, of those whose predecessors stood; of dropped ones what was expected.
        blocks, passes, drafted, written: blocks, passes of the draft for each, their tokens, and the tokens that they
            led to.
    """

    stood: float = 0.0
    fell: float = 0.0
    blocks: float = 0.0
    passes: float = 0.0
    drafted: float = 0.0
    written: float = 0.0

    @classmethod
    def prior(cls) -> Counts:
        """What is assumed before anything is seen."""
        return cls(_STOOD, _FELL)

    def add(self, drafted: int, accepted: int, passes: int, memory: float) -> None:
        """A block was verified; what was counted before fades to so much."""
        self.stood = memory * self.stood + accepted
        self.fell = memory * self.fell + (accepted < drafted)
        self.blocks = memory * self.blocks + 1
        self.passes = memory * self.passes + passes
        self.drafted = memory * self.drafted + drafted
        self.written = memory * self.written + accepted + 1

    def expect(self, before: float, chance: float) -> None:
        """A token was dropped that would have stood with this chance, had all before it stood, and with that."""
        self.stood += before * chance
        self.fell += before * (1 - chance)

    @property
    def chance(self) -> float:
        """That a drafted token stands if those before it do."""
        return self.stood / (self.stood + self.fell)

    def leaning(self, on: Counts) -> Counts:
        """These and, as if it had been seen here, a little of what others saw."""
        tokens = _LEAN / (on.stood + on.fell)
        blocks = _LEAN / on.blocks if on.blocks else 0.0
        return Counts(
            self.stood + tokens * on.stood,
            self.fell + tokens * on.fell,
            self.blocks + blocks * on.blocks,
            self.passes + blocks * on.passes,
            self.drafted + blocks * on.drafted,
            self.written + blocks * on.written,
        )
