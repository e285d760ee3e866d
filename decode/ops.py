"""What a decoding method may ask for: plain data, awaited, answered by the scheduler in batches.

Methods (policies, draws, searches) are ``async def``s that import neither torch nor the engine. They await the ops
below; the scheduler runs all waiting ops of a model as one forward pass, whichever request or method they come from.
Tests drive the same methods with a table of logits.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.result import TokenDraw, TopLogprob
from trimtab.decode.text.view import VocabularyView
from trimtab.kernels.types import Blend, Pick

if TYPE_CHECKING:
    from trimtab.decode.methods.draws.length import Length

__all__ = [
    "Call",
    "Context",
    "Draft",
    "Drafted",
    "Extend",
    "Gather",
    "Given",
    "Mixed",
    "Picks",
    "Read",
    "Seq",
    "Value",
    "Verify",
    "gather",
]

T = TypeVar("T")


class Picks(Sequence[Pick]):
    """Of successive positions, each made when it is asked for: most blocks end long before they must.

    Args:
        make: gives the pick at a place.
        count: how many there are.
    """

    def __init__(self, make: Callable[[int], Pick], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Pick: ...
    @overload
    def __getitem__(self, index: slice) -> Picks: ...
    def __getitem__(self, index: int | slice) -> Pick | Picks:
        places = range(self._count)[index]
        if isinstance(places, int):
            return self._make(places)
        return Picks(lambda i: self._make(places[i]), len(places))

    @classmethod
    def of_draft(cls, picks: Sequence[Pick]) -> Picks:
        """The same, with the random numbers under which a draft proposes what these draw."""
        return cls(lambda i: picks[i]._replace(key=picks[i].key.drafting), len(picks))


@dataclass(frozen=True, slots=True)
class Given:
    """Take this token at a position, whatever the model says: its logprob is wanted."""

    token: int


@dataclass(frozen=True, slots=True)
class Read:
    """What a model, or a mixture, says after one position: statistics of its distribution, and a token.

    The distribution is that at temperature 1, before penalties, bias, bans and filters; a mixture's is the normalised
    one, without the tokens that its plausibility leaves out.

    Attributes:
        token: the drawn or given token, or the most likely one where no pick was given.
        logprob: ln p of ``token``.
        entropy: nats.
        top_prob: largest probability.
        argmax: the most likely token, the lowest id on ties.
        top: most likely tokens, as many as asked for; pieces included.
        draw: how the token came about.
    """

    token: int
    logprob: float
    entropy: float
    top_prob: float
    argmax: int
    top: tuple[TopLogprob, ...] = ()
    draw: TokenDraw = TokenDraw.PLAIN


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


class Mixed:
    """Sequences of several models whose distributions are mixed, used as one sequence.

    All share one vocabulary and, after prompts of their own, the same tokens. What is read after a position is the
    mixture; ``tokens``, ``model`` and lengths are those of the first sequence, the base.

    Args:
        parts: the base's sequence and those of the experts.
        blend: weights and plausibility; see ``trimtab.kernels.types.Blend``.
    """

    __slots__ = ("blend", "parts")

    def __init__(self, parts: Sequence[Seq], blend: Blend) -> None:
        self.parts, self.blend = tuple(parts), blend

    @property
    def model(self) -> str:
        return self.parts[0].model

    @property
    def tokens(self) -> Sequence[int]:
        return self.parts[0].tokens

    def fork(self) -> Mixed:
        return Mixed([part.fork() for part in self.parts], self.blend)

    def rewind(self, length: int) -> None:
        back = len(self.tokens) - length
        for part in self.parts:
            part.rewind(len(part.tokens) - back)

    def close(self) -> None:
        for part in self.parts:
            part.close()


@dataclass(slots=True)
class Extend:
    """Append tokens to a sequence and read the model after the last ``reads`` of all its tokens.

    Attributes:
        seq: the sequence. Tokens that it has but the engine has not computed yet are computed first, in one go.
        tokens: appended when the op is awaited.
        picks: one entry per read, in order; None reads the statistics only.
        top: number of most likely tokens to report per read; all of them where the vocabulary has fewer.

    Awaiting it returns a list of ``reads`` = len(picks) reads.
    """

    seq: Seq
    tokens: Sequence[int] = ()
    picks: Sequence[Pick | Given | None] = (None,)
    top: int = 0

    def __await__(self) -> Generator[Extend, list[Read], list[Read]]:
        return (yield self)


@dataclass(frozen=True, slots=True)
class Drafted:
    """What a draft proposes.

    Attributes:
        tokens: ids in the target's vocabulary.
        source: the distributions that they were drawn from, for the engine's eyes; None where they are certain (copied
            from the text).
    """

    tokens: tuple[int, ...]
    source: object = None


@dataclass(slots=True)
class Draft:
    """Append tokens to a draft's sequence, then draw a block of further ones, until the length rule stops.

    Attributes:
        seq: of the draft model.
        tokens: appended first.
        picks: how to draw each token of the longest block, by the target's filters and positions; at least one. For a
            block that will be verified as coupled the keys are the target's own, else ``Key.drafting`` of them.
        length: the rule. A token that ends answers ends the block, too.
        target: model that will verify, whose measured cost and batch the rule ``Acceptance`` takes into account.
        coupled: the block will be verified as coupled.

    Awaiting it returns ``Drafted``; its tokens, perhaps but for the last, are then part of ``seq``.
    """

    seq: Seq
    tokens: Sequence[int]
    picks: Sequence[Pick]
    length: Length
    target: str
    coupled: bool = False

    def __await__(self) -> Generator[Draft, Drafted, Drafted]:
        return (yield self)


@dataclass(slots=True)
class Verify:
    """Append tokens, read the model after them and after each drafted token, and accept a prefix of the drafted ones.

    Attributes:
        seq: of the target, or a mixture.
        tokens: appended first; they are certain.
        drafted: K >= 0 proposed tokens.
        picks: how the target draws at each of the K + 1 positions.
        top: number of most likely tokens to report per read.
        coupled: accept while the target draws the drafted token itself; otherwise by speculative sampling.

    Awaiting it returns n + 1 reads: n accepted tokens (``ACCEPTED``) and the one after them (``CORRECTED``, or
    ``BONUS`` where all were accepted). The sequence then holds ``tokens`` and the n accepted ones.
    """

    seq: Seq
    tokens: Sequence[int]
    drafted: Drafted
    picks: Sequence[Pick]
    top: int = 0
    coupled: bool = False

    def __await__(self) -> Generator[Verify, list[Read], list[Read]]:
        return (yield self)


@dataclass(slots=True)
class Value:
    """Append tokens to the sequence of a reward model and read its head after the last ones.

    Attributes:
        seq: of the reward model.
        tokens: appended first.
        last: how many of the last tokens the head reads, at least one.

    Awaiting it returns the head's outputs, one float per label, the mean over the tokens read.
    """

    seq: Seq
    tokens: Sequence[int] = ()
    last: int = 1

    def __await__(self) -> Generator[Value, list[float], list[float]]:
        return (yield self)


@dataclass(slots=True)
class Call:
    """Run a plain function away from the engine's thread.

    Attributes:
        function: with ``process`` it must be picklable, as must its arguments and its result.
        args: its arguments.
        where: a thread, or a process of its own where it holds the interpreter's lock or may crash.
        timeout: seconds that the function may take before it is given up with ``TimeoutError``; the time it waits for
            a free worker doesn't count.

    Awaiting it returns the function's result or raises its exception.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    where: Literal["thread", "process"] = "thread"
    timeout: float = 30.0

    def __await__(self) -> Generator[Call, Any, Any]:
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

    def render(self, model: str, prompt: Prompt) -> list[int]:
        """Token ids of a prompt for a model, by its own template; for methods that write prompts of their own."""
        ...

    def turn_end(self, model: str) -> list[int]:
        """Token ids that a model's template writes after an answer of the assistant's; none for most base models."""
        ...

    def reward(self, name: str) -> Any:
        """A reward that the engine serves, a ``trimtab.decode.rewards.base.Reward``: rewards are made of these ops."""
        ...

    def count(self, drafted: int, accepted: int) -> None:
        """Add to the request's drafted and accepted tokens."""
        ...

    def copies(self, target: str, chance: float, most: int) -> int:
        """How many copied tokens pay to verify at the present load; each is accepted with probability ``chance``."""
        ...
