"""What goes between the beats of a step: from the scheduler to the runner a plan, and what came of it back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from trimtab.decode.engine.batch import Span
from trimtab.decode.engine.drafting import Block
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.work import Item, Pending
from trimtab.decode.ops import Read

__all__ = ["Entry", "Failure", "Output", "Plan"]


class Entry(NamedTuple):
    """A sequence's share of a pass.

    Attributes:
        item: whose sequence it is.
        span: the tokens to compute; there are pages for them.
        block: that grows by a token when the sequence is computed; None where nothing is drafted.
        last: whether the sequence is computed whole then.
    """

    item: Item
    span: Span
    block: Block | None
    last: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """One forward pass.

    Attributes:
        model: that runs.
        entries: at least one, in a stable order.
        drafting: it grows blocks.
    """

    model: ModelInstance
    entries: tuple[Entry, ...]
    drafting: bool


class Failure(NamedTuple):
    """Why an op gets no answer: what failed, in words, and how."""

    what: str
    error: Exception


@dataclass(frozen=True, slots=True)
class Output:
    """What came of a plan.

    Attributes:
        began: ``time.perf_counter()`` when it did.
        failures: ops that make the pass, or the reading of their rows, fail.
        growing: items whose blocks go on.
        rows: logits [reads, V] of items whose op is read when all of its rows are there.
        reads: of ops that are read at once, those of this pass.
        answers: to ops that are computed whole, as they are awaited.
    """

    began: float
    failures: dict[Pending, Failure] = field(default_factory=dict)
    growing: set[Item] = field(default_factory=set)
    rows: dict[Item, Tensor] = field(default_factory=dict)
    reads: dict[Pending, list[Read]] = field(default_factory=dict)
    answers: dict[Pending, Any] = field(default_factory=dict)

    def fail(self, entries: Iterable[Entry], what: str, error: Exception) -> None:
        """The ops behind these entries failed, unless they have already."""
        for entry in entries:
            self.failures.setdefault(entry.item.pending, Failure(what, error))
