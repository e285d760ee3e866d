"""Drafting without a model: copy what followed the last n-gram where it occurred before (prompt lookup; Saxena, 2023).

The longest n-gram wins, and of its occurrences the latest. A copy may run into what it copies itself, as in a text that
repeats itself. Copied tokens are certain (q = 1), so the target accepts each with its own probability.

How many are copied adapts. Every copy is compared with what was written in its place, verified or not: so the
estimate of how often a copied token is accepted, one for each length of n-gram, costs nothing and stays fresh while
lookup backs off. What a token to verify costs is the engine's to say.

A model may draft wherever a copy would probably be rejected: a copy costs nothing to draft, so it goes first where it
is accepted about as often as a drafted token is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar

from trimtab.decode.methods.draws.block_draw import Drafter
from trimtab.decode.ops import Drafted
from trimtab.decode.request.fields import Range
from trimtab.kernels.types import Pick

__all__ = ["MAX_COPY", "CopyingDrafter", "LookupDrafter", "NgramIndex", "PromptLookup"]


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Drafts by copying what followed the last n-gram of the text where it occurred before (Saxena, 2023).

    Attributes:
        max_ngram: longest n-gram looked for; shorter ones are tried after it.
    """

    name: ClassVar[str] = "lookup"
    max_ngram: Annotated[int, Range("[1, 16]")] = 3


MAX_COPY = 16  # tokens of the longest copy that adapts
_SURE = 0.5  # chance from which a copy is preferred to a model's draft
_MEMORY = 0.9  # weight of what was seen, with each copy compared after it
# Accepted and rejected tokens before anything is seen, by length of the n-gram: one token alone says little.
_PRIOR = ((1.0, 2.0), (1.5, 1.0), (2.5, 1.0))

Pays = Callable[[float, int], int]


