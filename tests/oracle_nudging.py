"""Nudging in the plainest way: no caches, no blocks, no coroutines; every distribution is computed from the start.

The oracle keeps two lists of tokens, writes one word at a time, and reads each model after the whole of what it has
seen. It shares only the vocabularies and the loop guard with the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.repetition import repeats
from trimtab.decode.methods.policies.trigger import (
    Branching,
    Entropy,
    TopProb,
    Trigger,
)
from trimtab.decode.request.result import FinishReason
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.text.vocabulary import Vocabulary

# After these tokens, from this model, at this position of the answer, with these ids banned: the drawn token, the
# entropy and the top probability.
Reader = Callable[[Sequence[int], int, Sequence[int]], tuple[int, float, float]]

MAX_WORD = 16

# Why a model writes a token: the name of the reason, and the entropy and top probability of the base there, if asked.
Why = tuple[str, float | None, float | None]
INSIDE: Why = ("within_word", None, None)


@dataclass
class Speaker:
    """A model with what it has read of the answer.

    Attributes:
        spelled: (token, end of its bytes in what the model was shown).
        lead: spaces that the model has before an answer.
        begun: the answer goes on where the prompt ends, without spaces of its own.
    """

    name: str
    vocabulary: Vocabulary
    reader: Reader
    prompt: Sequence[int]
    limit: int
    spelled: list[tuple[int, int]] = field(default_factory=list)
    lead: bytes = b""
    begun: bool = False

    def __post_init__(self) -> None:
        last = self.prompt[-1]
        if self.begun:
            return
        if last not in self.vocabulary.special_ids and not self.vocabulary.piece(last)[-1:].isspace():
            self.lead = b" "

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *(token for token, _ in self.spelled)]

    def text(self, token: int) -> bytes:
        return b"" if token in self.vocabulary.special_ids else self.vocabulary.piece(token)

    def wrote(self, token: int) -> None:
        end = self.spelled[-1][1] if self.spelled else 0
        text = self.text(token)
        if not self.spelled and not self.begun:
            self.lead = b""
        if end == len(self.lead) and not self.begun:
            self.lead += b" " * (len(text) - len(text.lstrip(b" ")))
        self.spelled.append((token, end + len(text)))

    def hear(self, answer: bytes) -> bool:
        """Spell the answer anew from the last settled word on; whether anything changed."""
        body = answer.lstrip(b" ")
        shown = answer if self.begun else self.lead + body if body or self.spelled else b""
        read = self.spelled[-1][1] if self.spelled else 0
        if self.spelled and read == len(shown):
            return False
        settled, start = 0, 0
        for p in range(1, len(shown)):
            if p <= read and shown[p] in b" \t" and not shown[p - 1 : p].isspace():
                here = [k for k, (_, end) in enumerate(self.spelled) if end == p]
                if here:
                    settled, start = here[-1] + 1, p
        before = self.tokens
        del self.spelled[settled:]
        tail = shown[start:].decode(errors="replace")
        ids = self.vocabulary.encode(tail, False, continues=True)
        ends = self._ends(ids, tail, shown[start:])
        self.spelled += [(token, start + end) for token, end in zip(ids, ends, strict=True)]
        return self.tokens != before

    def _ends(self, ids: list[int], tail: str, raw: bytes) -> list[int]:
        pieces = [self.vocabulary.piece(token) for token in ids]
        if b"".join(pieces) == raw:
            return [len(b"".join(pieces[: k + 1])) for k in range(len(pieces))]
        # Normalised, or not UTF-8: a token ends where the next begins, and the tokens of one character together.
        widths = []  # bytes of ``raw`` behind each character of the tail
        rest = raw
        for _ in tail:
            width = next(
                n
                for n in range(1, len(rest) + 1)
                if len(rest[n:].decode(errors="replace")) < len(rest.decode(errors="replace"))
            )
            widths.append(width)
            rest = rest[width:]
        starts = self.vocabulary.encode_with_offsets(tail, False, continues=True).starts
        characters = [len(tail.encode()[:s].decode(errors="ignore")) for s in starts]
        places = [sum(widths[:c]) for c in characters] + [len(raw)]
        return [next((p for p in places[k + 1 :] if p > places[k]), len(raw)) for k in range(len(ids))]


@dataclass
class Told:
    """The oracle's answer."""

    tokens: list[tuple[str, int]] = field(default_factory=list)
    why: list[Why] = field(default_factory=list)  # of each token
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_match: str | None = None
    events: set[str] = field(default_factory=set)


