"""What waits for forward passes: an awaited op, and the sequences that must be computed before it can be answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from trimtab.decode.engine.run import Run
from trimtab.decode.engine.tasks import Task
from trimtab.decode.engine.view import LiveSequence
from trimtab.decode.ops import Draft, Extend, Mixed, Pick, Read, Seq, Value, Verify

__all__ = ["Item", "ModelOp", "Pending", "sequences_of"]

ModelOp = Extend | Verify | Value | Draft

SHORT = 16  # uncached tokens up to which an item counts as writing, not as reading a prompt


@dataclass(eq=False, slots=True)
class Item:
    """One sequence that a view must bring up to its tokens.

    Attributes:
        pending: the op that it is part of; a mixture has one item for each of its models.
        wanted: rows of output, those after the last tokens.
        rows: what passes have given of these so far, in order, where the op is answered from rows.
        reads: the same where rows were sampled at once.
        overtaken: left out of the last pass, which a later request was in.
        fault: what reading one of its rows raised.
    """

    pending: Pending
    sequence: LiveSequence
    wanted: int
    rows: list[Tensor] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    got: int = 0
    overtaken: bool = False
    fault: Exception | None = None

    @property
    def run(self) -> Run:
        return self.pending.run

    @property
    def missing(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.sequence.tokens) - self.sequence.table.length

    @property
    def sampled(self) -> bool:
        """Whether rows become reads in the pass that gives them."""
        return isinstance(self.pending.op, Extend) and len(self.pending.items) == 1

    @property
    def joins(self) -> bool:
        """Whether its one row can be read as a verified block without tokens is."""
        op = self.pending.op
        return isinstance(op, Extend) and len(op.picks) == 1 and isinstance(op.picks[0], Pick)


@dataclass(eq=False, slots=True)
class Pending:
    """An op of a running request.

    Attributes:
        items: base first.
        open: items that are not computed yet.
    """

    run: Run
    task: Task
    op: ModelOp
    items: list[Item] = field(default_factory=list)
    open: int = 0


def sequences_of(seq: Seq) -> tuple[LiveSequence, ...]:
    """The sequences behind what an op names."""
    parts = seq.parts if isinstance(seq, Mixed) else (seq,)
    assert all(isinstance(part, LiveSequence) for part in parts)
    return tuple(parts)  # type: ignore[arg-type]
