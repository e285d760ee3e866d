"""One candidate while it is written: tokens in, committed text out, and the moment it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from trimtab.decode.frozen import FrozenDict
from trimtab.decode.methods.chance import Line
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.ops import Context, Picks, Read
from trimtab.decode.request.events import Chunk
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    Token,
    TokenReason,
)
from trimtab.decode.text.detokenizer import Detokenizer
from trimtab.decode.text.ends import Ends
from trimtab.decode.text.view import blind
from trimtab.kernels.types import Pick

if TYPE_CHECKING:
    from trimtab.kernels.types import Filters, Key

__all__ = ["Answer", "Preview"]

NO_REWARDS: Mapping[str, float] = FrozenDict()
NO_PROMPTS: Mapping[str, tuple[int, ...]] = FrozenDict()


class _Written:
    """The first tokens of a list that only grows, as a tuple once somebody asks."""

    __slots__ = ("_all", "_list", "count")

    def __init__(self, tokens: list[Token]) -> None:
        self._list, self.count = tokens, len(tokens)
        self._all: tuple[Token, ...] | None = None

    def __call__(self) -> tuple[Token, ...]:
        if self._all is None:
            self._all = tuple(self._list[: self.count])
        return self._all

    def still(self, tokens: list[Token]) -> bool:
        """Whether they are all of ``tokens``."""
        return self._list is tokens and self.count == len(tokens)


class Preview:
    """What an answer would be after a few tokens more, as ``Answer`` would say it.

    It shares what is written already; text and tokens are put together when they are read. It stays as it is when the
    answer goes on.

    Attributes:
        finish_reason, stop_match: of the answer, if it would end.
        prompts: see ``Answer``.
    """

    __slots__ = ("_text", "_tokens", "_written", "finish_reason", "prompts", "stop_match")

    def __init__(self, written: _Written, text: tuple[str, str], end: Answer) -> None:
        self._written, self._text, self._tokens = written, text, end.tokens
        self.finish_reason, self.stop_match, self.prompts = end.finish_reason, end.stop_match, end.prompts

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def tokens(self) -> tuple[Token, ...]:
        return self._written() + tuple(self._tokens)


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
        prompts: for each author the token ids after which it writes; none where the figures of its tokens are not its
            own, but those of a mixture.
        emit: takes each chunk of committed text; None collects silently.

    Attributes:
        ends: which tokens end it.
    """

    def __init__(
        self,
        context: Context,
        request: Request,
        drawing: Drawing,
        *,
        stops: Sequence[str] = (),
        same_vocabulary: Iterable[str] = (),
        text_only: bool = False,
        index: int = 0,
        prompts: Mapping[str, tuple[int, ...]] = NO_PROMPTS,
        emit: Callable[[Chunk], None] | None = None,
    ) -> None:
        self._context, self._emit = context, emit
        self.prompts = prompts
        self._stopping, self.top = request.stopping, request.top_logprobs
        self._drawing, self.index, self._model = drawing, index, request.model
        self._keys = _keys(drawing.key)
        self.ends = Ends(request, context.vocabulary, same_vocabulary, text_only)
        stopping = request.stopping
        self._detokenizer = Detokenizer(
            (*stopping.stop, *stops), include_stop=stopping.include_stop, min_tokens=stopping.min_new_tokens
        )
        self.tokens: list[Token] = []  # it only grows; where an answer goes back, it gets another list
        self._before = 0  # tokens of the answer that are not in the list: of previews
        self._written = _Written(self.tokens)  # where previews were made last
        self._text: list[str] = []
        self.finish_reason: FinishReason | None = None
        self.stop_match: str | None = None

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def key(self) -> Key:
        """Of the candidate's random numbers."""
        return self._drawing.key

    @property
    def filters(self) -> Filters:
        """The request's sampling, for the requested model's vocabulary."""
        return self._drawing.filters

    @property
    def text(self) -> str:
        """The answer so far, with characters that are held back because a stop string may begin with them."""
        return "".join(self._text) + self._detokenizer.held

    @property
    def sum_logprob(self) -> float:
        """ln p of the tokens under their authors."""
        return sum(token.logprob for token in self.tokens if token.logprob is not None)

    @property
    def mean_logprob(self) -> float:
        """Mean ``Token.logprob``, the token that ended the answer included.

        An answer without a token has no more than one that is drawn blindly from the requested model's vocabulary.
        """
        known = [token.logprob for token in self.tokens if token.logprob is not None]
        return sum(known) / len(known) if known else blind(self._context.vocabulary(self._model))

    @property
    def remaining(self) -> int:
        """Tokens that may still be written."""
        return self._stopping.max_new_tokens - len(self.tokens)

    def pick(self, model: str, ahead: int = 0) -> Pick:
        """How to draw the token ``ahead`` places after the next one, from ``model``."""
        return self._pick_at(model, self._keys, len(self.tokens) + ahead)

    def picks(self, model: str, count: int) -> Picks:
        """How to draw the next ``count`` tokens, from ``model``, as of now, even if they are read later."""
        start, keys = len(self.tokens), self._keys
        return Picks(lambda i: self._pick_at(model, keys, start + i), count)

    def _pick_at(self, model: str, keys: tuple[Key, Key], position: int) -> Pick:
        filters = self._drawing.filters if self.ends.shares_ids(model) else self._drawing.foreign
        return Pick(filters, keys[model != self._model], position, banned=self.ends.banned(model, position))

    def token(
        self,
        model: str,
        read: Read,
        *,
        reason: TokenReason | None = None,
        base: Read | None = None,
    ) -> Token:
        """The token that ``model`` drew.

        Args:
            model: its author.
            read: its token and figures.
            reason: why that model writes here, where models take turns.
            base: what the requested model reads at this place then; None where it wasn't asked.
        """
        return Token(
            read.token,
            self._context.vocabulary(model).piece(read.token),
            model,
            read.draw,
            read.logprob,
            read.entropy,
            read.top_prob,
            read.top,
            reason=reason,
            base_entropy=None if base is None else base.entropy,
            base_top_prob=None if base is None else base.top_prob,
        )

    def fork(self, key: Key, index: int | None = None, emit: Callable[[Chunk], None] | None = None) -> Answer:
        """A copy that goes on with random numbers of its own; ``index`` None keeps the number of this one."""
        twin = copy(self)
        twin.index, twin._emit = self.index if index is None else index, emit
        twin._drawing, twin._keys = replace(self._drawing, key=key), _keys(key)
        twin.adopt(self)
        return twin

    def adopt(self, other: Answer) -> None:
        """Take over what ``other`` has written, text and end included, and forget what was written here."""
        if other.prompts is not self.prompts and other.prompts != self.prompts:
            self.prompts = NO_PROMPTS  # its tokens were written after another prompt than what follows
        self.tokens, self._text = list(other.tokens), list(other._text)
        self._detokenizer = other._detokenizer.copy()
        self.finish_reason, self.stop_match = other.finish_reason, other.stop_match

    def preview(self, tokens: Sequence[Token]) -> Preview:
        """What the answer would be after these tokens; nothing is emitted, nothing changes here.

        It takes time of the new tokens alone, however long the answer is.
        """
        if not self._written.still(self.tokens):  # once for all previews of this place
            self._written, self._text = _Written(self.tokens), ["".join(self._text)]
        twin = copy(self)
        twin._emit, twin.tokens, twin._before, twin._text = None, [], len(self.tokens), []
        twin._detokenizer = self._detokenizer.copy()
        _, text = twin._take(tokens)
        twin._commit(text, ())
        return Preview(self._written, ("".join(self._text), twin.text), twin)

    def write(self, tokens: Sequence[Token]) -> int:
        """Append tokens, in order, until one ends the answer; returns how many were taken."""
        taken, text = self._take(tokens)
        if not self.done and self._context.out_of_time():
            self.finish_reason = FinishReason.TIME_BUDGET
        self._commit(text, tuple(tokens[:taken]))
        return taken

    def replay(self, other: Answer, count: int | None = None) -> None:
        """Write what ``other`` has and this one has not, up to its first ``count`` tokens, or all and its end.

        What is written here must be a beginning of what ``other`` has.
        """
        fresh = other.tokens[len(self.tokens) : count]
        _, text = self._take(fresh)
        if count is None and not self.done:
            self.finish_reason = other.finish_reason
        self._commit(text, tuple(fresh))

    def _take(self, tokens: Sequence[Token]) -> tuple[int, list[str]]:
        text: list[str] = []
        taken = 0
        for token in tokens:
            if self.done:
                break
            taken += 1
            self.tokens.append(token)
            if self.ends.holds(token.author, token.id):
                eos = token.id in self.ends.eos(token.author)
                self.finish_reason = FinishReason.EOS if eos else FinishReason.STOP
                if not self.ends.is_eos(token.author, token.id):
                    self.stop_match = self.ends.named(token.author, token.id)
                break
            special = token.id in self._context.vocabulary(token.author).special_ids
            text.append(self._detokenizer.feed(b"" if special else token.piece))
            if self._detokenizer.match is not None:
                self.stop_match = self._detokenizer.match.stop
                self.finish_reason = FinishReason.STOP
            elif self._before + len(self.tokens) >= self._stopping.max_new_tokens:
                self.finish_reason = FinishReason.MAX_NEW_TOKENS
        return taken, text

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

    def candidate(self, rewards: Mapping[str, float] = NO_REWARDS) -> Candidate:
        """The finished candidate, with what it was rated."""
        assert self.finish_reason is not None
        text = "".join(self._text)
        return Candidate(self.index, text, tuple(self.tokens), self.finish_reason, self.stop_match, rewards)


def _keys(key: Key) -> tuple[Key, Key]:
    """Random numbers of the requested model, and of those that help it.

    Whether a helper is asked at a position can depend on what the requested model drew there. With the same random
    numbers its token would depend on it too, and no longer follow its own distribution.
    """
    return key, key.child(0, Line.HELPER)
