"""Which model wrote which part of the text, for showing it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from trimtab.decode.request.result import Candidate, Token

__all__ = ["Attribution", "Span", "spans_of"]

_LOOK_AHEAD = 4  # tokens without text of their own that may come before one with text


@dataclass(frozen=True, slots=True)
class Span:
    """Text that one token gave, empty if it gave none of its own; None where no token accounts for it."""

    text: str
    token: Token | None


class Attribution:
    """Assigns released text to the tokens behind it, in order.

    Text and tokens do not match byte for byte: special tokens have no text, a tokeniser may drop a leading space, bytes
    that are no character become U+FFFD. A character belongs to the token of its first byte.
    """

    def __init__(self) -> None:
        self._queue: deque[tuple[Token, bytes]] = deque()  # tokens whose text is still to come, with what is left
        self._last: Token | None = None

    def feed(self, text: str, tokens: Iterable[Token]) -> list[Span]:
        """The spans of ``text``, which is by ``tokens`` and those fed before."""
        self._queue.extend((token, token.piece) for token in tokens if token.piece)
        owners = [(character, self._owner(character)) for character in text]
        return [Span("".join(character for character, _ in run), owner) for owner, run in _runs(owners)]

    def _owner(self, character: str) -> Token | None:
        data = character.encode(errors="replace")
        for skipped in range(min(_LOOK_AHEAD, len(self._queue))):
            for strip in (False, True):
                if self._matches(skipped, data, strip=strip):
                    for _ in range(skipped):
                        self._queue.popleft()
                    return self._take(data, strip=strip)
        if character == "\N{REPLACEMENT CHARACTER}" and self._queue:
            return self._take(self._queue[0][1][:1], strip=False)
        return self._last

    def _matches(self, start: int, data: bytes, *, strip: bool) -> bool:
        """Whether the bytes left from token ``start`` on begin with ``data``, after a space if ``strip``."""
        left = b""
        for i in range(start, len(self._queue)):
            left += self._queue[i][1]
            if len(left) > len(data):
                break
        if strip:
            return left.startswith(b" ") and left[1:].startswith(data)
        return left.startswith(data)

    def _take(self, data: bytes, *, strip: bool) -> Token:
        count = len(data) + strip
        first: Token | None = None
        while count and self._queue:
            token, left = self._queue.popleft()
            # A space that is dropped may be all there is of its token.
            if first is None and not (strip and left == b" "):
                first = token
            if len(left) > count:
                self._queue.appendleft((token, left[count:]))
            count = max(0, count - len(left))
        self._last = first
        assert first is not None
        return first


def _runs(owners: Iterable[tuple[str, Token | None]]) -> Iterable[tuple[Token | None, list[tuple[str, Token | None]]]]:
    # By identity: two equal tokens in a row are two.
    for _, run in groupby(owners, key=lambda item: id(item[1])):
        items = list(run)
        yield items[0][1], items


def spans_of(candidate: Candidate) -> list[Span]:
    """The spans of a whole answer, with every token of it: one without text of its own has an empty span, in order.

    Such are tokens that end the answer, those of a stop text, and all but the first of a character's.
    """
    tokens = candidate.tokens
    spans, shown = list[Span](), 0  # tokens that have a span
    for span in Attribution().feed(candidate.text, tokens):
        place = next((i for i in range(shown, len(tokens)) if tokens[i] is span.token), None)
        if place is not None:
            spans += [Span("", token) for token in tokens[shown:place]]
            shown = place + 1
        spans.append(span)
    return spans + [Span("", token) for token in tokens[shown:]]
