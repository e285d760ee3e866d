"""Where a segment ends."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.decode.types import Token
from trimtab.decode.writer import Writer

__all__ = ["Boundary"]


@dataclass(frozen=True, slots=True)
class Boundary:
    """Ends of segments; whichever comes first. A segment has at least one token.

    Attributes:
        max_tokens: most tokens of a segment.
        min_tokens: fewest, of one that ends by entropy.
        delimiter: ends with the token that completes this text. One that began in the segment before counts.
        entropy_above: nats; ends before a token whose distribution has more.
    """

    max_tokens: int
    min_tokens: int = 1
    delimiter: str | None = None
    entropy_above: float | None = None

    async def advance(self, writer: Writer) -> None:
        """Write one segment, or what is left of the answer."""
        answer = writer.answer
        start, characters = len(answer.tokens), len(answer.text)

        def until() -> bool:
            length = len(answer.tokens) - start
            return length >= self.max_tokens or (length > 0 and self._delimited(answer.text, characters))

        def before(token: Token) -> bool:
            length = len(answer.tokens) - start
            bound = self.entropy_above
            return bound is not None and length >= max(1, self.min_tokens) and (token.entropy or 0.0) > bound

        await writer.advance(until, before)

    def _delimited(self, text: str, start: int) -> bool:
        if self.delimiter is None:
            return False
        return self.delimiter in text[max(0, start - len(self.delimiter) + 1) :]
