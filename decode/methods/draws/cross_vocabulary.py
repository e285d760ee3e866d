"""Drafting with a model of another vocabulary, exactly (token-level intersection; Timor et al., 2025, algorithm 4).

The draft is held to the tokens that both vocabularies have, byte for byte: it draws from its distribution over these,
renormalised, and gives none of the mass to what only the target can say. Verification knows that distribution, so the
answer's stays the target's. Here the two *texts* are kept in step. The draft reads the answer in its own spelling:
what it spelled itself stays as far as it was accepted, and only the unsettled tail is encoded anew
(``text.spelling``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from typing import Protocol

from trimtab.decode.methods.draws.length import Fixed, Length
from trimtab.decode.methods.draws.length_rules import longest
from trimtab.decode.ops import (
    Draft,
    Drafted,
    Picks,
    Seq,
)
from trimtab.decode.text.spelling import Spelling, incomplete, text_of
from trimtab.decode.text.view import VocabularyView
from trimtab.kernels.types import Pick

__all__ = ["CrossVocabularyDrafter", "shared_tokens"]


class _Whole(VocabularyView, Protocol):
    size: int


def shared_tokens(draft: _Whole, target: _Whole) -> list[tuple[int, int]]:
    """Pairs (draft's id, target's id) of the tokens that both have; every id at most once, ascending by the draft's.

    Special tokens are nobody else's, except that those that end an answer are paired in the order in which the models
    list them. Where several ids of a vocabulary have the same bytes, it is the one that its tokenizer writes.
    """
    of_draft, of_target = _by_piece(draft), _by_piece(target)
    pairs = [(own, of_target[piece]) for piece, own in of_draft.items() if piece in of_target]
    taken = {own for own, _ in pairs}, {other for _, other in pairs}
    for own, other in zip(draft.eos_token_ids, target.eos_token_ids, strict=False):
        if own not in taken[0] and other not in taken[1]:
            pairs.append((own, other))
    return sorted(pairs)


def _by_piece(vocabulary: _Whole) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for token in range(vocabulary.size):
        if token in vocabulary.special_ids or token in vocabulary.eos_token_ids:
            continue
        piece = vocabulary.piece(token)
        if piece and (piece not in found or _writes(vocabulary, piece, token)):
            found[piece] = token
    return found


def _writes(vocabulary: _Whole, piece: bytes, token: int) -> bool:
    """Whether the tokenizer spells ``piece`` with that token. (SentencePiece has bytes beside the characters.)"""
    try:
        return vocabulary.encode(piece.decode(), False, continues=True) == [token]
    except UnicodeDecodeError:
        return False


class CrossVocabularyDrafter:
    """Drafts with a model that has token ids of its own.

    Args:
        seq: of the draft, with its own prompt.
        vocabulary: the draft's.
        target: name of the target,
        target_vocabulary: its vocabulary, and
        prompt: tokens of its prompt.
        length: when to stop.
        limit: longest sequence of the draft.
        begun: both prompts end with the beginning of the answer, which goes on without a space of its own.
    """

    def __init__(
        self,
        seq: Seq,
        vocabulary: VocabularyView,
        target: str,
        target_vocabulary: VocabularyView,
        prompt: int,
        length: Length,
        limit: int,
        begun: bool = False,
    ) -> None:
        self.seq, self._vocabulary = seq, vocabulary
        self._target, self._target_vocabulary, self._prompt = target, target_vocabulary, prompt
        self._length, self._limit = length, limit
        self._own_prompt = len(seq.tokens)
        last = seq.tokens[-1]
        visible = last not in vocabulary.special_ids and not vocabulary.piece(last)[-1:].isspace()
        self._lead = None if begun else b" " if visible else b""
        self._spelling = Spelling(vocabulary, self._lead)
        self._spelled = b""  # the answer as far as it is spelled, drafted tokens included
        self._answer = bytearray()
        self._ends: list[int] = []  # of the answer's tokens, the target's

    @property
    def reproducible(self) -> bool:
        return isinstance(self._length, Fixed)

    def room(self, text: int) -> int:
        return longest(self._length)

    async def draft(self, text: Sequence[int], picks: Sequence[Pick], coupled: bool) -> Drafted:
        for token in text[self._prompt + len(self._ends) :]:
            self._answer += text_of(self._target_vocabulary, token)
            self._ends.append(len(self._answer))
        if incomplete(self._answer):
            return Drafted(())  # nothing that the draft could read would be what was written
        self._spell(bytes(self._answer))
        room = self._limit - self._own_prompt - len(self._spelling.ids)
        if room <= 0:
            return Drafted(())
        missing = self._spelling.ids[len(self.seq.tokens) - self._own_prompt :]
        own = picks[:room] if coupled else Picks.of_draft(picks[:room])
        drafted = await Draft(self.seq, missing, own, self._length, self._target, coupled)
        for token in self.seq.tokens[self._own_prompt + len(self._spelling.ids) :]:
            self._spelling.append(token)
            self._spelled += text_of(self._vocabulary, token)
        return drafted

    def _spell(self, answer: bytes) -> None:
        """Make the draft's tokens spell the answer; its sequence keeps what both have in common."""
        spelling = self._spelling
        common = answer[: _common(answer, self._spelled)]
        if len(common) < len(self._spelled):
            spelling.cut(bisect_right(spelling.ends, len(spelling.shown(common))))
            if not spelling.ids:
                spelling.lead = self._lead
        kept = spelling.respell(answer)
        assert kept is not None
        self._spelled = answer
        if self._own_prompt + kept < len(self.seq.tokens):
            self.seq.rewind(self._own_prompt + kept)

    def rewind(self, length: int) -> None:
        count = max(0, length - self._prompt)
        if count < len(self._ends):
            del self._ends[count:]
            del self._answer[self._ends[-1] if self._ends else 0 :]

    def fork(self) -> CrossVocabularyDrafter:
        twin = copy(self)
        twin.seq = self.seq.fork()
        twin._answer, twin._ends = bytearray(self._answer), list(self._ends)
        twin._spelling = copy(self._spelling)
        twin._spelling.ids, twin._spelling.ends = list(self._spelling.ids), list(self._spelling.ends)
        return twin

    def close(self) -> None:
        self.seq.close()


def _common(a: bytes, b: bytes) -> int:
    """Bytes that both begin with."""
    if a.startswith(b):
        return len(b)
    low, high = 0, min(len(a), len(b))  # equal up to low
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low
