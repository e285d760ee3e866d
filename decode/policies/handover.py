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
from dataclasses import dataclass, field

from trimtab.decode.answer import Answer
from trimtab.decode.draws.autoregressive import AutoregressiveDraw
from trimtab.decode.ops import Context, Extend, Pick, Read, Seq, VocabularyView
from trimtab.decode.policies.bridge import Spelling, incomplete, starts_word, text_of
from trimtab.decode.policies.repetition import repeats
from trimtab.decode.policies.trigger import fires
from trimtab.decode.types import FinishReason, Trigger

__all__ = ["Handover"]

_MAX_WORD = 16  # tokens of the longest word: some scripts have no spaces, and white space may never end
_MAX_BLOCK = 16  # words drafted before the base reads them
_LOOP = 3  # copies that hand a repeating answer to the nudger
_STUCK = 6  # copies that end it
_CHECK_EVERY = 8  # tokens between looks for repetition


@dataclass(slots=True)
class _Draft:
    """What the nudger has drafted since it took over.

    Attributes:
        words: drafted, not yet written.
        next: the nudger's read for the token after them: the start of the next word, or EOS. It is already drawn, but
            not yet in its sequence. None where a limit left no room for it.
    """

    words: list[list[Read]] = field(default_factory=list)
    next: Read | None = None


