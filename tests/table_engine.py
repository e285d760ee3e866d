"""An engine of tables: ``Extend``, ``Draft`` and ``Verify`` in plain Python, written from the papers.

It notes what a cache would have had to compute, and which sequences are still open.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import table_models as tm
from table_models import Model, Row

from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.draws.block_draw import Drafter, ModelDrafter, SpeculativeDraw
from trimtab.decode.methods.draws.cross_vocabulary import CrossVocabularyDrafter
from trimtab.decode.methods.draws.length import Acceptance, Confidence, Fixed
from trimtab.decode.methods.draws.length_rules import TokenValue, rule
from trimtab.decode.methods.draws.lookup import CopyingDrafter, LookupDrafter, PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.ops import (
    Draft,
    Drafted,
    Extend,
    Gather,
    Given,
    Mixed,
    Read,
    Verify,
)
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import FinishReason, TokenDraw
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Filters, Key


class TableSeq:
    """A sequence that knows how much of it a cache would hold, and whose engine notes whether it was closed."""

    def __init__(self, owner: Tables, model: str, tokens: Sequence[int], computed: int = 0) -> None:
        self.owner, self.model, self.tokens, self.computed = owner, model, list(tokens), computed
        owner.open_sequences[self] = None

    def fork(self) -> TableSeq:
        assert self in self.owner.open_sequences
        return TableSeq(self.owner, self.model, self.tokens, self.computed)

    def rewind(self, length: int) -> None:
        assert self in self.owner.open_sequences
        assert 0 <= length <= len(self.tokens), f"rewind {len(self.tokens)} tokens to {length}"
        del self.tokens[length:]
        self.computed = min(self.computed, length)

    def close(self) -> None:
        self.owner.open_sequences.pop(self, None)


@dataclass
class Work:
    """What a model did in each forward pass: tokens read, those of them read before, and places read at."""

    read: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)

    @property
    def passes(self) -> int:
        return len(self.read)


def head(top_prob: float) -> float:
    """Stands for a trained acceptance head."""
    return 0.5 + top_prob / 2


# Tokens are dropped that stand with less than 0.65, those before them included; blocks also stop there.
VALUE = TokenValue((1.0,), seconds_per_token=1.0, verify=0.65, draft=0.0)


@dataclass
class Tables:
    """The ``Context`` of methods that run on tables.

    Attributes:
        models: by name.
        fault: a defect for negative controls, see ``verify``.
        declines: whether the engine, out of load, answers a draft with nothing; asked for each.
        shared: pairs of ids (draft's, target's) of foreign drafts.
        unread: what is read without a pick is NaN: for methods that have no use for it.
        work: of each model that has read something.
    """

    models: Mapping[str, Model]
    fault: str = ""
    declines: Callable[[], bool] = lambda: False
    shared: Sequence[tuple[int, int]] | None = None
    out_of_time: Callable[[], bool] = lambda: False
    unread: bool = False
    work: dict[str, Work] = field(default_factory=dict)
    open_sequences: dict[TableSeq, None] = field(default_factory=dict)
    drafted: int = 0
    accepted: int = 0
    passes: int = 0  # of targets: Extend and Verify
    blocks: list[int] = field(default_factory=list)
    dropped: int = 0

    def open(self, model: str, tokens: Sequence[int]) -> TableSeq:
        return TableSeq(self, model, tokens)

    def vocabulary(self, model: str) -> Any:
        return self.models[model].vocabulary

    def limit(self, model: str) -> int:
        found: int = self.models[model].limit
        return found

    def count(self, drafted: int, accepted: int) -> None:
        self.drafted += drafted
        self.accepted += accepted

    def copies(self, target: str, chance: float, most: int) -> int:
        assert target == "target"
        assert 0 < chance < 1
        return min(most, int(8 * chance))

    # ------------------------------------------------------------------------------------------------------------ ops

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a method to its end."""
        value: Any = None
        try:
            while True:
                op = coroutine.send(value)
                match op:
                    case Extend():
                        value = self.extend(op)
                    case Draft():
                        value = self.draft(op)
                    case Verify():
                        value = self.verify(op)
                    case Gather(children):
                        value = [self.drive(child) for child in children]
                    case _:
                        raise AssertionError(op)
        except StopIteration as stop:
            return stop.value

    def row(self, seq: Any, back: int) -> Row:
        """Logits after all but the last ``back`` tokens."""
        parts = seq.parts if isinstance(seq, Mixed) else (seq,)
        rows = []
        for part in parts:
            assert part in self.open_sequences
            rows.append(self.models[part.model].logits(part.tokens[: len(part.tokens) - back]))
        if len(rows) == 1:
            return rows[0]
        mixed: Row = sum(w * row for w, row in zip(seq.blend.weights, rows, strict=True))
        return mixed

    def forward(self, seq: Any, tokens: Sequence[int], wanted: int) -> None:
        """Append tokens, and note what a cache computes to read at the last ``wanted`` places."""
        parts: Any = seq.parts if isinstance(seq, Mixed) else (seq,)
        for part in parts:
            part.tokens.extend(tokens)
            total = len(part.tokens)
            assert 1 <= wanted <= total <= self.models[part.model].limit, (wanted, total, part.model)
            work = self.work.setdefault(part.model, Work())
            work.read.append(total - min(part.computed, total - wanted))
            work.again.append(max(0, part.computed - (total - wanted)))
            work.reads.append(wanted)
            part.computed = total

    def read(self, seq: Any, row: Row, token: int, top: int, draw: TokenDraw) -> Read:
        found: Read = tm.reading(row, token, self.models[seq.model].vocabulary.piece, top, draw)
        return found

    def extend(self, op: Extend) -> list[Read]:
        seq = op.seq
        self.forward(seq, op.tokens, len(op.picks))
        self.passes += 1
        reads = []
        for i, pick in enumerate(op.picks):
            if pick is None and self.unread:
                reads.append(Read(-1, np.nan, np.nan, np.nan, -1))
                continue
            back = len(op.picks) - 1 - i
            row, token = self.row(seq, back), -1
            if isinstance(pick, Given):
                token = pick.token
            elif pick is not None:
                token = tm.drawn(row, pick, seq.tokens[: len(seq.tokens) - back])
            reads.append(self.read(seq, row, token, op.top, TokenDraw.PLAIN))
        return reads

    def draft(self, op: Draft) -> Drafted:
        assert op.picks
        if self.declines():
            return Drafted(())
        seq, stop = op.seq, rule(op.length, value=VALUE if isinstance(op.length, Acceptance) else None)
        self.forward(seq, op.tokens, 1)
        ends = self.models[op.target].vocabulary.eos_token_ids
        size = self.models[op.target].vocabulary.size
        tokens: list[int] = []
        laws: list[Row] = []
        own = 0
        for pick in op.picks:
            if tokens:
                self.forward(seq, [own], 1)
            logits = self.row(seq, 0)
            if self.shared is not None:
                mine, theirs = np.array(self.shared).T
                logits, raw = np.full(size, -np.inf), logits
                logits[theirs] = raw[mine]
            q = tm.law(logits, pick, seq.tokens if self.shared is None else ())
            token = tm.inverse(q, tm.number(pick, "token"))
            top_prob = float(tm.softmax(logits).max())
            seen = float(token != logits.argmax()) if self.fault == "choosy" else head(top_prob)
            if not stop.keeps(top_prob, seen):
                self.dropped += 1
                break
            own = token if self.shared is None else int(mine[theirs == token][0])
            tokens.append(token)
            laws.append(q)
            if token in ends or len(tokens) >= stop.max_tokens or not stop.goes_on(top_prob):
                break
        if tokens:
            self.blocks.append(len(tokens))
        return Drafted(tuple(tokens), laws)

    def verify(self, op: Verify) -> list[Read]:
        """Speculative sampling (Leviathan et al., 2023, algorithm 1), or the target's own draws compared.

        Faults: "shifted" tests each token against the law of the place before it, "no residual" draws a correction
        from the target's whole law; "choosy", in ``draft``, drops tokens for what they are.
        """
        seq, tokens, drafted = op.seq, list(op.tokens), op.drafted.tokens
        assert drafted
        assert len(op.picks) == len(drafted) + 1
        self.forward(seq, [*tokens, *drafted], len(op.picks))
        self.passes += 1
        start = len(seq.tokens) - len(drafted)
        rows = [self.row(seq, len(drafted) - i) for i in range(len(op.picks))]
        laws = [tm.law(rows[i], pick, seq.tokens[: start + i]) for i, pick in enumerate(op.picks)]
        reads: list[Read] = []
        for i, (token, pick, p) in enumerate(zip(drafted, op.picks, laws, strict=False)):
            draw, found = TokenDraw.ACCEPTED, token
            if op.coupled:
                found = tm.inverse(p, tm.number(pick, "token"))
            else:
                source = op.drafted.source
                q = np.eye(len(p))[token] if source is None else source[i]  # type: ignore[index]
                tested = laws[max(i - 1, 0)] if self.fault == "shifted" else p
                if tm.number(pick, "accept") * q[token] >= tested[token]:
                    rest = np.maximum(p - q, 0) if self.fault != "no residual" else p
                    rest = rest if rest.sum() > 1e-12 else p
                    found = tm.inverse(rest / rest.sum(), tm.number(pick, "residual"))
                    draw = TokenDraw.CORRECTED
            if found != token:
                draw = TokenDraw.CORRECTED
            reads.append(self.read(seq, rows[i], found, op.top, draw))
            if draw is TokenDraw.CORRECTED:
                break
        else:
            found = tm.inverse(laws[-1], tm.number(op.picks[-1], "token"))
            reads.append(self.read(seq, rows[-1], found, op.top, TokenDraw.BONUS))
        keep = start + len(reads) - 1
        seq.rewind(keep)
        return reads


