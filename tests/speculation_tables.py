"""An engine of tables that speculates: ``Extend``, ``Draft`` and ``Verify`` in plain Python, written from the papers.

A table's logits depend on the last tokens read, so a wrong token anywhere changes what comes next. Draws are by inverse
transform from one number of (key, position, purpose): two draws with one key and one law give one token, which is what
coupled mode asks of a sampler.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from trimtab.decode.request.result import FinishReason, TokenDraw, TopLogprob
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Filters, Key, Pick

Row = NDArray[np.float64]


class Letters:
    """A vocabulary of single letters; the last id is EOS."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.eos_token_ids: tuple[int, ...] = (size - 1,)
        self.special_ids = frozenset(self.eos_token_ids)

    def piece(self, token_id: int) -> bytes:
        return b"<eos>" if token_id == self.size - 1 else bytes([97 + token_id])

    def encode(self, text: str, add_special_tokens: bool = True, *, continues: bool = False) -> list[int]:
        return [byte - 97 for byte in text.encode()]


@dataclass(frozen=True)
class Model:
    """A vocabulary and the logits [V] after any sequence."""

    vocabulary: Any
    logits: Callable[[Sequence[int]], Row]
    limit: int = 4096


def table(
    size: int, seed: int, *, order: int = 2, like: Model | None = None, noise: float = 1.0, **limits: int
) -> Model:
    """Random logits after the last ``order`` tokens; with ``like``, those of another model and noise."""
    found: dict[tuple[int, ...], Row] = {}

    def logits(tokens: Sequence[int]) -> Row:
        context = tuple(tokens[-order:])
        if context not in found:
            row = np.random.default_rng((seed, len(context), *context)).standard_normal(size)
            if like is not None:
                row = like.logits(tokens) + noise * row
            else:
                row *= 1.5
                row[-1] -= 2.0  # EOS is rarer
            found[context] = row
        return found[context]

    return Model(Letters(size), logits, **limits)


def law(logits: Row, pick: Pick, seen: Sequence[int]) -> Row:
    """The distribution that a token is drawn from."""
    z, filters = logits.copy(), pick.filters
    if filters.repetition_penalty != 1.0:
        for i in set(seen):
            z[i] = z[i] / filters.repetition_penalty if z[i] > 0 else z[i] * filters.repetition_penalty
    for i, bias in filters.bias.items():
        z[i] += bias
    z[list(pick.banned)] = -np.inf
    if filters.temperature == 0:
        return np.eye(len(z))[z.argmax()]
    p = softmax(z / filters.temperature)
    order = np.argsort(-p, kind="stable") if filters.top_k or filters.top_p < 1 else np.arange(0)
    if filters.top_k:
        p[order[filters.top_k :]] = 0
        p /= p.sum()
    if filters.top_p < 1:
        p[order[np.cumsum(p[order]) - p[order] >= filters.top_p]] = 0
    p[p < filters.min_p * p.max()] = 0
    result: Row = p / p.sum()
    return result


def softmax(z: Row) -> Row:
    weights: Row = np.exp(z - z.max())
    return weights / weights.sum()


def number(pick: Pick, purpose: str) -> float:
    return random.Random(f"{pick.key.bits}/{pick.position}/{purpose}").random()


def inverse(p: Row, u: float) -> int:
    return min(int(np.searchsorted(np.cumsum(p), u, side="right")), int(np.flatnonzero(p)[-1]))


