"""What a decoding method may ask for: plain data, awaited, answered by the scheduler in batches.

Methods (policies, draws, searches) are ``async def``s that import neither torch nor the engine. They await the ops
below; the scheduler runs all waiting ops of a model as one forward pass, whichever request or method they come from.
Tests drive the same methods with a table of logits.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from trimtab.decode.types import TopLogprob

if TYPE_CHECKING:
    from trimtab.kernels.reference.filters import Filters
    from trimtab.kernels.rng import Key

__all__ = ["Context", "Extend", "Gather", "Pick", "Read", "Seq", "VocabularyView", "gather"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pick:
    """How to draw the token that follows a position.

    Attributes:
        filters: temperature, filters, penalties and bias.
        key: seed and branch of the random numbers (law 3).
        position: index of the token in the answer, their counter.
        banned: ids that must not be drawn, e.g. EOS before the minimum length.
    """

    filters: Filters
    key: Key
    position: int
    banned: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Read:
    """What a model says after one position: statistics of its distribution at temperature 1, and a token.

    Attributes:
        token: the drawn token, or the most likely one where no ``Pick`` was given.
        logprob: ln p of ``token``.
        entropy: nats.
        top_prob: largest probability.
        argmax: the most likely token, the lowest id on ties.
        top: most likely tokens, as many as asked for; pieces included.
    """

    token: int
    logprob: float
    entropy: float
    top_prob: float
    argmax: int
    top: tuple[TopLogprob, ...] = ()


class Seq(Protocol):
    """One sequence of one model. Its tokens are the truth; what is cached of them is the engine's business."""

    @property
    def model(self) -> str: ...

    @property
    def tokens(self) -> Sequence[int]: ...

    def fork(self) -> Seq:
        """A second sequence with the same tokens; what is cached is shared."""
        ...

    def rewind(self, length: int) -> None:
        """Forget tokens from ``length`` on."""
        ...

    def close(self) -> None:
        """Give everything back, at once. Idempotent."""
        ...


@dataclass(slots=True)
class Extend:
    """Append tokens to a sequence and read the model after the last ``reads`` of all its tokens.

    Attributes:
        seq: the sequence. Tokens that it has but the engine has not computed yet are computed first, in one go.
        tokens: appended when the op is awaited.
        picks: one entry per read, in order; None reads the statistics only.
        top: number of most likely tokens to report per read.

    Awaiting it returns a list of ``reads`` = len(picks) reads.
    """

    seq: Seq
    tokens: Sequence[int] = ()
    picks: Sequence[Pick | None] = (None,)
    top: int = 0

    def __await__(self) -> Generator[Extend, list[Read], list[Read]]:
        return (yield self)


@dataclass(slots=True)
class Gather:
    """Run coroutines side by side; awaiting it returns their results in order. The first failure closes the others."""

    children: Sequence[Coroutine[Any, Any, Any]]

    def __await__(self) -> Generator[Gather, list[Any], list[Any]]:
        return (yield self)


async def gather(*children: Coroutine[Any, Any, T]) -> list[T]:
    """Results of ``children``, run side by side, in order."""
    return await Gather(children)


class VocabularyView(Protocol):
    """The part of a vocabulary that methods use; see ``trimtab.decode.text.Vocabulary``."""

    eos_token_ids: tuple[int, ...]
    special_ids: frozenset[int]

    def encode(self, text: str, add_special_tokens: bool = True, *, continues: bool = False) -> list[int]: ...

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True, *, continues: bool = False
    ) -> tuple[list[int], list[int]]: ...

    def piece(self, token_id: int) -> bytes: ...


class Context(Protocol):
    """What a running request offers to its methods."""

    def open(self, model: str, tokens: Sequence[int]) -> Seq:
        """A new sequence of a model."""
        ...

    def vocabulary(self, model: str) -> VocabularyView: ...

    def limit(self, model: str) -> int:
        """Longest sequence of a model, in tokens."""
        ...

    def out_of_time(self) -> bool:
        """Whether the request's time budget is spent."""
        ...