# ------------------------------------------------------------------------------------------------------------ answers


def answer_of(
    context: Any,
    stopping: Stopping | None = None,
    filters: Filters | None = None,
    seed: int = 0,
    *,
    model: str = "target",
    top: int = 0,
    **options: Any,
) -> Answer:
    chosen = filters or Filters()
    request = Request(model=model, prompt=(0,), stopping=stopping or Stopping(), top_logprobs=top)
    return Answer(context, request, Drawing(chosen, chosen, Key(seed)), **options)


async def write(draw: Any, answer: Answer) -> None:
    """What the simplest writer does with a draw."""
    while not answer.done:
        if draw.full:
            answer.finish(FinishReason.CONTEXT_FULL)
            return
        reads = await draw.propose()
        assert reads
        taken = answer.write([answer.token(draw.seq.model, read) for read in reads])
        draw.accept([read.token for read in reads[:taken]])


def speculate(context: Any, answer: Any, seq: Any, draw: Speculative, prompt: Sequence[int], same: bool = True) -> Any:
    """A speculative draw, with a draft's sequence opened at ``prompt``."""
    drafter: Drafter
    if isinstance(draw.draft, PromptLookup):
        tokens = draw.length.tokens if isinstance(draw.length, Fixed) else None
        drafter = LookupDrafter(seq.tokens, draw.draft.max_ngram, tokens, partial(context.copies, seq.model))
    else:
        own, length = context.open(draw.draft, prompt), draw.length or Confidence()
        text, limit = len(seq.tokens), context.limit(draw.draft)
        if same:
            drafter = ModelDrafter(own, seq.model, text, length, limit)
        else:
            spoken, heard = context.vocabulary(draw.draft), context.vocabulary(seq.model)
            drafter = CrossVocabularyDrafter(own, spoken, seq.model, heard, text, length, limit)
        if draw.copying is not None:
            tokens = length.tokens if isinstance(length, Fixed) else None
            pays = partial(context.copies, seq.model)
            drafter = CopyingDrafter(LookupDrafter(seq.tokens, draw.copying.max_ngram, tokens, pays), drafter)
    return SpeculativeDraw(context, answer, seq, drafter, coupled=draw.coupled)
