"""Drafts of another vocabulary: the tokens that are shared, texts in step, and answers that don't change."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import nudging_models as nm
import numpy as np
import pytest
import table_engine as tables
import table_models as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trimtab.decode.methods.draws.autoregressive import AutoregressiveDraw
from trimtab.decode.methods.draws.cross_vocabulary import shared_tokens
from trimtab.decode.methods.draws.length import Confidence, Fixed
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.request.result import TokenDraw
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Filters, Key, Pick

TARGET, DRAFT = nm.vocabulary("base"), nm.vocabulary("nudger")
PROMPT = (nm.special("base", "<bos>"), nm.token("base", " the"))
DRAFT_PROMPT = (nm.special("nudger", "<bos>"), nm.special("nudger", "<turn>"))
EOS = nm.special("base", "<eos>")
# " the" and "s" are tokens of both, " on" and "Que" only of the target, "and" only of the draft; two halves of "é".
SAYS = [" the", "s", " ", "a", " on", "Que", "n", b"\xc3", b"\xa9", "<eos>"]
DRAFTS = [" the", "s", " ", "a", "and", " sin", "n", "o", "<eos>"]
SHARED = shared_tokens(DRAFT, TARGET)


def test_shared_tokens_have_the_same_bytes() -> None:
    assert len(SHARED) > 250
    own, other = zip(*SHARED, strict=True)
    assert len(set(own)) == len(own)
    assert len(set(other)) == len(other)
    assert list(own) == sorted(own)
    for mine, theirs in SHARED:
        if mine != nm.special("nudger", "<eos>"):
            assert DRAFT.piece(mine) == TARGET.piece(theirs)
            assert mine not in DRAFT.special_ids
            assert theirs not in TARGET.special_ids
    assert (nm.special("nudger", "<eos>"), EOS) in SHARED
    of = dict(SHARED)
    assert of[nm.token("nudger", " the")] == nm.token("base", " the")
    assert nm.token("nudger", "and") not in of
    assert nm.token("base", "Que") not in other


def test_of_tokens_with_the_same_bytes_the_written_one_is_shared() -> None:
    class Twice(tm.Letters):  # type: ignore[misc]
        """Ids 0 to 2 are bytes that stand in for 3 to 5, as a byte fallback does."""

        def piece(self, token_id: int) -> bytes:
            piece: bytes = super().piece(token_id)
            return piece if token_id in self.special_ids else bytes([97 + token_id % 3])

        def encode(self, text: str, add_special_tokens: bool = True, *, continues: bool = False) -> list[int]:
            return [byte - 97 + 3 for byte in text.encode()]

    twice, once = Twice(7), tm.Letters(4)
    assert shared_tokens(twice, once) == [(3, 0), (4, 1), (5, 2), (6, 3)]
    assert shared_tokens(once, twice) == [(0, 3), (1, 4), (2, 5), (3, 6)]


def model(kind: str, seed: int, pieces: list[Any], order: int = 2, **limits: int) -> Any:
    """Random logits by the last *bytes* read, so that both models can agree."""
    own = nm.vocabulary(kind)
    ids = np.array([nm.token(kind, piece) for piece in pieces])
    names = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]
    found: dict[bytes, Any] = {}

    def logits(tokens: Any) -> Any:
        context = own.decode_bytes(tokens[max(2, len(tokens) - 6) :], skip_special_tokens=True)[-order:]
        if context not in found:
            row = np.full(own.size, -40.0)
            for token, name in zip(ids, names, strict=True):
                shared = np.random.default_rng((seed, *context, 256, *name))
                row[token] = 2.0 * shared.standard_normal() - 2.5 * (name == b"<eos>")
            found[context] = row
        return found[context]

    return tm.Model(own, logits, **limits)


def run(
    seed: int, draw: Speculative | None, filters: Filters, stopping: Stopping | None = None, **limits: int
) -> tuple[Any, Any]:
    models = {
        "target": model("base", seed, SAYS, limit=limits.get("target", 4096)),
        "draft": model("nudger", seed, DRAFTS, limit=limits.get("draft", 4096)),
    }
    context = tables.Tables(models, shared=SHARED)
    answer = tables.answer_of(context, stopping or Stopping(max_new_tokens=40), filters, seed, top=2)
    writer = make(context, answer, draw)
    context.drive(tables.write(writer, answer))
    writer.close()
    assert not context.open_sequences
    return answer.candidate(), context


def make(context: Any, answer: Any, draw: Speculative | None) -> Any:
    seq = context.open("target", PROMPT)
    if draw is None:
        return AutoregressiveDraw(context, answer, seq)
    return tables.speculate(context, answer, seq, draw, DRAFT_PROMPT, same=False)


def written(candidate: Any) -> tuple[Any, ...]:
    tokens = [(t.id, t.logprob, t.entropy, t.top_prob, t.top) for t in candidate.tokens]
    return tokens, candidate.text, candidate.finish_reason, candidate.stop_match


@pytest.mark.parametrize(
    ("length", "coupled"),
    [(Fixed(1), False), (Fixed(4), False), (Confidence(0.5, 8), False), (Fixed(3), True)],
    ids=str,
)
def test_greedy_and_coupled_drafts_change_nothing(length: Any, coupled: bool) -> None:
    kinds = Counter[TokenDraw]()
    for seed in range(16):
        rng = random.Random(seed)
        filters = Filters(temperature=0.8 if coupled else 0.0)
        stopping = Stopping(max_new_tokens=rng.choice((3, 24)), stop=rng.choice(((), ("s the",))))
        limits = rng.choice(({}, {}, {"target": 12}, {"draft": 9}))
        plain, _ = run(seed, None, filters, stopping, **limits)
        found, _ = run(seed, Speculative("draft", length, coupled), filters, stopping, **limits)
        assert written(found) == written(plain), seed
        kinds.update(token.draw for token in found.tokens)
    assert min(kinds[k] for k in (TokenDraw.ACCEPTED, TokenDraw.CORRECTED, TokenDraw.BONUS)) > 2


def p_value(draw: Speculative, filters: Filters, samples: int, fault: str = "") -> float:
    """Of the hypothesis that the first two tokens follow the target's own law."""
    models = {"target": model("base", 5, SAYS), "draft": model("nudger", 5, DRAFTS)}
    context = tables.Tables(models, shared=SHARED, fault=fault)
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(2):
        longer = {}
        for tokens, probability in expected.items():
            p = tm.law(models["target"].logits((*PROMPT, *tokens)), Pick(filters, Key(0), 0), ())
            longer.update({(*tokens, int(i)): probability * p[i] for i in np.flatnonzero(p > 1e-9)})
        expected = longer
    counts = Counter[tuple[int, ...]]()
    for i in range(samples):
        answer = tables.answer_of(context, Stopping(max_new_tokens=3, ignore_eos=True), filters, seed=i)
        writer = make(context, answer, draw)
        context.drive(tables.write(writer, answer))
        writer.close()
        counts[tuple(token.id for token in answer.tokens[:2])] += 1
    bins: list[tuple[float, int]] = [(0.0, 0)]
    for tokens in sorted(expected, key=expected.__getitem__):
        pair = (samples * expected[tokens], counts[tokens])
        bins = [*bins[:-1], (bins[-1][0] + pair[0], bins[-1][1] + pair[1])] if bins[-1][0] < 10 else [*bins, pair]
    assert len(bins) > 5
    statistic = sum((seen - wanted) ** 2 / wanted for wanted, seen in bins)
    return float(stats.chi2.sf(statistic, len(bins) - 1))


