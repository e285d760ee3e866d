"""The requested model without the tokens that would repeat what is there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from trimtab.decode.extending import AutoregressiveDraw, BaseWriter, Desk, Pick, Policy, Range, Writer


@dataclass(frozen=True, slots=True)
class NoRepeat(Policy):
    """No sequence of ``size`` tokens comes twice, in prompt and answer together (transformers' no_repeat_ngram_size).

    A token that would complete such a sequence is not drawn; the likeliest of the others is, or one drawn from them.

    Attributes:
        size: tokens of a sequence.
    """

    size: Annotated[int, Range("[1, 64]")] = 4

    # Which tokens are left out depends on every token before, so drafted ones can't be verified at once.
    speculates: ClassVar[bool] = False

    def writer(self, desk: Desk) -> Writer:
        answer, seq = desk.answer(), desk.open()
        return BaseWriter(AutoregressiveDraw(desk.context, answer, seq, self._edit), answer, desk.team)

    def _edit(self, pick: Pick, tokens: Sequence[int]) -> Pick:
        return pick._replace(banned=(*pick.banned, *completing(tokens, self.size)))


def completing(tokens: Sequence[int], size: int) -> list[int]:
    """Tokens after which the last ``size`` tokens would be a sequence that ``tokens`` has already."""
    begun = tuple(tokens[len(tokens) - size + 1 :])
    places = range(len(tokens) - size + 1)
    return sorted({tokens[i + size - 1] for i in places if tuple(tokens[i : i + size - 1]) == begun})
