"""The part of a vocabulary that methods and rewards use."""

from __future__ import annotations

from math import log
from typing import Protocol

__all__ = ["VocabularyView", "blind"]


class VocabularyView(Protocol):
    """The part of a vocabulary that methods use; see ``trimtab.decode.text.vocabulary.Vocabulary``."""

    size: int
    eos_token_ids: tuple[int, ...]
    special_ids: frozenset[int]

    def encode(self, text: str, add_special_tokens: bool = True, *, continues: bool = False) -> list[int]: ...

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True, *, continues: bool = False
    ) -> tuple[list[int], list[int]]: ...

    def piece(self, token_id: int) -> bytes: ...


def blind(vocabulary: VocabularyView) -> float:
    """ln p, in nats, of a token that is drawn blindly from a vocabulary: what stands for an answer that says nothing.

    A mean over no tokens has no value. Zero would be the largest there is, as if saying nothing were certain; a model
    that says anything at all of a text is better than blind on average, so emptiness comes last.
    """
    return -log(vocabulary.size)