class NgramIndex:
    """Where the n-grams of a growing text last occurred: O(max_ngram) for each token added or taken back.

    Args:
        max_ngram: longest n-gram looked for, >= 1.
        tokens: the text so far.
    """

    def __init__(self, max_ngram: int, tokens: Sequence[int] = ()) -> None:
        if max_ngram < 1:
            raise ValueError(f"max_ngram = {max_ngram}: accepted: 1 or more")
        self.max_ngram = max_ngram
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # the place that follows the latest occurrence
        self._before: list[tuple[int, ...]] = []  # of each token: what its n-grams' places were before it, -1 for none
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens."""
        text, after = self.tokens, self._after
        for token in tokens:
            text.append(token)
            end = len(text)
            earlier = []
            for n in range(1, min(self.max_ngram, end) + 1):
                gram = tuple(text[end - n :])
                earlier.append(after.get(gram, -1))
                after[gram] = end
            self._before.append(tuple(earlier))

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        text, after = self.tokens, self._after
        while len(text) > length:
            end = len(text)
            for n, place in enumerate(self._before.pop(), 1):
                gram = tuple(text[end - n :])
                if place < 0:
                    del after[gram]
                else:
                    after[gram] = place
            text.pop()

    def find(self) -> tuple[int, int]:
        """The longest n-gram at the end of the text that occurred before: n and the place after it; (0, 0): none."""
        if self._before:
            earlier = self._before[-1]
            for n in range(len(earlier), 0, -1):
                if earlier[n - 1] >= 0:
                    return n, earlier[n - 1]
        return 0, 0

    def copy_from(self, place: int, count: int) -> tuple[int, ...]:
        """``count`` tokens from ``place`` on, which go on with the copy itself where the text ends."""
        text = self.tokens
        period = len(text) - place
        return tuple(text[place + i % period] for i in range(count))

    def fork(self) -> NgramIndex:
        """A second index of the same text."""
        twin = copy(self)
        twin.tokens, twin._after, twin._before = list(self.tokens), dict(self._after), list(self._before)
        return twin


class LookupDrafter:
    """Copies from the prompt and the answer.

    Args:
        text: the target's tokens so far.
        max_ngram: longest n-gram looked for.
        tokens: always copy so many; None adapts.
        pays: (probability that a copied token is accepted, most) -> how many pay to verify at the present load;
            None: as many as will probably be accepted.
    """

    def __init__(
        self, text: Sequence[int], max_ngram: int = 3, tokens: int | None = None, pays: Pays | None = None
    ) -> None:
        self._index = NgramIndex(max_ngram, text)
        self._tokens, self._pays = tokens, pays
        self._accepted = [_PRIOR[min(n, len(_PRIOR)) - 1][0] for n in range(1, max_ngram + 1)]
        self._rejected = [_PRIOR[min(n, len(_PRIOR)) - 1][1] for n in range(1, max_ngram + 1)]
        self._watched: tuple[int, int, tuple[int, ...]] = (0, 0, ())  # n, where the copy begins, the copy

    @property
    def reproducible(self) -> bool:
        return self._tokens is not None or self._pays is None

    def room(self, text: int) -> int:
        return MAX_COPY if self._tokens is None else self._tokens

    @property
    def sure(self) -> bool:
        """Whether the last copy is one of those that are mostly accepted."""
        n = self._watched[0]
        return n > 0 and self.chance(n) >= _SURE

    def chance(self, n: int) -> float:
        """Probability that a token copied after an n-gram of that length is accepted if those before it are."""
        return self._accepted[n - 1] / (self._accepted[n - 1] + self._rejected[n - 1])

    async def draft(self, text: Sequence[int], picks: Sequence[Pick], coupled: bool) -> Drafted:
        self._index.extend(text[len(self._index.tokens) :])
        self._compare()
        n, place = self._index.find()
        if n == 0:
            return Drafted(())
        most = MAX_COPY if self._tokens is None else self._tokens
        tokens = self._index.copy_from(place, most)
        self._watched = (n, len(text), tokens)
        return Drafted(tokens[: min(len(picks), self._wanted(n))])

    def _wanted(self, n: int) -> int:
        if self._tokens is not None:
            return self._tokens
        chance = self.chance(n)
        if self._pays is not None:
            return self._pays(chance, MAX_COPY)
        count, together = 0, chance
        while together >= 0.5 and count < MAX_COPY:
            count, together = count + 1, together * chance
        return count

    def _compare(self) -> None:
        """Learn from the last copy, now that other tokens stand in its place."""
        n, start, tokens = self._watched
        self._watched = (0, 0, ())
        written = self._index.tokens[start:]
        if n == 0 or not written:
            return
        same = 0
        while same < min(len(tokens), len(written)) and tokens[same] == written[same]:
            same += 1
        rejected = same < min(len(tokens), len(written))
        self._accepted[n - 1] = _MEMORY * self._accepted[n - 1] + same
        self._rejected[n - 1] = _MEMORY * self._rejected[n - 1] + rejected

    def rewind(self, length: int) -> None:
        self._index.rewind(length)
        if self._watched[1] > length:
            self._watched = (0, 0, ())

    def fork(self) -> LookupDrafter:
        twin = copy(self)
        twin._index = self._index.fork()
        twin._accepted, twin._rejected = list(self._accepted), list(self._rejected)
        return twin

    def close(self) -> None:
        """There is nothing to give back."""


class CopyingDrafter:
    """Copies where that is likely to be accepted, and lets another drafter draft elsewhere.

    Args:
        lookup: copies.
        drafter: drafts where there is no copy, or one of a kind that is mostly rejected.
    """

    def __init__(self, lookup: LookupDrafter, drafter: Drafter) -> None:
        self._lookup, self._drafter = lookup, drafter

    @property
    def reproducible(self) -> bool:
        return self._lookup.reproducible and self._drafter.reproducible

    def room(self, text: int) -> int:
        return max(self._lookup.room(text), self._drafter.room(text))

    async def draft(self, text: Sequence[int], picks: Sequence[Pick], coupled: bool) -> Drafted:
        copied = await self._lookup.draft(text, picks, coupled)
        room = self._drafter.room(len(text))
        if room <= 0 or (copied.tokens and self._lookup.sure):
            return copied
        return await self._drafter.draft(text, picks[:room], coupled)

    def rewind(self, length: int) -> None:
        self._lookup.rewind(length)
        self._drafter.rewind(length)

    def fork(self) -> CopyingDrafter:
        return CopyingDrafter(self._lookup.fork(), self._drafter.fork())

    def close(self) -> None:
        self._drafter.close()
