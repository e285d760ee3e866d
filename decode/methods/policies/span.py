"""What a nudger has drafted ahead of the answer while it has control, word by word."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from trimtab.decode.ops import Read
from trimtab.decode.request.result import TokenReason
from trimtab.decode.text.spelling import Spelling

__all__ = ["Span"]


@dataclass(slots=True)
class Span:
    """What the nudger has drafted since it took over.

    Attributes:
        words: drafted, not yet wholly written; the first may be.
        done: tokens of the first word that are written.
        next: the nudger's read for the token after them: the start of the next word, or EOS. It is already drawn, but
            not yet in its sequence. None where a limit left no room for it.
        backs: for the first words, the base's read after each, None where there is none; and the number of its tokens
            that spell the answer up to there. A word is written only when it has one of these.
        last: the word that was written before the first one.
        block: words to draft at a time.
        written: tokens that the nudger has written in a row.
        of_base, of_nudger: the spellings of the last written word, and before the span.
        reason, asked: why the nudger writes after the last written word, and the base's read there, if it was asked.
        guard: the loop guard's state when that was decided: when it last looked, and what it found.
    """

    words: list[list[Read]] = field(default_factory=list)
    done: int = 0
    next: Read | None = None
    backs: deque[tuple[Read | None, int]] = field(default_factory=deque)
    last: list[Read] = field(default_factory=list)
    block: int = 1
    written: int = 0
    of_base: Spelling | None = None
    of_nudger: Spelling | None = None
    reason: TokenReason = TokenReason.WITHIN_WORD
    asked: Read | None = None
    guard: tuple[int, bool] = (0, False)

    @property
    def ahead(self) -> int:
        """Tokens that are drafted and not written."""
        return sum(map(len, self.words)) - self.done

    def copy(self) -> Span:
        return replace(self, words=[list(word) for word in self.words], backs=self.backs.copy())
