"""Pieces of tokens become text that is never retracted, with stop strings found across token borders."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Detokenizer", "StopMatch", "StopMatcher"]


class StopMatcher:
    """Finds the first stop string in a stream of characters (Aho and Corasick, 1975); immutable, shared by copies.

    A node stands for the longest suffix of the stream that begins some stop string; ``depth`` is its length.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(dict.fromkeys(stops))
        if "" in self.stops:
            raise ValueError("stop = '': accepted: strings of at least one character")
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self.depth: list[int] = [0]
        self.match: list[str | None] = [None]  # the longest stop string that ends at the node
        for stop in self.stops:
            self._add(stop)
        self._link()
        self.first_characters = tuple(self._next[0])

    def _add(self, stop: str) -> None:
        node = 0
        for character in stop:
            child = self._next[node].get(character)
            if child is None:
                child = self._next[node][character] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self.depth.append(self.depth[node] + 1)
                self.match.append(None)
            node = child
        self.match[node] = stop

    def _link(self) -> None:
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self._next[node].items():
                self._fail[child] = self.step(self._fail[node], character)
                queue.append(child)
            if self.match[node] is None:
                self.match[node] = self.match[self._fail[node]]

    def step(self, node: int, character: str) -> int:
        """The node after one more character; amortised constant time."""
        while (child := self._next[node].get(character)) is None:
            if node == 0:
                return 0
            node = self._fail[node]
        return child

    def settle(self, node: int) -> int:
        """The longest suffix of ``node`` that a further character could still extend to a stop string."""
        while node and not self._next[node]:
            node = self._fail[node]
        return node


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Where an answer was stopped.

    Attributes:
        stop: the stop string.
        start: bytes of the answer before the stop string.
        end: bytes of the answer up to and with the stop string.
        tokens_before: tokens that lie wholly before the stop string.
        tokens: tokens fed, up to and with the one that completed the stop string.
    """

    stop: str
    start: int
    end: int
    tokens_before: int
    tokens: int


def _width(character: str) -> int:
    code = ord(character)
    return 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4


class Detokenizer:
    """Turns the pieces of one answer into text that is never retracted, and ends it at the first stop string.

    Held back are an incomplete UTF-8 character and the longest suffix that begins a stop string. The texts returned by
    ``feed`` and ``finish`` concatenate to ``b"".join(pieces).decode(errors="replace")`` cut at the first stop string,
    however the bytes are divided into pieces.

    The *first* stop string is the one whose last character comes first: it is known as soon as it is complete, so no
    further token is needed to decide. Of several that end at the same character the longest wins. (With the stops
    "abcd" and "bc", "abcd" is cut at "bc".) Stops match the text, so U+FFFD in a stop string matches a replaced byte.

    A call costs O(piece + text held back), the latter shorter than the longest stop string; nothing is scanned twice.
    The state is forked by ``copy`` and rewound by going back to an earlier copy, both O(text held back).

    Args:
        stops: stop strings, none empty; or a matcher made from them.
        include_stop: whether the text keeps the stop string.
        min_tokens: a stop string that is complete before this many tokens were fed is ordinary text.
    """

    __slots__ = (
        "_ends",
        "_held",
        "_include_stop",
        "_matcher",
        "_min_tokens",
        "_node",
        "_settled_bytes",
        "_settled_tokens",
        "_tail",
        "_total_bytes",
        "_widths",
        "finished",
        "match",
        "tokens",
    )

    def __init__(
        self, stops: Sequence[str] | StopMatcher = (), *, include_stop: bool = False, min_tokens: int = 0
    ) -> None:
        if isinstance(stops, str):
            raise ValueError(f"stops = {stops!r}: accepted: a sequence of strings")
        self._matcher = stops if isinstance(stops, StopMatcher) else StopMatcher(stops)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._tail = b""  # bytes of an incomplete character
        self._held = ""  # characters that begin a stop string: exactly depth[node] of them
        self._widths: list[int] = []  # bytes behind each held character
        self._node = 0
        self._settled_bytes = 0  # bytes before the held characters
        self._total_bytes = 0
        self._settled_tokens = 0  # tokens that end at or before settled_bytes
        self._ends: deque[int] = deque()  # byte ends of the later tokens
        self.tokens = 0
        self.match: StopMatch | None = None
        self.finished = False

    def copy(self) -> Detokenizer:
        """An independent state at the same point of the answer."""
        other = object.__new__(Detokenizer)
        for slot in self.__slots__:
            setattr(other, slot, getattr(self, slot))
        other._ends = self._ends.copy()  # the only attribute that is changed in place
        return other

    @property
    def held(self) -> str:
        """Characters fed that are held back because a stop string may begin with them."""
        return self._held

    @property
    def held_tokens(self) -> int:
        """Tokens fed of whose text some is still held back (0 after a stop)."""
        return 0 if self.match is not None else len(self._ends)

    def feed(self, piece: bytes) -> str:
        """Take the piece of one token and return the text that it settled, possibly "".

        Raises:
            ValueError: the answer is over (a stop string matched, or ``finish`` was called).
        """
        if self.finished:
            raise ValueError("feed after the end of an answer: accepted: a copy from before the end")
        self.tokens += 1
        self._total_bytes += len(piece)
        self._ends.append(self._total_bytes)
        return self._advance(piece, final=False)

    def finish(self) -> str:
        """End the answer: return what was held back, an incomplete character as U+FFFD. Idempotent."""
        if self.finished:
            return ""
        text = self._advance(b"", final=True)
        if self.match is None:
            text += self._held
            self._held, self._widths, self._node = "", [], 0
            self._settle(self._total_bytes)
            self.finished = True
        return text

    def _advance(self, data: bytes, *, final: bool) -> str:
        released = []
        for text, replaced in self._characters(self._tail + data, final):
            released.append(self._scan(text, replaced))
            if self.finished:
                break
        if self.match is None:
            self._settle(self._settled_bytes)
        return "".join(released)

    def _characters(self, data: bytes, final: bool) -> Iterator[tuple[str, int]]:
        """The runs of whole characters in ``data``, and each replaced character with the bytes that it stands for."""
        self._tail = b""
        while data:
            try:
                yield data.decode(), 0
                return
            except UnicodeDecodeError as error:
                first, end, incomplete = error.start, error.end, error.reason == "unexpected end of data"
            if first:
                yield data[:first].decode(), 0
            if incomplete and not final:
                self._tail = data[first:]
                return
            yield "\ufffd", end - first
            data = data[end:]

    def _scan(self, text: str, replaced: int) -> str:
        """Match ``text`` (a replaced character of ``replaced`` bytes, if not 0) and return what it settles."""
        matcher = self._matcher
        if self._node == 0 and not any(first in text for first in matcher.first_characters):
            self._settle(self._settled_bytes + (replaced or len(text.encode())))
            return text
        node, offset = self._node, len(self._held)
        window = self._held + text
        widths = self._widths + ([replaced] if replaced else [_width(character) for character in text])
        for i, character in enumerate(text):
            node = matcher.step(node, character)
            stop = matcher.match[node]
            if stop is not None and self.tokens >= self._min_tokens:
                return self._stop(stop, window, widths, offset + i + 1)
        self._node = node = matcher.settle(node)
        cut = len(window) - matcher.depth[node]
        self._held, self._widths = window[cut:], widths[cut:]
        self._settle(self._settled_bytes + sum(widths[:cut]))
        return window[:cut]

    def _stop(self, stop: str, window: str, widths: list[int], end: int) -> str:
        start = end - len(stop)
        start_byte = self._settled_bytes + sum(widths[:start])
        end_byte = start_byte + sum(widths[start:end])
        self._settle(start_byte)
        self.match = StopMatch(stop, start_byte, end_byte, self._settled_tokens, self.tokens)
        self.finished = True
        self._held, self._widths, self._node, self._tail = "", [], 0, b""
        return window[: end if self._include_stop else start]

    def _settle(self, settled: int) -> None:
        self._settled_bytes = settled
        while self._ends and self._ends[0] <= settled:
            self._ends.popleft()
            self._settled_tokens += 1