class TableSeq:
    """A sequence whose engine notes whether it was closed."""

    def __init__(self, owner: Tables, model: str, tokens: Sequence[int]) -> None:
        self.owner, self.model, self.tokens = owner, model, list(tokens)
        owner.open_sequences[self] = None

    def fork(self) -> TableSeq:
        assert self in self.owner.open_sequences
        return TableSeq(self.owner, self.model, self.tokens)

    def rewind(self, length: int) -> None:
        assert self in self.owner.open_sequences
        assert 0 <= length <= len(self.tokens), f"rewind {len(self.tokens)} tokens to {length}"
        del self.tokens[length:]

    def close(self) -> None:
        self.owner.open_sequences.pop(self, None)


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
    """

    models: Mapping[str, Model]
    fault: str = ""
    declines: Callable[[], bool] = lambda: False
    shared: Sequence[tuple[int, int]] | None = None
    out_of_time: Callable[[], bool] = lambda: False
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
        return self.models[model].limit

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
            assert len(part.tokens) <= self.models[part.model].limit, "beyond the context"
            rows.append(self.models[part.model].logits(part.tokens[: len(part.tokens) - back]))
        if len(rows) == 1:
            return rows[0]
        mixed: Row = sum(w * row for w, row in zip(seq.blend.weights, rows, strict=True))  # type: ignore[assignment]
        return mixed

    def read(self, seq: Any, back: int, token: int, top: int, draw: TokenDraw) -> Read:
        p = softmax(self.row(seq, back))
        logp = np.log(p)
        piece = self.models[seq.model].vocabulary.piece
        ranked = np.argsort(-p, kind="stable")[:top] if top else ()
        best = tuple(TopLogprob(int(i), piece(int(i)), float(logp[i])) for i in ranked)
        return Read(token, float(logp[token]), float(-(p * logp).sum()), float(p.max()), int(p.argmax()), best, draw)

    def extend(self, op: Extend) -> list[Read]:
        seq = op.seq
        append(seq, op.tokens)
        self.passes += 1
        reads = []
        for i, pick in enumerate(op.picks):
            back = len(op.picks) - 1 - i
            seen = seq.tokens[: len(seq.tokens) - back]
            token = -1
            if isinstance(pick, Given):
                token = pick.token
            elif pick is not None:
                token = inverse(law(self.row(seq, back), pick, seen), number(pick, "token"))
            reads.append(self.read(seq, back, token, op.top, TokenDraw.PLAIN))
        return reads

    def draft(self, op: Draft) -> Drafted:
        assert op.picks
        if self.declines():
            return Drafted(())
        seq, stop = op.seq, rule(op.length, value=VALUE if isinstance(op.length, Acceptance) else None)
        append(seq, op.tokens)
        ends = self.models[op.target].vocabulary.eos_token_ids
        size = self.models[op.target].vocabulary.size
        tokens: list[int] = []
        laws: list[Row] = []
        own = 0
        for pick in op.picks:
            if tokens:
                append(seq, [own])
            logits = self.row(seq, 0)
            if self.shared is not None:
                mine, theirs = np.array(self.shared).T
                logits, raw = np.full(size, -np.inf), logits
                logits[theirs] = raw[mine]
            q = law(logits, pick, seq.tokens if self.shared is None else ())
            token = inverse(q, number(pick, "token"))
            top_prob = float(softmax(logits).max())
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
        append(seq, [*tokens, *drafted])
        self.passes += 1
        start = len(seq.tokens) - len(drafted)
        laws = []
        for i, pick in enumerate(op.picks):
            laws.append(law(self.row(seq, len(drafted) - i), pick, seq.tokens[: start + i]))
        reads: list[Read] = []
        for i, (token, pick, p) in enumerate(zip(drafted, op.picks, laws, strict=False)):
            draw, found = TokenDraw.ACCEPTED, token
            if op.coupled:
                found = inverse(p, number(pick, "token"))
            else:
                source = op.drafted.source
                q = np.eye(len(p))[token] if source is None else source[i]  # type: ignore[index]
                tested = laws[max(i - 1, 0)] if self.fault == "shifted" else p
                if number(pick, "accept") * q[token] >= tested[token]:
                    rest = np.maximum(p - q, 0) if self.fault != "no residual" else p
                    rest = rest if rest.sum() > 1e-12 else p
                    found = inverse(rest / rest.sum(), number(pick, "residual"))
                    draw = TokenDraw.CORRECTED
            if found != token:
                draw = TokenDraw.CORRECTED
            reads.append(self.read(seq, len(drafted) - i, found, op.top, draw))
            if draw is TokenDraw.CORRECTED:
                break
        else:
            found = inverse(laws[-1], number(op.picks[-1], "token"))
            reads.append(self.read(seq, 0, found, op.top, TokenDraw.BONUS))
        keep = start + len(reads) - 1
        seq.rewind(keep)
        return reads


def append(seq: Any, tokens: Sequence[int]) -> None:
    for part in seq.parts if isinstance(seq, Mixed) else (seq,):
        part.tokens.extend(tokens)


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
        taken = answer.write([answer.token(draw.seq.model, read, read.draw) for read in reads])
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