class Oracle:
    """Writes one answer; see ``cross_vocabulary``'s rules."""

    def __init__(
        self, base: Speaker, nudger: Speaker, policy: Nudged, stopping: Stopping, template_stops: Sequence[str] = ()
    ) -> None:
        assert policy.when is not None
        self.base, self.nudger, self.policy, self.stopping = base, nudger, policy, stopping
        self.when: Trigger = policy.when
        self.template_stops = [stop.lstrip("\n").encode() for stop in template_stops]
        self.data = b""  # of the answer: what both models are told
        self.out = Told()
        self.checked, self.looping = 0, False

    # ------------------------------------------------------------------------------------------------------- the rules

    def unsure(self, entropy: float, top_prob: float) -> bool:
        match self.when:
            case Entropy(above):
                return entropy > above
            case Branching(above):
                return entropy > math.log(above)
            case TopProb(below):
                return top_prob < below

    def is_eos(self, speaker: Speaker, token: int) -> bool:
        return not self.stopping.ignore_eos and token in speaker.vocabulary.eos_token_ids

    def read(self, speaker: Speaker, tokens: Sequence[int], position: int) -> tuple[int, float, float]:
        early = position < self.stopping.min_new_tokens
        banned: set[int] = set()
        if early or self.stopping.ignore_eos:
            banned |= set(speaker.vocabulary.eos_token_ids)
        if speaker is self.base:
            stops = set(self.stopping.stop_token_ids)
            banned = banned | stops if early else banned - stops
        return speaker.reader(tokens, position, sorted(banned))

    def gives_up(self, token: int) -> bool:
        if self.is_eos(self.base, token):
            return True
        whole = self.base.text(token)
        head = whole.strip()
        line = (self.data + whole[: whole.index(head)]).rstrip(b" ") if head else b""
        at_line_start = line.endswith(b"\n")
        return at_line_start and any(s.startswith(head) or head.startswith(s) for s in self.template_stops)

    def inside_character(self, data: bytes) -> bool:
        """Whether some continuation makes fewer replacement characters of it than a full stop does."""
        count = data.decode(errors="replace").count("\ufffd")
        return any(
            (data + more).decode(errors="replace").count("\ufffd") < count
            for more in (
                b"\x80",
                b"\x80\x80",
                b"\x80\x80\x80",
                b"\xa0\x80",
                b"\xa0",
                b"\x90\x80\x80",
                b"\x90\x80",
                b"\x90",
            )
        )

    # -------------------------------------------------------------------------------------------------------- writing

    def write(self, speaker: Speaker, token: int, why: Why) -> bool:
        """Write one token; whether the answer goes on."""
        out, stopping = self.out, self.stopping
        out.tokens.append((speaker.name, token))
        out.why.append(why)
        if self.is_eos(speaker, token):
            out.finish_reason = FinishReason.EOS
        elif speaker is self.base and token in stopping.stop_token_ids:
            eos = token in speaker.vocabulary.eos_token_ids
            out.finish_reason = FinishReason.EOS if eos else FinishReason.STOP
        if out.finish_reason:
            return False
        shorter = self._settled_text()
        self.data += speaker.text(token)
        speaker.wrote(token)
        if self.stopped(shorter, self._settled_text()):
            return False
        if len(out.tokens) >= stopping.max_new_tokens:
            out.finish_reason = FinishReason.MAX_NEW_TOKENS
        return out.finish_reason is None

    def stopped(self, shorter: str, longer: str) -> bool:
        """Whether a stop string ends in what makes ``longer`` of ``shorter``."""
        out, stopping = self.out, self.stopping
        hits = [
            (end, -len(stop), stop)
            for stop in stopping.stop
            for end in range(len(shorter) + 1, len(longer) + 1)
            if longer[:end].endswith(stop) and len(out.tokens) >= stopping.min_new_tokens
        ]
        if hits:
            end, _, out.stop_match = min(hits)
            out.finish_reason = FinishReason.STOP
            out.text = longer[: end if stopping.include_stop else end - len(out.stop_match)]
        return bool(hits)

    def _settled_text(self) -> str:
        text = self.data.decode(errors="replace")
        return text[:-1] if self.inside_character(self.data) else text

    def guard(self) -> bool:
        if len(self.out.tokens) - self.checked >= 8:
            self.checked = len(self.out.tokens)
            self.looping = repeats(self.data, 3)
            if self.looping and repeats(self.data, 6):
                self.out.finish_reason = FinishReason.REPETITION
        return self.out.finish_reason is None

    def run(self) -> Told:
        out = self.out
        while out.finish_reason is None:
            if len(self.base.tokens) >= self.base.limit:
                out.finish_reason = FinishReason.CONTEXT_FULL
                break
            token, entropy, top_prob = self.read(self.base, self.base.tokens, len(out.tokens))
            if not self.guard():
                break
            unsure = self.looping or self.unsure(entropy, top_prob)
            boundary = self.base.text(token)[:1].isspace() or not self.data or self.data[-1:].isspace()
            if self.gives_up(token) or (unsure and boundary and not self.inside_character(self.data)):
                out.events.add("gave up" if self.gives_up(token) else "unsure")
                reason = "looping" if not self.unsure(entropy, top_prob) else "unsure"
                own = self.nudge(("base_ends" if self.gives_up(token) else reason, entropy, top_prob))
                if own is not None:
                    self.write(self.base, *own)
            else:
                # At a word's start a base that is unsure would have handed over.
                inside = self.unsure(entropy, top_prob)
                self.write(self.base, token, ("within_word" if inside else "sure", entropy, top_prob))
        if out.stop_match is None:
            out.text = self.data.decode(errors="replace")
            self.stopped(self._settled_text(), out.text)
        return out

    def nudge(self, why: Why) -> tuple[int, Why] | None:
        """Words of the nudger, the first for the reason ``why``, until the base takes over with what is returned."""
        base, nudger, out = self.base, self.nudger, self.out
        nudger.hear(self.data)
        written = words = 0
        while True:
            word, follower = self.word()
            ending = follower is not None and self.is_eos(nudger, follower)
            if not word:
                if follower is None:
                    out.finish_reason = FinishReason.CONTEXT_FULL
                else:
                    self.write(nudger, follower, why)
                return None
            told = self.data + b"".join(map(nudger.text, word))
            position = len(out.tokens) + len(word)
            back = None
            if self.inside_character(told):
                out.events.add("word ends inside a character")
            elif not ending and position < self.stopping.max_new_tokens:
                changed = base.hear(told)
                if len(base.tokens) >= base.limit:
                    out.finish_reason = FinishReason.CONTEXT_FULL
                    return None
                if changed and base.spelled:
                    back = self.read(base, base.tokens, position)
            for i, token in enumerate(word):
                if not self.write(nudger, token, INSIDE if i else why):
                    return None
            written += len(word)
            words += 1
            if words > 3:
                out.events.add("long span")
            why = ("nudger_ends", None, None) if ending else INSIDE
            if back is not None and not ending:
                sure = not self.unsure(back[1], back[2])
                why = ("unsure", back[1], back[2])
                if self.gives_up(back[0]):
                    why = ("base_ends", back[1], back[2])
                elif self.policy.max_span_tokens is not None and written >= self.policy.max_span_tokens:
                    out.events.add("spent")
                    reason = "sure" if sure else "looping" if self.looping else "span_spent"
                    return back[0], (reason, back[1], back[2])
                elif self.looping or sure:
                    out.events.add("sure again")
                    return back[0], ("sure" if sure else "looping", back[1], back[2])
                elif follower is not None:
                    mine, other = base.text(back[0]), nudger.text(follower)
                    if mine.strip() and other.strip() and (mine.startswith(other) or other.startswith(mine)):
                        out.events.add("agreed")
                        return back[0], ("agreed", back[1], back[2])
            if not self.guard():
                return None

    def word(self) -> tuple[list[int], int | None]:
        """The nudger's next word, and the token that it would write after it, if there is room for one."""
        nudger, word = self.nudger, list[int]()
        while True:
            if len(self.out.tokens) + len(word) >= self.stopping.max_new_tokens:
                return word, None
            context = [*nudger.tokens, *word]
            if len(context) >= nudger.limit:
                return word, None
            token, _, _ = self.read(nudger, context, len(self.out.tokens) + len(word))
            if self.is_eos(nudger, token):
                return word, token
            text = b"".join(map(nudger.text, word))
            whole = text.strip() and nudger.text(token)[:1].isspace() and not self.inside_character(text)
            if len(word) >= MAX_WORD or whole:
                return word, token
            word.append(token)


def tell(case: Any, readers: Callable[[Any, str], Reader]) -> Told:
    """The oracle's answer to a ``nudging_models.Case``; ``readers(model, name)`` makes the way a model is read."""
    base = Speaker("base", case.base.vocabulary, readers(case.base, "base"), case.base_prompt, case.base.limit)
    nudger = Speaker(
        "nudger", case.nudger.vocabulary, readers(case.nudger, "nudger"), case.nudger_prompt, case.nudger.limit
    )
    return Oracle(base, nudger, case.policy, case.stopping, case.stops).run()
