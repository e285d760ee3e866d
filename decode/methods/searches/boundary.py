"""Where a segment ends."""

from __future__ import annotations

from dataclasses import dataclass

from trimtab.decode.methods.writer import Writer
from trimtab.decode.request.result import Token

__all__ = ["Boundary"]


@dataclass(frozen=True, slots=True)
class Boundary:
    """Ends of segments; whichever comes first. A segment has at least one token.

    Attributes:
        max_tokens: most tokens of a segment.
        min_tokens: fewest, of one that ends by entropy.
        delimiter: ends with the token that completes this text, or is a special token of this name. One that began in
            the segment before counts.
        entropy_above: nats; ends before a token whose distribution has more.
    """

    max_tokens: int
    min_tokens: int = 1
    delimiter: str | None = None
    entropy_above: float | None = None

    async def advance(self, writer: Writer) -> None:
        """Write one segment, or what is left of the answer."""
        answer = writer.answer
        start = len(answer.tokens)
        seen = max(0, len(answer.text) - len(self.delimiter) + 1) if self.delimiter else 0

        def until() -> bool:
            length = len(answer.tokens) - start
            if length >= self.max_tokens or self.delimiter is None:
                return length >= self.max_tokens
            if length == 0:
                return False
            return self.delimiter in answer.text[seen:] or answer.ends.is_named(answer.tokens[-1], self.delimiter)

        def before(token: Token) -> bool:
            length = len(answer.tokens) - start
            bound = self.entropy_above
            return bound is not None and length >= max(1, self.min_tokens) and (token.entropy or 0.0) > bound

        await writer.advance(until, before)
