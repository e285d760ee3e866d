"""What waits for forward passes: an awaited op, and the sequences that must be computed before it can be answered."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from trimtab.decode.engine.model_instance import LiveSequence
from trimtab.decode.engine.request_state import RequestState
from trimtab.decode.engine.tasks import Task
from trimtab.decode.ops import Draft, Extend, Mixed, Read, Value, Verify

__all__ = ["SHORT", "Item", "ModelOp", "Pending"]

ModelOp = Extend | Verify | Value | Draft

SHORT = 16  # uncached tokens up to which an item counts as writing, not as reading a prompt


@dataclass(eq=False, slots=True)
class Item:
    """One sequence that its model must bring up to its tokens.

    Attributes:
        pending: the op that it is part of; a mixture has one item for each of its models.
        wanted: rows of output, those after the last tokens.
        got: so many of them have been computed.
        rows: these, in order, where the op is answered from all of them together.
        overtaken: left out of the last pass, which a later request was in.
    """

    pending: Pending
    sequence: LiveSequence
    wanted: int
    got: int = 0
    rows: list[Tensor] = field(default_factory=list)
    overtaken: bool = False

    @property
    def state(self) -> RequestState:
        return self.pending.state

    @property
    def missing(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.sequence.tokens) - self.sequence.table.length


@dataclass(eq=False, slots=True)
class Pending:
    """An op of a running request.

    Attributes:
        items: base first.
        open: items that are not computed yet.
        reads: what has been read at once, of an op of one model that verifies nothing.
    """

    state: RequestState
    task: Task
    op: ModelOp
    items: list[Item] = field(default_factory=list)
    open: int = 0
    reads: list[Read] = field(default_factory=list)

    @classmethod
    def of(cls, state: RequestState, task: Task, op: ModelOp) -> Self:
        """The op that a task awaits; its tokens are appended to its sequences.

        Raises:
            ValueError: it makes no sense.
        """
        parts = op.seq.parts if isinstance(op.seq, Mixed) else (op.seq,)
        sequences = [part for part in parts if isinstance(part, LiveSequence)]
        assert len(sequences) == len(parts)
        drafted = op.drafted.tokens if isinstance(op, Verify) else ()
        tokens = (*op.tokens, *drafted)
        wanted = len(op.picks) if isinstance(op, (Extend, Verify)) else op.last if isinstance(op, Value) else 1
        for sequence in sequences:
            _check(op, sequence, tokens, wanted)
        if isinstance(op, Verify) and wanted != len(drafted) + 1:
            raise ValueError(f"{wanted} picks for {len(drafted)} drafted tokens")
        if isinstance(op, Draft) and not op.picks:
            raise ValueError("a draft without picks")
        pending = cls(state, task, op, open=len(sequences))
        for sequence in sequences:
            sequence.tokens.extend(tokens)
            pending.items.append(Item(pending, sequence, wanted))
        return pending

    @property
    def read_at_once(self) -> bool:
        """Whether rows become reads in the pass that gives them: no other row or model has a say in them."""
        return isinstance(self.op, Extend) and len(self.items) == 1


def _check(op: ModelOp, sequence: LiveSequence, tokens: tuple[int, ...], wanted: int) -> None:
    instance, total = sequence.instance, len(sequence.tokens) + len(tokens)
    if sequence.closed:
        raise ValueError("the sequence is closed")
    if not 1 <= wanted <= total:
        raise ValueError(f"{wanted} reads of a sequence of {total} tokens")
    if total > instance.context:
        raise ValueError(f"{total} tokens exceed the context of {instance.context}")
    if outside := instance.unknown(tokens):
        raise ValueError(outside)
    if isinstance(op, Value) is not (instance.model.labels is not None):
        raise ValueError(f"{type(op).__name__} of model {instance.name!r}")