class Handover:
    """Writes one answer with two models of different vocabularies.

    Args:
        context: of the request.
        base: draws the base's tokens; its sequence is the base's prompt.
        nudger: sequence of the nudger's prompt.
        answer: what is written.
        when: trigger.
        max_span: nudger tokens in a row before the base must write one, counted at ends of words; None: no bound.
        stops: texts with which the base begins a new turn of its own; read as its EOS.
    """

    def __init__(
        self,
        context: Context,
        base: AutoregressiveDraw,
        nudger: Seq,
        answer: Answer,
        when: Trigger,
        max_span: int | None = None,
        stops: tuple[str, ...] = (),
    ) -> None:
        self._context, self._base, self._nudger, self._answer = context, base, nudger, answer
        self._when, self._max_span = when, max_span
        self._stops = tuple(stop.lstrip("\n").encode() for stop in stops)
        self._base_prompt, self._nudger_prompt = len(base.seq.tokens), len(nudger.tokens)
        self._base_vocabulary = context.vocabulary(base.seq.model)
        self._nudger_vocabulary = context.vocabulary(nudger.model)
        self._of_base = Spelling(self._base_vocabulary, _lead(self._base_vocabulary, base.seq))
        self._of_nudger = Spelling(self._nudger_vocabulary, _lead(self._nudger_vocabulary, nudger))
        self._data = bytearray()  # the answer
        self._checked = 0
        self._looping = False

    async def write(self) -> None:
        """Write the whole answer."""
        while not self._answer.done:
            if self._base.full:
                self._answer.finish(FinishReason.CONTEXT_FULL)
                return
            for read in await self._base.propose():
                self._guard()
                if self._answer.done:
                    return
                if self._hands_over(read):
                    own = await self._nudge()
                    if own is not None:
                        self._write_base(own)
                    break
                self._write_base(read)

    # ------------------------------------------------------------------------------------------------------- the base

    def _write_base(self, read: Read) -> None:
        token = self._answer.token(self._base.seq.model, read)
        if self._answer.write([token]) and not self._answer.done:
            self._base.accept([read.token])
            self._of_base.append(read.token)
            self._data += text_of(self._base_vocabulary, read.token)

    def _hands_over(self, read: Read) -> bool:
        """Whether the nudger writes instead of the base's ``read``."""
        if self._gives_up(read):
            return True  # inside a character too: nobody will complete it
        if incomplete(self._data) or not (self._looping or fires(self._when, read)):
            return False
        piece = text_of(self._base_vocabulary, read.token)
        return starts_word(piece) or not self._data or self._data[-1:].isspace()

    def _gives_up(self, read: Read) -> bool:
        """Whether the base would end its answer here: by EOS, or by turning to a question of its own."""
        if self._answer.is_eos(self._base.seq.model, read.token):
            return True
        piece = text_of(self._base_vocabulary, read.token)
        head = piece.strip()
        if not head or not self._stops:
            return False
        before = self._data + piece[: len(piece) - len(piece.lstrip())]
        if not before.rstrip(b" ").endswith(b"\n"):
            return False
        return any(stop.startswith(head) or head.startswith(stop) for stop in self._stops)

    # ----------------------------------------------------------------------------------------------------- the nudger

    async def _nudge(self) -> Read | None:
        """Let the nudger write until the base takes over; returns the base's next token, None if the answer ended."""
        draft, block, written = _Draft(), 1, 0
        self._catch_up_nudger()
        while await self._draft(draft, block):
            for back in await self._verify(draft):
                word = draft.words.pop(0)
                self._write_nudge(word)
                written += len(word)
                if self._answer.done:
                    return None
                follower = draft.words[0][0] if draft.words else draft.next
                spent = self._max_span is not None and written >= self._max_span
                if back is not None and self._takes_over(back, follower, spent):
                    self._settle_base()
                    return back
                self._guard()
                if self._answer.done:
                    return None
            block = min(2 * block, _MAX_BLOCK)
        return None

    def _takes_over(self, read: Read, follower: Read | None, spent: bool) -> bool:
        """Whether the base goes on by itself, where the nudger would write ``follower``."""
        if follower is not None and self._answer.ends(self._nudger.model, follower.token):
            return False  # the end is the nudger's to say
        if self._gives_up(read):
            return False
        if spent or self._looping or not fires(self._when, read):
            return True
        if follower is None:
            return False
        own = text_of(self._base_vocabulary, read.token)
        other = text_of(self._nudger_vocabulary, follower.token)
        return bool(own.strip()) and bool(other.strip()) and (own.startswith(other) or other.startswith(own))

    def _catch_up_nudger(self) -> None:
        """Bring the nudger's sequence to the answer so far; what is new is computed with its first draft."""
        kept = self._of_nudger.respell(bytes(self._data))
        assert kept is not None
        self._nudger.rewind(self._nudger_prompt + min(kept, len(self._nudger.tokens) - self._nudger_prompt))

    async def _draft(self, draft: _Draft, block: int) -> bool:
        """Draft until there are ``block`` whole words and the token after them, or fewer where the answer must end.

        Returns:
            False if the answer ended: there is no word, because the nudger says EOS or has no room.
        """
        if self._answer.done:
            return False
        model = self._nudger.model
        ahead = sum(map(len, draft.words))
        spelled = [*self._of_nudger.ids, *(read.token for word in draft.words for read in word)]
        pending = spelled[len(self._nudger.tokens) - self._nudger_prompt :]
        while True:
            if ahead >= self._answer.remaining:
                return True
            if draft.next is None:
                if len(self._nudger.tokens) + len(pending) >= self._context.limit(model):
                    break
                if self._context.out_of_time():
                    self._answer.finish(FinishReason.TIME_BUDGET)
                    return False
                pick = self._answer.pick(model, ahead)
                (draft.next,) = await Extend(self._nudger, pending, (pick,), self._answer.top)
            token = draft.next.token
            if self._answer.ends(model, token):
                break
            if not draft.words or self._is_whole(draft.words[-1], token):
                if len(draft.words) >= block:
                    return True
                draft.words.append([])
            draft.words[-1].append(draft.next)
            ahead += 1
            pending, draft.next = [token], None
        if draft.words:
            return True
        if draft.next is None:
            self._answer.finish(FinishReason.CONTEXT_FULL)
        else:
            self._write_nudge([draft.next])
        return False

    def _is_whole(self, word: list[Read], token: int) -> bool:
        """Whether ``word`` ends before ``token``. A run of white space belongs to the word after it."""
        if len(word) >= _MAX_WORD:
            return True
        text = self._nudged_text(word)
        return starts_word(text_of(self._nudger_vocabulary, token)) and bool(text.strip()) and not incomplete(text)

    def _nudged_text(self, word: list[Read]) -> bytes:
        return b"".join(text_of(self._nudger_vocabulary, read.token) for read in word)

    async def _verify(self, draft: _Draft) -> list[Read | None]:
        """Read drafted words with the base, in one pass.

        Returns:
            For each of the first words, at least one, the base's read after it; None where there is none: inside a
            character, after a word without text, and after the last word of the answer. Empty if the answer ended
            because the base's context is full.
        """
        model, spelling = self._base.seq.model, self._of_base
        limit = self._context.limit(model) - self._base_prompt
        answer, ahead = bytes(self._data), 0
        places: list[int | None] = []  # of each word, the index of the base's token that ends it
        picks: dict[int, Pick] = {}
        stay, fixed = len(spelling.ids), 0
        for word in draft.words:
            answer += self._nudged_text(word)
            ahead += len(word)
            place = None
            if not incomplete(answer) and not self._is_last(draft, len(places), ahead):
                before = len(spelling.ids)
                kept = spelling.respell(answer, fixed)
                if kept is None:
                    break  # this word changes how the one before it is spelled, which has to be read first
                stay = min(stay, kept)
                if len(spelling.ids) >= limit:
                    if not places:
                        self._answer.finish(FinishReason.CONTEXT_FULL)
                        return []
                    if fixed:
                        spelling.cut(fixed)
                    break
                if spelling.ids and (kept, len(spelling.ids)) != (before, before):
                    fixed = len(spelling.ids)
                    place = fixed - 1
                    picks[place] = self._answer.pick(model, ahead)
            places.append(place)
        have = min(stay, len(self._base.seq.tokens) - self._base_prompt)
        self._base.reset(self._base_prompt + have, ())
        if not picks:
            return [None] * len(places)
        first = min(picks)
        wanted = [picks.get(i) for i in range(first, len(spelling.ids))]
        reads = await Extend(self._base.seq, spelling.ids[have:], wanted, self._answer.top)
        return [None if place is None else reads[place - first] for place in places]

    def _is_last(self, draft: _Draft, index: int, ahead: int) -> bool:
        """Whether the answer ends with the drafted word of that index, ``ahead`` tokens from here."""
        if index + 1 < len(draft.words):
            return False
        last = draft.next
        return ahead >= self._answer.remaining or (
            last is not None and self._answer.ends(self._nudger.model, last.token)
        )

    def _write_nudge(self, reads: list[Read]) -> None:
        model = self._nudger.model
        tokens = [self._answer.token(model, read) for read in reads]
        taken = self._answer.write(tokens)
        for token in tokens[:taken]:
            if not self._answer.ends(model, token.id):
                self._data += text_of(self._nudger_vocabulary, token.id)
                self._of_nudger.append(token.id)

    def _settle_base(self) -> None:
        """Cut the base's tokens, which may spell words that were drafted but not written, back to the answer."""
        size = len(self._of_base.shown(bytes(self._data)))
        self._of_base.cut(bisect_right(self._of_base.ends, size))
        self._base.reset(self._base_prompt + len(self._of_base.ids), ())

    # ---------------------------------------------------------------------------------------------------- loop guards

    def _guard(self) -> None:
        """Look for repetition now and then."""
        if len(self._answer.tokens) - self._checked < _CHECK_EVERY:
            return
        self._checked = len(self._answer.tokens)
        data = bytes(self._data)
        self._looping = repeats(data, _LOOP)
        if self._looping and repeats(data, _STUCK):
            self._answer.finish(FinishReason.REPETITION)


def _lead(vocabulary: VocabularyView, seq: Seq) -> bytes:
    """What a model puts before its answer: a space after a prompt that ends in visible text, else nothing."""
    last = seq.tokens[-1]
    return b"" if last in vocabulary.special_ids or vocabulary.piece(last)[-1:].isspace() else b" "
