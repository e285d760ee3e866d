"""Nudging where both models share a vocabulary: token by token (Fei et al., "Nudging", ACL 2025, local variant).

The base reads every position; where it is unsure the nudger writes the token. The nudger's cache stands still meanwhile
and catches up in one chunk when it is needed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.methods.policies.cross_vocabulary import CrossVocabularyWriter
from trimtab.decode.methods.policies.trigger import DEFAULT_TRIGGER, TRIGGERS, Trigger, fires
from trimtab.decode.methods.writer import Team, Writer
from trimtab.decode.ops import Context, Extend, Read, Seq, gather
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Model, Range
from trimtab.decode.request.info import same_model
from trimtab.decode.request.method import Policy
from trimtab.decode.request.result import FinishReason, Token, TokenReason

__all__ = ["Nudged", "NudgedWriter"]

_OF_BASE = (TokenReason.SURE, TokenReason.SPAN_SPENT)


@dataclass(frozen=True, slots=True)
class Nudged(Policy):
    """A small aligned model writes where the base is unsure (Fei et al., "Nudging", ACL 2025).

    Attributes:
        nudger: name of the aligned model. Its vocabulary may differ from the base's.
        when: the trigger, read from the base's distribution at temperature 1; None takes the measured default.
        max_span_tokens: hand back to the base for at least one token after this many nudger tokens in a row; None
            lets the nudger write for as long as the base stays unsure.
    """

    nudger: Annotated[str, Model()]
    when: Annotated[Trigger | None, TRIGGERS] = None
    max_span_tokens: Annotated[int | None, Range("[1, max_new_tokens]")] = None

    helpers_write: ClassVar[bool] = True

    def check(self, check: Check) -> None:
        info, nudger = check.info, check.models.get(self.nudger)
        if info is not None and nudger is not None and same_model(info, nudger):
            accepted = f"a model other than the requested one ({info.name!r}, from {info.source!r})"
            check.refuse(f"{self.path}.nudger", self.nudger, accepted)

    def writer(self, desk: Desk) -> Writer:
        answer, base = desk.answer(), desk.open()
        draws, nudger, when = desk.draws(answer, base), desk.open(self.nudger), self.when or DEFAULT_TRIGGER
        if desk.shares_ids(self.nudger):
            return NudgedWriter(desk.context, draws, nudger, answer, desk.team, when, self.max_span_tokens)
        span, stops, begun = self.max_span_tokens, desk.stops, desk.begun
        return CrossVocabularyWriter(desk.context, draws, nudger, answer, desk.team, when, span, stops, begun)


class NudgedWriter(Writer):
    """Writes with a base and a nudger of its vocabulary.

    The base's end-of-sequence token is not trusted alone: the nudger is asked for that token too, and its own ends the
    answer. ``max_span`` nudger tokens in a row are followed by at least one of the base, unless that would be EOS. A
    stop token id that the request names ends the answer whoever writes it. A full context ends it when that model is
    needed.

    Args:
        context: of the request.
        base: draws the base's tokens; its sequence is the base's prompt.
        nudger: sequence of the nudger's prompt.
        answer, team: see ``Writer``.
        when: trigger.
        max_span: nudger tokens in a row before the base must write one; None: no bound.
    """

    def __init__(
        self,
        context: Context,
        base: TokenDraws,
        nudger: Seq,
        answer: Answer,
        team: Team,
        when: Trigger,
        max_span: int | None = None,
    ) -> None:
        super().__init__(answer, team)
        self._context, self._base, self._nudger = context, base, nudger
        self._when, self._max_span = when, max_span
        self._base_prompt = len(base.seq.tokens)
        self._reads: deque[Read] = deque()  # proposed by the base, not yet written
        self._found: Read | None = None  # drawn by the nudger instead of the first of them, not yet written
        self._missing: list[int] = []  # tokens of the answer that the nudger hasn't read
        self._span = 0

    @property
    def reproducible(self) -> bool:
        return self._base.reproducible

    async def prime(self) -> None:
        await gather(self._base.prime(), _read(self._nudger))

    async def _next(self) -> Token | None:
        answer, helper = self.answer, self._nudger.model
        if not self._reads:
            if self._base.full:
                answer.finish(FinishReason.CONTEXT_FULL)
                return None
            self._reads.extend(await self._base.propose())
        read = self._reads[0]
        reason = self._reason(read)
        if reason in _OF_BASE:
            return answer.token(self._base.seq.model, read, reason=reason, base=read)
        if self._found is None:
            missing, self._missing = self._missing, []
            if len(self._nudger.tokens) + len(missing) >= self._context.limit(helper):
                answer.finish(FinishReason.CONTEXT_FULL)
                return None
            (self._found,) = await Extend(self._nudger, missing, (answer.pick(helper),), answer.top)
        return answer.token(helper, self._found, reason=reason, base=read)

    def _reason(self, read: Read) -> TokenReason:
        """Why the base writes ``read`` (``_OF_BASE``), or the nudger in its place."""
        ends = self.answer.ends
        if ends.is_eos(self._base.seq.model, read.token) or ends.is_eos(self._nudger.model, read.token):
            return TokenReason.BASE_ENDS
        if not fires(self._when, read):
            return TokenReason.SURE
        spent = self._max_span is not None and self._span >= self._max_span
        return TokenReason.SPAN_SPENT if spent else TokenReason.UNSURE

    def _took(self, token: Token) -> None:
        if self._found is None:
            self._reads.popleft()
            self._span = 0
        else:
            self._reads.clear()
            self._found = None
            self._span += 1
        self._base.accept([token.id])
        self._missing.append(token.id)

    def _forget(self) -> None:
        self._reads.clear()
        self._found = None

    def _copy(self, answer: Answer) -> Self:
        twin = type(self)(
            self._context, self._base.fork(answer), self._nudger.fork(), answer, self.team, self._when, self._max_span
        )
        twin._base_prompt, twin._reads, twin._found = self._base_prompt, self._reads.copy(), self._found
        twin._missing, twin._span = list(self._missing), self._span
        return twin

    def _resume(self, other: Self) -> None:
        self._forget()
        written = other._base.tokens()[other._base_prompt :]
        self._base.reset(self._base_prompt, written)
        self._missing, self._span = written, other._span

    def _release(self) -> None:
        self._base.close()
        self._nudger.close()


async def _read(seq: Seq) -> None:
    await Extend(seq)
