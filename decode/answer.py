"""One candidate while it is written: tokens in, committed text out, and the moment it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trimtab.decode.ops import Context, Pick, Read
from trimtab.decode.text import Detokenizer
from trimtab.decode.types import Candidate, Chunk, FinishReason, Request, Token, TokenDraw

if TYPE_CHECKING:
    from trimtab.kernels.reference.filters import Filters
    from trimtab.kernels.rng import Key

__all__ = ["Answer", "Drawing"]

_HELPER = 2**32 - 1  # number of the branch of models that help; forks of a search count from 0


@dataclass(frozen=True, slots=True)
class Drawing:
    """How one candidate's tokens are drawn.

    Attributes:
        filters: the request's sampling, for models of the requested model's vocabulary.
        foreign: the same without token ids, for models of another vocabulary.
        key: of the candidate's random numbers (law 3).
    """

    filters: Filters
    foreign: Filters
    key: Key


class Answer:
    """Collects the tokens of one candidate, whoever writes them.

    Args:
        context: of the request.
        request: for its stopping rules and options.
        drawing: how tokens are drawn.
        stops: stop strings beside the request's own, e.g. the next question of a base model's template.
        same_vocabulary: models that share the requested model's token ids.
        text_only: the tokens are passed on as text, so one that ends answers must not be written inside one.
        index: of the candidate.
        emit: takes each chunk of committed text; None collects silently.
    """

    def __init__(
        self,
        context: Context,
        request: Request,
        drawing: Drawing,
        *,
        stops: Sequence[str] = (),
        same_vocabulary: Sequence[str] = (),
        text_only: bool = False,
        index: int = 0,
        emit: Callable[[Chunk], None] | None = None,
    ) -> None:
        self._context, self._emit = context, emit
        self._stopping, self.top = request.stopping, request.top_logprobs
        self._drawing, self.index = drawing, index
        # Whether a helper is asked at a position can depend on what the requested model drew there. With the same
        # random numbers its token would depend on it too, and no longer follow its own distribution.
        self._model, self._keys = request.model, (drawing.key, drawing.key.child(0, _HELPER))
        self._same = frozenset((request.model, *same_vocabulary))
        self._never_eos = text_only and request.stopping.ignore_eos
        stopping = request.stopping
        self._detokenizer = Detokenizer(
            (*stopping.stop, *stops), include_stop=stopping.include_stop, min_tokens=stopping.min_new_tokens
        )
        self.tokens: list[Token] = []
        self._text: list[str] = []
        self.finish_reason: FinishReason | None = None
        self.stop_match: str | None = None

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return self._stopping.max_new_tokens - len(self.tokens)

    def ends(self, model: str, token: int) -> bool:
        """Whether ``token``, written by ``model``, is one that ends an answer."""
        return self.is_eos(model, token) or (model in self._same and token in self._stopping.stop_token_ids)

    def is_eos(self, model: str, token: int) -> bool:
        """Whether ``token`` is how ``model`` ends an answer by itself, and the request lets it."""
        return not self._stopping.ignore_eos and token in self._context.vocabulary(model).eos_token_ids

    def pick(self, model: str, ahead: int = 0) -> Pick:
        """How to draw the token ``ahead`` places after the next one, from ``model``."""
        position = len(self.tokens) + ahead
        early = position < self._stopping.min_new_tokens
        banned: tuple[int, ...] = ()
        if early or self._never_eos:
            banned = self._context.vocabulary(model).eos_token_ids
        if model in self._same:
            stops = self._stopping.stop_token_ids
            banned = (*banned, *stops) if early else tuple(token for token in banned if token not in stops)
        filters = self._drawing.filters if model in self._same else self._drawing.foreign
        return Pick(filters, self._keys[model != self._model], position, banned)

    def token(self, model: str, read: Read, draw: TokenDraw = TokenDraw.PLAIN) -> Token:
        """The token that ``model`` drew."""
        piece = self._context.vocabulary(model).piece(read.token)
        return Token(read.token, piece, model, draw, read.logprob, read.entropy, read.top_prob, read.top)

    def write(self, tokens: Sequence[Token]) -> int:
        """Append tokens, in order, until one ends the answer; returns how many were taken."""
        text: list[str] = []
        taken = 0
        for token in tokens:
            if self.done:
                break
            taken += 1
            self.tokens.append(token)
            if self.ends(token.author, token.id):
                eos = token.id in self._context.vocabulary(token.author).eos_token_ids
                self.finish_reason = FinishReason.EOS if eos else FinishReason.STOP
                break
            special = token.id in self._context.vocabulary(token.author).special_ids
            text.append(self._detokenizer.feed(b"" if special else token.piece))
            if self._detokenizer.match is not None:
                self.stop_match = self._detokenizer.match.stop
                self.finish_reason = FinishReason.STOP
            elif len(self.tokens) >= self._stopping.max_new_tokens:
                self.finish_reason = FinishReason.MAX_NEW_TOKENS
        if not self.done and self._context.out_of_time():
            self.finish_reason = FinishReason.TIME_BUDGET
        self._commit(text, tuple(tokens[:taken]))
        return taken

    def finish(self, reason: FinishReason) -> None:
        """End the answer for a reason other than its last token."""
        if not self.done:
            self.finish_reason = reason
            self._commit([], ())

    def _commit(self, text: list[str], tokens: tuple[Token, ...]) -> None:
        if self.done:
            text.append(self._detokenizer.finish())
            if self._detokenizer.match is not None and self.stop_match is None:  # in what was held back
                self.stop_match, self.finish_reason = self._detokenizer.match.stop, FinishReason.STOP
        delta = "".join(text)
        if delta:
            self._text.append(delta)
        if self._emit is not None and (delta or tokens):
            self._emit(Chunk(self.index, delta, tokens))

    def candidate(self) -> Candidate:
        """The finished candidate."""
        assert self.finish_reason is not None
        return Candidate(self.index, "".join(self._text), tuple(self.tokens), self.finish_reason, self.stop_match)
