"""Nudging across vocabularies: control passes from model to model, word by word, as text.

The base writes while it is sure. Where it is unsure at the start of a word, the nudger drafts whole words; the base
reads them in one pass and takes over after the first word where it is sure again, or where its own next token agrees
with the nudger's (Fei et al., "Nudging", ACL 2025, section 3). Both caches stay: each model's tokens spell the same
answer (``bridge``), are rolled back to the last common one and caught up in one chunk.

Explicit rules where the published code has none or fails:

* The base's end-of-sequence token, and the next question that a base template invites, don't end an answer: the nudger
  is asked. The nudger's end-of-sequence token ends it; so does a stop token id that the request names, if the base
  writes it.
* Every word of a block is checked by the base before the next is written, the last block's too. Only the very last
  word of an answer isn't read: nothing could follow from it.
* Control passes to the nudger only between characters, and only where the base's own next token begins a word. It
  passes back at the end of any word, also for a token that continues it.
* A special token that doesn't end the answer has no text: the model that wrote it keeps it, the other sees nothing.
* The result doesn't depend on how many words are drafted at a time, only the cost does: one word first, then twice as
  many each time the base stays unsure. A word is spelled and checked as if it were drafted alone.
* An answer that repeats itself is handed to the nudger; if that doesn't break the loop it ends with REPETITION.
* A full context ends the answer with CONTEXT_FULL when that model is needed, with all that was written before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Self

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.draws.base import TokenDraws
from trimtab.decode.methods.policies.repetition import repeats
from trimtab.decode.methods.policies.span import Span
from trimtab.decode.methods.policies.trigger import Trigger, fires
from trimtab.decode.methods.writer import Team, Writer
from trimtab.decode.ops import (
    Context,
    Extend,
    Read,
    Seq,
    gather,
)
from trimtab.decode.request.result import FinishReason, Token, TokenReason
from trimtab.decode.text.spelling import Spelling, incomplete, starts_word, text_of
from trimtab.decode.text.view import VocabularyView
from trimtab.kernels.types import Pick

__all__ = ["CrossVocabularyWriter"]

_MAX_WORD = 16  # tokens of the longest word: some scripts have no spaces, and white space may never end
_MAX_BLOCK = 16  # words drafted before the base reads them
_LOOP = 3  # copies that hand a repeating answer to the nudger
_STUCK = 6  # copies that end it
_CHECK_EVERY = 8  # tokens between looks for repetition

# Why the base goes on by itself, and why it takes over after a word of the nudger.
_GOES_ON = (TokenReason.SURE, TokenReason.WITHIN_WORD)
_TAKES_OVER = (TokenReason.SURE, TokenReason.LOOPING, TokenReason.SPAN_SPENT, TokenReason.AGREED)


class CrossVocabularyWriter(Writer):
    """Writes one answer with two models of different vocabularies.

    Args:
        context: of the request.
        base: draws the base's tokens; its sequence is the base's prompt.
        nudger: sequence of the nudger's prompt.
        answer, team: see ``Writer``.
        when: trigger.
        max_span: nudger tokens in a row before the base must write one, counted at ends of words; None: no bound.
        stops: texts with which the base begins a new turn of its own; read as its EOS.
        begun: both prompts end with the beginning of the answer, which goes on without a space of its own.
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
        stops: tuple[str, ...] = (),
        begun: bool = False,
    ) -> None:
        super().__init__(answer, team)
        self._begun = begun
        self._context, self._base, self._nudger = context, base, nudger
        self._when, self._max_span, self._stops = when, max_span, stops
        self._turns = tuple(stop.lstrip("\n").encode() for stop in stops)
        self._base_prompt, self._nudger_prompt = len(base.seq.tokens), len(nudger.tokens)
        self._base_vocabulary = context.vocabulary(base.seq.model)
        self._nudger_vocabulary = context.vocabulary(nudger.model)
        of_base, of_nudger = self._base_vocabulary, self._nudger_vocabulary
        self._of_base = Spelling(of_base, None if begun else _lead(of_base, base.seq))
        self._of_nudger = Spelling(of_nudger, None if begun else _lead(of_nudger, nudger))
        self._data = bytearray()  # the answer
        self._reads: deque[Read] = deque()  # proposed by the base, not yet written
        self._span: Span | None = None  # while the nudger writes
        self._own: Token | None = None  # the base's, with which it takes over from the nudger; not yet written
        self._checked = 0
        self._looping = False

    @property
    def reproducible(self) -> bool:
        return self._base.reproducible

    async def prime(self) -> None:
        await gather(self._base.prime(), _read(self._nudger))

    async def _next(self) -> Token | None:
        while not self.answer.done:
            if self._own is not None:
                return self._own
            token = await (self._next_of_base() if self._span is None else self._next_of_nudger(self._span))
            if token is not None:
                return token
        return None

    def _took(self, token: Token) -> None:
        span = self._span
        if span is None or self._own is not None:
            if self._own is None:
                self._reads.popleft()
            self._span = self._own = None
            if not self.answer.done:
                self._base.accept([token.id])
                self._of_base.append(token.id)
                self._data += text_of(self._base_vocabulary, token.id)
            return
        span.done += 1
        span.written += 1
        if not self.answer.ends.holds(self._nudger.model, token.id):
            self._data += text_of(self._nudger_vocabulary, token.id)
            self._of_nudger.append(token.id)

    # ------------------------------------------------------------------------------------------------------- the base

    async def _next_of_base(self) -> Token | None:
        """The base's next token; None where it hands over or the answer has ended."""
        if not self._reads:
            if self._base.full:
                self.answer.finish(FinishReason.CONTEXT_FULL)
                return None
            self._reads.extend(await self._base.propose())
        read = self._reads[0]
        self._guard()
        if self.answer.done:
            return None
        reason = self._reason(read)
        if reason in _GOES_ON:
            return self._own_token(read, reason)
        self._reads.clear()
        self._span = Span(of_nudger=self._of_nudger.copy(), reason=reason, asked=read)
        self._catch_up_nudger()
        return None

    def _own_token(self, read: Read, reason: TokenReason) -> Token:
        return self.answer.token(self._base.seq.model, read, reason=reason, base=read)

    def _reason(self, read: Read) -> TokenReason:
        """Why the base writes ``read`` (``_GOES_ON``), or the nudger in its place."""
        if self._gives_up(read):
            return TokenReason.BASE_ENDS  # inside a character too: nobody will complete it
        unsure = fires(self._when, read)
        if (unsure or self._looping) and self._begins_word(read):
            return TokenReason.UNSURE if unsure else TokenReason.LOOPING
        return TokenReason.WITHIN_WORD if unsure else TokenReason.SURE

    def _begins_word(self, read: Read) -> bool:
        if incomplete(self._data):
            return False
        piece = text_of(self._base_vocabulary, read.token)
        return starts_word(piece) or not self._data or self._data[-1:].isspace()

    def _gives_up(self, read: Read) -> bool:
        """Whether the base would end its answer here: by EOS, or by turning to a question of its own."""
        if self.answer.ends.is_eos(self._base.seq.model, read.token):
            return True
        piece = text_of(self._base_vocabulary, read.token)
        head = piece.strip()
        if not head or not self._turns:
            return False
        before = self._data + piece[: len(piece) - len(piece.lstrip())]
        if not before.rstrip(b" ").endswith(b"\n"):
            return False
        return any(stop.startswith(head) or head.startswith(stop) for stop in self._turns)

    # ----------------------------------------------------------------------------------------------------- the nudger

    async def _next_of_nudger(self, span: Span) -> Token | None:
        """The nudger's next token; None where the base takes over, the answer has ended, or more must be drafted."""
        if not span.backs:
            if not await self._draft(span):
                return None if self.answer.done else self._nudged_token(span, span.next)
            span.of_base = self._of_base.copy()
            span.backs.extend(await self._verify(span))
            return None
        word = span.words[0]
        if span.done < len(word):
            return self._nudged_token(span, word[span.done])
        # A word has been written: who goes on?
        follower = span.words[1][0] if len(span.words) > 1 else span.next
        spent = self._max_span is not None and span.written >= self._max_span
        back, size = span.backs[0]
        reason = self._reason_after_word(back, follower, spent)
        if back is not None and reason in _TAKES_OVER:
            self._settle_base()
            self._own = self._own_token(back, reason)
            return None
        span.guard = self._checked, self._looping
        self._guard()
        if not self.answer.done:
            span.reason, span.asked = reason, back
            span.last, span.done = span.words.pop(0), 0
            span.backs.popleft()
            if span.backs:
                span.of_base = self._of_base.copy()
                span.of_base.cut(size)
            else:
                span.of_base = None
                span.block = min(2 * span.block, _MAX_BLOCK)
        return None

    def _nudged_token(self, span: Span, read: Read | None) -> Token:
        assert read is not None
        reason, asked = (TokenReason.WITHIN_WORD, None) if span.done else (span.reason, span.asked)
        return self.answer.token(self._nudger.model, read, reason=reason, base=asked)

    def _reason_after_word(self, read: Read | None, follower: Read | None, spent: bool) -> TokenReason:
        """Why the base goes on by itself (``_TAKES_OVER``), or the nudger, which would write ``follower``.

        Args:
            read: the base's, after the word; None where it isn't asked.
            follower: None where a limit left no room for it.
            spent: whether the nudger has written ``max_span`` tokens in a row.
        """
        if follower is not None and self.answer.ends.holds(self._nudger.model, follower.token):
            return TokenReason.NUDGER_ENDS  # the end is the nudger's to say
        if read is None:
            return TokenReason.WITHIN_WORD
        if self._gives_up(read):
            return TokenReason.BASE_ENDS
        if not fires(self._when, read):
            return TokenReason.SURE
        if self._looping:
            return TokenReason.LOOPING
        if spent:
            return TokenReason.SPAN_SPENT
        return TokenReason.AGREED if follower is not None and self._agree(read, follower) else TokenReason.UNSURE

    def _agree(self, read: Read, follower: Read) -> bool:
        """Whether one model's token, which has to have a visible text, begins with the other's."""
        own = text_of(self._base_vocabulary, read.token)
        other = text_of(self._nudger_vocabulary, follower.token)
        return bool(own.strip()) and bool(other.strip()) and (own.startswith(other) or other.startswith(own))

    def _catch_up_nudger(self) -> None:
        """Bring the nudger's sequence to the answer so far; what is new is computed with its first draft."""
        kept = self._of_nudger.respell(bytes(self._data))
        assert kept is not None
        self._nudger.rewind(self._nudger_prompt + min(kept, len(self._nudger.tokens) - self._nudger_prompt))

    async def _draft(self, span: Span) -> bool:
        """Draft until there are ``block`` whole words and the token after them, or fewer where the answer must end.

        Returns:
            False if there is no word: the nudger says EOS, which is ``next``, or the answer ended for want of room.
        """
        answer, model = self.answer, self._nudger.model
        drafted = [read.token for word in span.words for read in word][span.done :]
        pending = [*self._of_nudger.ids, *drafted][len(self._nudger.tokens) - self._nudger_prompt :]
        while True:
            if span.ahead >= answer.remaining:
                return True
            if span.next is None:
                if len(self._nudger.tokens) + len(pending) >= self._context.limit(model):
                    break
                if self._context.out_of_time():
                    answer.finish(FinishReason.TIME_BUDGET)
                    return False
                pick = answer.pick(model, span.ahead)
                (span.next,) = await Extend(self._nudger, pending, (pick,), answer.top)
            token = span.next.token
            if answer.ends.holds(model, token):
                break
            if not span.words or self._is_whole(span.words[-1], token):
                if len(span.words) >= span.block:
                    return True
                span.words.append([])
            span.words[-1].append(span.next)
            pending, span.next = [token], None
        if span.words:
            return True
        if span.next is None:
            answer.finish(FinishReason.CONTEXT_FULL)
        return False

    def _is_whole(self, word: list[Read], token: int) -> bool:
        """Whether ``word`` ends before ``token``. A run of white space belongs to the word after it."""
        if len(word) >= _MAX_WORD:
            return True
        text = self._nudged_text(word)
        return starts_word(text_of(self._nudger_vocabulary, token)) and bool(text.strip()) and not incomplete(text)

    def _nudged_text(self, word: list[Read]) -> bytes:
        return b"".join(text_of(self._nudger_vocabulary, read.token) for read in word)

    async def _verify(self, span: Span) -> list[tuple[Read | None, int]]:
        """Read drafted words with the base, in one pass.

        Returns:
            For each of the first words, at least one, the base's read after it, None where there is none (inside a
            character, after a word without text, and after the last word of the answer); and how many of its tokens
            spell the answer up to there. Empty if the answer ended because the base's context is full.
        """
        model, spelling = self._base.seq.model, self._of_base
        limit = self._context.limit(model) - self._base_prompt
        answer, ahead = bytes(self._data), 0
        places: list[tuple[int | None, int]] = []  # of each word, the index of the base's token that ends it, and size
        picks: dict[int, Pick] = {}
        stay, fixed = len(spelling.ids), 0
        for word in span.words:
            fresh = word if places else word[span.done :]
            answer += self._nudged_text(fresh)
            ahead += len(fresh)
            place = None
            if not incomplete(answer) and not self._is_last(span, len(places), ahead):
                before = len(spelling.ids)
                kept = spelling.respell(answer, fixed)
                if kept is None:
                    break  # this word changes how the one before it is spelled, which has to be read first
                stay = min(stay, kept)
                if len(spelling.ids) >= limit:
                    if not places:
                        self.answer.finish(FinishReason.CONTEXT_FULL)
                        return []
                    if fixed:
                        spelling.cut(fixed)
                    break
                # A word that is written, and read anew with other random numbers, is spelled already.
                if spelling.ids and ((kept, len(spelling.ids)) != (before, before) or not fresh):
                    fixed = len(spelling.ids)
                    place = fixed - 1
                    picks[place] = self.answer.pick(model, ahead)
            places.append((place, len(spelling.ids)))
        have = min(stay, len(self._base.seq.tokens) - self._base_prompt)
        self._base.reset(self._base_prompt + have, ())
        if not picks:
            return [(None, size) for _, size in places]
        first = min(picks)
        wanted = [picks.get(i) for i in range(first, len(spelling.ids))]
        reads = await Extend(self._base.seq, spelling.ids[have:], wanted, self.answer.top)
        return [(None if place is None else reads[place - first], size) for place, size in places]

    def _is_last(self, span: Span, index: int, ahead: int) -> bool:
        """Whether the answer ends with the drafted word of that index, ``ahead`` tokens from here."""
        if index + 1 < len(span.words):
            return False
        last = span.next
        return ahead >= self.answer.remaining or (
            last is not None and self.answer.ends.holds(self._nudger.model, last.token)
        )

    def _settle_base(self) -> None:
        """Cut the base's tokens, which may spell words that were drafted but not written, back to the answer."""
        size = len(self._of_base.shown(bytes(self._data)))
        self._of_base.cut(bisect_right(self._of_base.ends, size))
        self._base.reset(self._base_prompt + len(self._of_base.ids), ())

    # ------------------------------------------------------------------------------------------------ forks and copies

    def _forget(self) -> None:
        if self._span is None:
            self._reads.clear()
            return
        self._undecide()
        kept = _common(self._base.seq.tokens[self._base_prompt :], self._of_base.ids)
        self._base.reset(self._base_prompt + kept, self._of_base.ids[kept:])
        kept = _common(self._nudger.tokens[self._nudger_prompt :], self._of_nudger.ids)
        self._nudger.rewind(self._nudger_prompt + kept)

    def _undecide(self) -> None:
        """Back to the end of the last written token, with all decisions since to be taken anew."""
        self._reads.clear()
        self._own = None
        span = self._span
        if span is None or self.answer.done:
            return
        word = span.words[0][: span.done] if span.done else span.last
        if word and not span.done:
            self._checked, self._looping = span.guard
        if span.backs and span.done == len(span.words[0]):
            self._of_base.cut(span.backs[0][1])
        elif span.of_base is not None:
            self._of_base = span.of_base.copy()
        if word:
            self._span = Span([word], len(word), written=span.written, of_nudger=span.of_nudger)
        else:
            assert span.of_nudger is not None
            self._span, self._of_nudger = None, span.of_nudger.copy()

    def _copy(self, answer: Answer) -> Self:
        twin = type(self)(
            self._context,
            self._base.fork(answer),
            self._nudger.fork(),
            answer,
            self.team,
            self._when,
            self._max_span,
            self._stops,
            self._begun,
        )
        twin._base_prompt, twin._nudger_prompt = self._base_prompt, self._nudger_prompt
        twin._reads, twin._own = self._reads.copy(), self._own
        twin._take_state(self)
        return twin

    def _take_state(self, other: Self) -> None:
        self._of_base, self._of_nudger = other._of_base.copy(), other._of_nudger.copy()
        self._data = bytearray(other._data)
        self._span = None if other._span is None else other._span.copy()
        self._checked, self._looping = other._checked, other._looping

    def _resume(self, other: Self) -> None:
        self._take_state(other)
        self._undecide()
        self._base.reset(self._base_prompt, self._of_base.ids)
        self._nudger.rewind(self._nudger_prompt)

    def _release(self) -> None:
        self._base.close()
        self._nudger.close()

    # ---------------------------------------------------------------------------------------------------- loop guards

    def _guard(self) -> None:
        """Look for repetition now and then."""
        if len(self.answer.tokens) - self._checked < _CHECK_EVERY:
            return
        self._checked = len(self.answer.tokens)
        data = bytes(self._data)
        self._looping = repeats(data, _LOOP)
        if self._looping and repeats(data, _STUCK):
            self.answer.finish(FinishReason.REPETITION)


def _common(tokens: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(tokens, other, strict=False))
    return next((i for i, (one, two) in pairs if one != two), min(len(tokens), len(other)))


async def _read(seq: Seq) -> None:
    await Extend(seq)


def _lead(vocabulary: VocabularyView, seq: Seq) -> bytes:
    """What a model puts before its answer: a space after a prompt that ends in visible text, else nothing."""
    last = seq.tokens[-1]
    return b"" if last in vocabulary.special_ids or vocabulary.piece(last)[-1:].isspace() else b" "
