"""One answer, spelled in the tokens of one model.

A hand-over passes *text* between vocabularies. Token ids stay the truth: what a model wrote or read stays as it is, and
only the unsettled tail is encoded anew. The tail begins at the last word start inside what this model has already read:
tokenizers of language models split before a space that follows a word, so tokens before it can't be changed by what
comes after. (Not so before a line break: some tokenizers join it with the punctuation in front of it.)
"""

from __future__ import annotations

from bisect import bisect_right
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence

from trimtab.decode.text.view import VocabularyView

__all__ = ["Spelling", "incomplete", "starts_word", "text_of"]

_Utf8 = getincrementaldecoder("utf-8")


def starts_word(piece: bytes) -> bool:
    """Whether a token begins a new word: with white space."""
    return piece[:1].isspace()


def text_of(vocabulary: VocabularyView, token: int) -> bytes:
    """What a token adds to an answer: its piece, or nothing if it is special (the end of a turn and the like)."""
    return b"" if token in vocabulary.special_ids else vocabulary.piece(token)


def incomplete(data: bytes | bytearray) -> bool:
    """Whether ``data`` ends inside a UTF-8 character that further bytes could still complete."""
    if not data or data[-1] < 0x80:
        return False
    decoder = _Utf8(errors="replace")
    decoder.decode(data[-3:])  # an incomplete character has at most three bytes
    return bool(decoder.getstate()[0])


class Spelling:
    """Tokens of one model that spell the answer so far.

    Args:
        vocabulary: the model's.
        lead: bytes that this model sees before the answer: b" " after a prompt that ends without white space, because
            such a model continues with " word"; else b"". Spaces that the answer itself begins with are not shown
            twice. None shows the answer as it is, after a prompt that ends with its beginning.

    Attributes:
        ids: the tokens.
        ends: where each token ends in the shown bytes, never decreasing. Tokens that share one character end with it.
    """

    __slots__ = ("ends", "ids", "lead", "vocabulary")

    def __init__(self, vocabulary: VocabularyView, lead: bytes | None) -> None:
        self.vocabulary, self.lead = vocabulary, lead
        self.ids: list[int] = []
        self.ends: list[int] = []

    def shown(self, answer: bytes) -> bytes:
        """The answer as this model sees it."""
        if self.lead is None:
            return answer
        body = answer.lstrip(b" ")
        return self.lead + body if body or self.ids else b""

    def append(self, token: int) -> None:
        """A token that this model wrote itself. Its first ones show which spaces it puts before an answer."""
        text = text_of(self.vocabulary, token)
        end = self.ends[-1] if self.ends else 0
        if self.lead is not None:
            if not self.ids:
                self.lead = b""
            if end == len(self.lead):  # nothing but spaces so far
                self.lead += text[: len(text) - len(text.lstrip(b" "))]
        self.ids.append(token)
        self.ends.append(end + len(text))

    def respell(self, answer: bytes, fixed: int = 0) -> int | None:
        """Make the tokens spell ``answer``; returns how many of the old ones stay.

        Tokens of equal bytes are kept, whoever wrote them. Bytes that aren't UTF-8 are shown as U+FFFD, as in the text
        of the answer; so is an incomplete character at its end.

        Args:
            answer: begins with what was spelled before.
            fixed: tokens at the front that must stay. If one of them can't, nothing is changed and None returned.
        """
        shown = self.shown(answer)
        if self.ends and self.ends[-1] == len(shown):
            return len(self.ids)  # nothing was added: the spelling is this model's own
        read = min(self.ends[-1] if self.ends else 0, len(shown))
        keep = next((k for p in _word_starts(shown, read) if (k := _until(self.ends, p)) > 0), 0)
        start = self.ends[keep - 1] if keep else 0
        tail, ends = _encode(self.vocabulary, shown[start:])
        old = self.ids[keep:]
        common = 0
        while common < min(len(old), len(tail)) and old[common] == tail[common]:
            common += 1
        kept = keep + common
        if kept < fixed:
            return None
        self.ids[kept:] = tail[common:]
        self.ends[keep:] = [start + end for end in ends]  # those kept too: what follows may have no tokens
        return kept

    def copy(self) -> Spelling:
        """An independent state at the same point of the answer."""
        twin = Spelling(self.vocabulary, self.lead)
        twin.ids, twin.ends = list(self.ids), list(self.ends)
        return twin

    def cut(self, count: int) -> None:
        """Forget all but the first ``count`` tokens."""
        del self.ids[count:], self.ends[count:]


def _word_starts(shown: bytes, limit: int) -> Iterator[int]:
    """Where a run of white space begins with a space or a tab, at or before ``limit``, latest first."""
    for p in range(min(limit, len(shown) - 1), 0, -1):
        if shown[p] in b" \t" and not shown[p - 1 : p].isspace():
            yield p


def _until(ends: Sequence[int], at: int) -> int:
    """Number of tokens that end at or before byte ``at`` if one ends exactly there, else -1."""
    i = bisect_right(ends, at)
    return i if i and ends[i - 1] == at else -1


def _encode(vocabulary: VocabularyView, data: bytes) -> tuple[list[int], list[int]]:
    """Tokens that spell ``data``, and the byte of it at which each ends."""
    text, origin = _decode(data)
    ids, starts = vocabulary.encode_with_offsets(text, False, continues=True)
    ends = [len(data)] * len(ids)
    for k in range(len(ids) - 2, -1, -1):
        begin, following = (starts[k], starts[k + 1]) if origin is None else (origin[starts[k]], origin[starts[k + 1]])
        # Where a character was normalised, or isn't UTF-8, its tokens are only known to begin with it.
        ends[k] = following if following > begin else ends[k + 1]
    return ids, ends


def _decode(data: bytes) -> tuple[str, list[int] | None]:
    """The text of ``data``; if it isn't UTF-8, also the byte of ``data`` behind every byte of the text and its end."""
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        pass
    parts: list[str] = []
    origin: list[int] = []
    at = 0
    while at < len(data):
        try:
            parts.append(data[at:].decode())
            origin.extend(range(at, len(data)))
            break
        except UnicodeDecodeError as error:
            bad = at + error.start
            parts.append(data[at:bad].decode() + "\ufffd")
            origin.extend((*range(at, bad), bad, bad, bad))
            at += error.end
    return "".join(parts), [*origin, len(data)]