@pytest.mark.parametrize(
    ("filters", "samples"),
    [
        (Filters(temperature=1.2, top_p=0.9), 1000),
        pytest.param(Filters(temperature=1.0), 10_000, marks=pytest.mark.full),
        pytest.param(Filters(temperature=1.2, top_p=0.9), 10_000, marks=pytest.mark.full),
    ],
    ids=str,
)
def test_sampled_drafts_follow_the_targets_law(filters: Filters, samples: int) -> None:
    assert p_value(Speculative("draft", Fixed(2)), filters, samples=samples) > 1e-4


@pytest.mark.parametrize("fault", ["shifted", "no residual"])
def test_faults_of_verification_are_found(fault: str) -> None:
    assert p_value(Speculative("draft", Fixed(2)), Filters(temperature=1.0), samples=1000, fault=fault) < 1e-6


def test_another_law_than_the_drafts_own_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the mass of tokens that only the draft has were kept: q is too small for those that are shared."""
    honest = tables.Tables.draft

    def careless(self: Any, op: Any) -> Any:
        drafted = honest(self, op)
        return type(drafted)(drafted.tokens, [0.5 * q for q in drafted.source])

    monkeypatch.setattr(tables.Tables, "draft", careless)
    assert p_value(Speculative("draft", Fixed(2)), Filters(temperature=1.0), samples=1000) < 1e-6


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_texts_stay_in_step(seed: int, data: st.DataObject) -> None:
    """Random programs: what the draft has read spells the answer, or a beginning of it, and nothing stays open."""
    rng = random.Random(seed)
    models = {"target": model("base", seed % 100, SAYS), "draft": model("nudger", seed % 100, DRAFTS, limit=40)}
    context = tables.Tables(models, shared=SHARED)
    answer = tables.answer_of(context, Stopping(max_new_tokens=10_000), Filters(temperature=1.0), seed)
    alive = [(make(context, answer, Speculative("draft", Fixed(3))), list(PROMPT))]
    for _ in range(data.draw(st.integers(1, 20))):
        k = rng.randrange(len(alive))
        draw, text = alive[k]
        match data.draw(st.sampled_from(("propose", "propose", "accept", "accept", "other", "reset", "fork", "close"))):
            case "propose":
                before = len(context.blocks)
                context.drive(draw.propose())
                drafter = draw._drafter
                spelled = DRAFT.decode_bytes(drafter.seq.tokens[len(DRAFT_PROMPT) :], skip_special_tokens=True)
                told = TARGET.decode_bytes(text[len(PROMPT) :], skip_special_tokens=True)
                offered = TARGET.decode_bytes([r.token for r in draw._offered], skip_special_tokens=True)
                if len(context.blocks) > before:
                    # A block was drafted, so all the answer was read, bytes that are no characters as U+FFFD.
                    shown = spelled.decode(errors="replace").strip(" ")
                    whole = (told + offered).decode(errors="replace").strip(" ")
                    answered = told.decode(errors="replace").strip(" ")
                    common = len(_prefix(shown, whole))
                    assert common >= len(answered.rstrip("\ufffd")), (shown, whole, answered)
            case "accept" if draw._offered:
                taken = [read.token for read in draw._offered[: rng.randint(1, len(draw._offered))]]
                draw.accept(taken)
                text += taken
            case "other":
                token = nm.token("base", rng.choice(SAYS))
                draw.accept([token])
                text.append(token)
            case "reset":
                length = rng.randint(len(PROMPT), len(text))
                fresh = [nm.token("base", rng.choice(SAYS)) for _ in range(rng.randint(0, 2))]
                draw.reset(length, fresh)
                text[length:] = fresh
            case "fork" if len(alive) < 4:
                other = answer.fork(answer.key.child(len(text), rng.randrange(5)))
                alive.append((draw.fork(other), list(text)))
            case "close" if len(alive) > 1:
                draw.close()
                del alive[k]
        for other_draw, other_text in alive:
            assert other_draw.tokens() == other_text
    for draw, _ in alive:
        draw.close()
    assert not context.open_sequences


def _prefix(a: str, b: str) -> str:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return a[:n]


def test_most_of_a_block_is_read_once() -> None:
    """Only the tail is encoded anew: over an answer the draft reads hardly more than what it drafts and is told."""
    candidate, context = run(
        3, Speculative("draft", Fixed(3)), Filters(), Stopping(max_new_tokens=200, ignore_eos=True)
    )
    assert len(candidate.tokens) == 200
    read = sum(context.work["draft"].read)
    assert len(candidate.tokens) < read < 2 * (len(candidate.tokens) + context.drafted)


def test_nothing_is_drafted_inside_a_character() -> None:
    pieces = [b"\xc3", b"\xa9"]

    def logits(tokens: Any) -> Any:
        row = np.full(TARGET.size, -9.0)
        row[nm.token("base", pieces[len(tokens) % 2])] = 9.0
        return row

    models = {"target": tm.Model(TARGET, logits), "draft": model("nudger", 0, DRAFTS)}
    context = tables.Tables(models, shared=SHARED)
    answer = tables.answer_of(context, Stopping(max_new_tokens=8))
    context.drive(tables.write(make(context, answer, Speculative("draft", Fixed(2))), answer))
    assert answer.candidate().text == "é" * 4
    assert len(context.blocks) == 4
