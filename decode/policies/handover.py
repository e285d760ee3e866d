"""Nudging across vocabularies: control passes from model to model, word by word, as text.

The base writes while it is sure. Where it is unsure at the start of a word, the nudger drafts whole words; the base
reads them in one pass and takes over after the first word where it is sure again, or where its own next token agrees
with the nudger's (Fei et al., "Nudging", ACL 2025, section 3). Both caches stay: each model's tokens spell the same
answer (``bridge``), are rolled back to the last common one and caught up in one chunk.

Explicit rules where the published code has none or fails:

* The base's end-of-sequence token, and the next question that a base template invites, don't end an answer: the nudger
  is asked. The nudger's end-of-sequence token ends it.
* Every block is checked by the base, the last one too; nothing is appended unread.
* Control passes only between characters, and only where the base's own next token begins a word.
* The result doesn't depend on how many words are drafted at a time, only the cost does: one word first, then twice as
  many each time the base stays unsure.
* An answer that repeats itself is handed to the nudger; if that doesn't break the loop it ends with REPETITION.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trimtab.decode.answer import Answer
from trimtab.decode.draws.autoregressive import AutoregressiveDraw
from trimtab.decode.ops import Context, Extend, Read, Seq, VocabularyView
from trimtab.decode.policies.bridge import Spelling, incomplete, starts_word
from trimtab.decode.policies.repetition import repeats
from trimtab.decode.policies.trigger import fires
from trimtab.decode.types import FinishReason, Trigger

__all__ = ["Handover"]

_MAX_WORD = 16  # tokens after which a word counts as complete: some scripts have no spaces
_MAX_BLOCK = 16  # words drafted before the base reads them
_LOOP = 3  # copies that hand a repeating answer to the nudger
_STUCK = 6  # copies that end it
_CHECK_EVERY = 8  # tokens between looks for repetition


@dataclass(slots=True)
class _Draft:
    """What the nudger has drafted since it took over.

    Attributes:
        words: drafted, not yet accepted.
        next: the nudger's read for the token after them: the start of the next word, or EOS. It is already drawn, but
            not yet in its sequence.
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
        max_span: nudger tokens in a row before the base must write one; None: no bound.
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
            self._data += token.piece

    def _hands_over(self, read: Read) -> bool:
        """Whether the nudger writes instead of the base's ``read``."""
        if incomplete(self._data):
            return False
        if self._gives_up(read):
            return True
        if not (self._looping or fires(self._when, read)):
            return False
        piece = self._base_vocabulary.piece(read.token)
        return starts_word(piece) or not self._data or self._data[-1:].isspace()

    def _gives_up(self, read: Read) -> bool:
        """Whether the base would end its answer here: by EOS, or by turning to a question of its own."""
        if self._answer.ends(self._base.seq.model, read.token):
            return True
        head = self._base_vocabulary.piece(read.token).strip()
        if not head or not self._data.rstrip(b" ").endswith(b"\n"):
            return False
        return any(stop.startswith(head) or head.startswith(stop) for stop in self._stops)

    # ----------------------------------------------------------------------------------------------------- the nudger

    async def _nudge(self) -> Read | None:
        """Let the nudger write until the base takes over; returns the base's next token, None if the answer ended."""
        draft, block, written = _Draft(), 1, 0
        self._catch_up_nudger()
        while not self._answer.done:
            if not await self._draft(draft, block):
                return None
            reads = await self._verify(draft)
            if reads is None:
                return None
            for i in range(len(draft.words)):
                follower = draft.words[i + 1][0] if i + 1 < len(draft.words) else draft.next
                self._write_nudge(draft.words[i])
                written += len(draft.words[i])
                if self._answer.done:
                    return None
                back = reads[i]
                if back is None or follower is None:
                    continue
                spent = self._max_span is not None and written >= self._max_span
                if not self._gives_up(back) and (spent or self._takes_over(back, follower)):
                    self._settle_base()
                    return back
            self._guard()
            draft.words = []
            block = min(2 * block, _MAX_BLOCK)
            last = draft.next
            if not self._answer.done and last is not None and self._answer.ends(self._nudger.model, last.token):
                self._write_nudge([last])
                return None
        return None

    def _takes_over(self, read: Read, follower: Read) -> bool:
        """Whether the base goes on by itself, where the nudger would write ``follower``."""
        if self._answer.ends(self._nudger.model, follower.token):
            return False  # the end is the nudger's to say
        if self._looping:
            return True
        if not fires(self._when, read):
            return True
        own = self._base_vocabulary.piece(read.token)
        other = self._nudger_vocabulary.piece(follower.token)
        return bool(own.strip()) and bool(other.strip()) and (own.startswith(other) or other.startswith(own))

    def _catch_up_nudger(self) -> None:
        """Bring the nudger's sequence to the answer so far; what is new is computed with its first draft."""
        kept = self._of_nudger.respell(bytes(self._data))
        self._nudger.rewind(self._nudger_prompt + min(kept, len(self._nudger.tokens) - self._nudger_prompt))

    async def _draft(self, draft: _Draft, words: int) -> bool:
        """Draft ``words`` whole words after what is there, and the token after them; False if the answer ended."""
        model = self._nudger.model
        drafted = 0
        pending = [*self._of_nudger.ids[len(self._nudger.tokens) - self._nudger_prompt :]]
        while True:
            if draft.next is None:
                if len(self._nudger.tokens) + len(pending) >= self._context.limit(model):
                    self._answer.finish(FinishReason.CONTEXT_FULL)
                    return False
                pick = self._answer.pick(model, drafted)
                (draft.next,) = await Extend(self._nudger, pending, (pick,), self._answer.top)
                pending = []
            token = draft.next.token
            if self._answer.ends(model, token):
                if not draft.words:
                    self._write_nudge([draft.next])
                    return False
                return True
            piece = self._nudger_vocabulary.piece(token)
            current = draft.words[-1] if draft.words else None
            text = b"".join(self._nudger_vocabulary.piece(r.token) for r in current or ())
            # A run of white space belongs to the word after it.
            complete = current is not None and bool(text.strip()) and not incomplete(text)
            if current is None or (complete and (starts_word(piece) or len(current) >= _MAX_WORD)):
                if len(draft.words) == words:
                    return True
                draft.words.append([])
            elif drafted >= self._answer.remaining:
                return True  # the length limit falls inside this word
            draft.words[-1].append(draft.next)
            drafted += 1
            pending, draft.next = [token], None

    async def _verify(self, draft: _Draft) -> list[Read | None] | None:
        """Read the drafted words with the base, in one pass.

        Returns:
            For each word the base's read after it; None where its tokens don't end there or end inside a character.
            None instead of the list if the answer ended because the base's context is full.
        """
        answer = bytes(self._data)
        ends: list[int] = []
        counts: list[int] = []  # tokens of the answer up to the end of each word
        count = 0
        for word in draft.words:
            answer += b"".join(self._nudger_vocabulary.piece(read.token) for read in word)
            count += len(word)
            ends.append(len(answer))
            counts.append(count)
        if incomplete(answer):
            return [None] * len(draft.words)
        shown = self._of_base.shown
        kept = self._of_base.respell(answer)
        if self._base_prompt + len(self._of_base.ids) >= self._context.limit(self._base.seq.model):
            self._answer.finish(FinishReason.CONTEXT_FULL)
            return None
        self._base.reset(self._base_prompt + kept, ())
        places = {end: i for i, end in enumerate(self._of_base.ends)}
        at = [places.get(len(shown(answer[:end]))) for end in ends]
        known = [i for i in at if i is not None]
        if not known:
            return [None] * len(draft.words)
        model = self._base.seq.model
        first = min(known)
        ahead = {i: c for i, c in zip(at, counts, strict=True) if i is not None}
        picks = [
            self._answer.pick(model, ahead[i]) if i in ahead else None for i in range(first, len(self._of_base.ids))
        ]
        reads = await Extend(self._base.seq, self._of_base.ids[kept:], picks, self._answer.top)
        return [None if i is None else reads[i - first] for i in at]

    def _write_nudge(self, reads: list[Read]) -> None:
        model = self._nudger.model
        tokens = [self._answer.token(model, read) for read in reads]
        taken = self._answer.write(tokens)
        for token in tokens[:taken]:
            if not self._answer.ends(model, token.id):
                self._data += token.piece
                self._of_nudger.append(token.id)

    def _settle_base(self) -> None:
        """Cut the base's tokens, which may spell words that were drafted but not accepted, back to the answer."""
        size = len(self._of_base.shown(bytes(self._data)))
        while self._of_base.ends and self._of_base.ends[-1] > size:
            self._of_base.ids.pop()
            self._of_base.ends.pop()
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
