"""One answer, spelled in the tokens of one model.

A hand-over passes *text* between vocabularies. Token ids stay the truth: what a model wrote or read stays as it is, and
only the unsettled tail is encoded anew. The tail begins at the last word start inside what this model has already read:
tokenizers of language models split before a run of white space, so tokens before it can't be changed by what follows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from trimtab.decode.ops import VocabularyView

__all__ = ["Spelling", "incomplete", "starts_word"]


def starts_word(piece: bytes) -> bool:
    """Whether a token begins a new word: with white space."""
    return piece[:1].isspace()


def incomplete(data: bytes | bytearray) -> bool:
    """Whether ``data`` ends inside a UTF-8 character."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue  # a continuation byte
        need = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
        return need > back
    return False


class Spelling:
    """Tokens of one model that spell the answer so far.

    Args:
        vocabulary: the model's.
        lead: bytes that this model sees before the answer: b" " after a prompt that ends without white space, because
            such a model continues with " word"; else b"". Spaces that the answer itself begins with are not shown
            twice.
    """

    __slots__ = ("ends", "ids", "lead", "vocabulary")

    def __init__(self, vocabulary: VocabularyView, lead: bytes) -> None:
        self.vocabulary, self.lead = vocabulary, lead
        self.ids: list[int] = []
        self.ends: list[int] = []  # end of each token in the shown bytes

    def shown(self, answer: bytes) -> bytes:
        """The answer as this model sees it."""
        body = answer.lstrip(b" ")
        return self.lead + body if body else b""

    def append(self, token: int) -> None:
        """A token that this model wrote itself. The first one shows which spaces it puts before an answer."""
        piece = self.vocabulary.piece(token)
        if not self.ids:
            self.lead = piece[: len(piece) - len(piece.lstrip(b" "))]
        self._push(token, len(piece))

    def _push(self, token: int, size: int) -> None:
        self.ids.append(token)
        self.ends.append((self.ends[-1] if self.ends else 0) + size)

    def respell(self, answer: bytes) -> int:
        """Make the tokens spell ``answer``; returns how many of the old ones stay.

        ``answer`` must end between characters. Tokens of equal bytes are kept, whoever wrote them.
        """
        shown = self.shown(answer)
        if self.ends and self.ends[-1] == len(shown):
            return len(self.ids)  # nothing was added: the spelling is this model's own
        read = min(self.ends[-1] if self.ends else 0, len(shown))
        keep = next((k for p in _word_starts(shown, read) if (k := _aligned(self.ends, p)) > 0), 0)
        start = self.ends[keep - 1] if keep else 0
        tail = self.vocabulary.encode(shown[start:].decode(), False, continues=True)
        old = self.ids[keep:]
        common = 0
        while common < min(len(old), len(tail)) and old[common] == tail[common]:
            common += 1
        kept = keep + common
        del self.ids[kept:], self.ends[kept:]
        for token in tail[common:]:
            self._push(token, len(self.vocabulary.piece(token)))
        return kept


def _word_starts(shown: bytes, limit: int) -> Iterator[int]:
    """Where a run of white space begins, at or before ``limit``, latest first."""
    for p in range(min(limit, len(shown) - 1), 0, -1):
        if shown[p : p + 1].isspace() and not shown[p - 1 : p].isspace():
            yield p


def _aligned(ends: Sequence[int], at: int) -> int:
    """Number of tokens that end at or before byte ``at`` if one ends exactly there, else -1."""
    i = bisect_left(ends, at)
    return i + 1 if i < len(ends) and ends[i] == at else -1
