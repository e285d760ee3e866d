"""Speculation on tables: what is written equals plain decoding in token or in law, and sequences stay in step."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import table_engine as tables
import table_models as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from trimtab.decode.methods.draws.autoregressive import AutoregressiveDraw
from trimtab.decode.methods.draws.block_draw import SpeculativeDraw
from trimtab.decode.methods.draws.length import Acceptance, Confidence, Fixed
from trimtab.decode.methods.draws.lookup import CopyingDrafter, PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.ops import Mixed
from trimtab.decode.request.result import TokenDraw
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Blend, Filters, Key, Pick

PROMPT = (0, 1, 0, 2)
DRAFT_PROMPT = (2, 1, 0, 1, 0, 2)  # another one, which ends alike
SIZE = 6
EOS = SIZE - 1
LENGTHS = (Fixed(1), Fixed(3), Fixed(8), Confidence(0.5, 6), Acceptance(8), Acceptance(5, stop=0.3))
DRAWS = [
    *(Speculative("draft", length) for length in LENGTHS),
    Speculative(PromptLookup(2)),
    Speculative(PromptLookup(3), Fixed(4)),
    Speculative("draft", Fixed(3), copying=PromptLookup(2)),
    Speculative("draft", Confidence(0.5), copying=PromptLookup(3)),
]


def make(
    context: Any, answer: Any, draw: Speculative | None, *, mixed: bool = False, prompt: tuple[int, ...] = PROMPT
) -> Any:
    """A draw of the target, or of a mixture of it and an expert; None: one token per pass."""
    seq = context.open("target", prompt)
    if mixed:
        seq = Mixed([seq, context.open("expert", DRAFT_PROMPT)], Blend((1.0, 0.5)))
    if draw is None:
        return AutoregressiveDraw(context, answer, seq)
    return tables.speculate(context, answer, seq, draw, DRAFT_PROMPT)


def models(seed: int, noise: float = 1.0, **limits: int) -> dict[str, Any]:
    target = tm.table(SIZE, seed, **limits)
    return {
        "target": target,
        "draft": tm.table(SIZE, seed + 1, like=target, noise=noise),
        "expert": tm.table(SIZE, seed + 2),
    }


def run(
    models: dict[str, Any],
    draw: Speculative | None,
    stopping: Stopping,
    filters: Filters,
    seed: int = 0,
    mixed: bool = False,
    top: int = 0,
    **options: Any,
) -> tuple[Any, Any]:
    context = tables.Tables(models, **options)
    answer = tables.answer_of(context, stopping, filters, seed, top=top)
    writer = make(context, answer, draw, mixed=mixed)
    context.drive(tables.write(writer, answer))
    writer.close()
    assert not context.open_sequences
    return answer.candidate(), context


def written(candidate: Any) -> tuple[Any, ...]:
    """All that plain decoding must say, too: everything but how a token was drawn."""
    tokens = [(t.id, t.logprob, t.entropy, t.top_prob, t.top) for t in candidate.tokens]
    return tokens, candidate.text, candidate.finish_reason, candidate.stop_match


def random_case(seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    most = rng.choice((1, 2, 5, 30))
    return {
        "models": models(
            seed,
            rng.choice((0.0, 0.5, 3.0)),
            limit=rng.choice((4096, 4096, len(PROMPT) + rng.randrange(1, 12))),
        ),
        "stopping": Stopping(
            max_new_tokens=most,
            min_new_tokens=rng.choice((0, 0, min(most, 4))),
            stop=rng.choice(((), (), ("ab", "c"))),
            stop_token_ids=rng.choice(((), (), (3,))),
            ignore_eos=rng.random() < 0.3,
        ),
        "mixed": rng.random() < 0.3,
        "top": rng.choice((0, 2)),
        "seed": seed,
    }


# ------------------------------------------------------------------------------------------------ equal to plain


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_greedy_speculation_writes_what_plain_decoding_writes(draw: Speculative) -> None:
    fewer = 0
    for seed in range(60):
        case = random_case(seed)
        rng = random.Random(seed)
        filters = Filters(repetition_penalty=rng.choice((1.0, 1.3)), bias=rng.choice(({}, {1: 1.0})))
        plain, alone = run(**case, draw=None, filters=filters)
        rng = random.Random(seed)
        found, context = run(**case, draw=draw, filters=filters, declines=lambda rng=rng: rng.random() < 0.2)
        assert written(found) == written(plain), seed
        assert context.passes <= alone.passes
        fewer += alone.passes - context.passes
    assert fewer > 0


@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_coupled_speculation_writes_what_plain_decoding_writes(draw: Speculative) -> None:
    coupled = replace(draw, coupled=True)
    kinds = Counter[TokenDraw]()
    for seed in range(40):
        case = random_case(seed)
        filters = Filters(temperature=0.9, top_p=(1.0, 0.8)[seed % 2], repetition_penalty=(1.0, 1.2)[seed % 3 == 0])
        plain, _ = run(**case, draw=None, filters=filters)
        found, _ = run(**case, draw=coupled, filters=filters)
        assert written(found) == written(plain), seed
        kinds.update(token.draw for token in found.tokens)
    assert set(kinds) == {TokenDraw.ACCEPTED, TokenDraw.CORRECTED, TokenDraw.BONUS, TokenDraw.PLAIN}


def test_uncoupled_speculation_writes_other_tokens() -> None:
    """So the test above has something to find."""
    case = {"models": models(0), "stopping": Stopping(max_new_tokens=30, ignore_eos=True)}
    filters = Filters(temperature=1.0)
    plain, _ = run(**case, draw=None, filters=filters)
    found, _ = run(**case, draw=Speculative("draft", Fixed(3)), filters=filters)
    assert written(found) != written(plain)


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("most", range(1, 12))
def test_the_end_at_every_place_inside_a_block(draw: Speculative, most: int) -> None:
    """EOS, a stop string, a stop token, the limit and either context, each reached after ``most`` tokens."""
    says = [0, 1, 2, 3, 0, 1, 3, 2, 1, 0, 2, 3, 1, 1, 2]
    said = [*says[: most - 1], EOS]

    def scripted(script: list[int], **limits: int) -> Any:
        def logits(tokens: Any) -> Any:
            place = len(tokens) - len(PROMPT)
            return 9.0 * np.eye(SIZE)[script[place] if place < len(script) else 4]

        return tm.Model(tm.Letters(SIZE), logits, **limits)

    ends = {
        "eos": ({"target": scripted(said)}, Stopping(max_new_tokens=40)),
        "stop": ({"target": scripted([*says[: most - 1], 4])}, Stopping(max_new_tokens=40, stop=("e",))),
        "stop token": ({"target": scripted([*says[: most - 1], 4])}, Stopping(max_new_tokens=40, stop_token_ids=(4,))),
        "length": ({"target": scripted(says)}, Stopping(max_new_tokens=most)),
        "context": ({"target": scripted(says, limit=len(PROMPT) + most)}, Stopping(max_new_tokens=40)),
    }
    for name, (own, stopping) in ends.items():
        sure = {**own, "draft": own["target"]}
        for draft_limit in (4096, len(PROMPT) + most, len(PROMPT) + max(1, most // 2)):
            sure["draft"] = tm.Model(own["target"].vocabulary, own["target"].logits, draft_limit)
            candidates = []
            for kind in (None, draw):
                context = tables.Tables(sure)
                answer = tables.answer_of(context, stopping)
                seq = context.open("target", PROMPT)
                if kind is None:
                    writer: Any = AutoregressiveDraw(context, answer, seq)
                else:
                    writer = tables.speculate(context, answer, seq, kind, PROMPT)
                context.drive(tables.write(writer, answer))
                candidates.append(answer.candidate())
            assert written(candidates[0]) == written(candidates[1]), (name, draft_limit)
            assert len(candidates[1].tokens) == most


# --------------------------------------------------------------------------------------------------------- equal in law


def joint_law(models: dict[str, Any], filters: Filters, length: int, mixed: bool) -> dict[tuple[int, ...], float]:
    """Probability of every beginning of an answer, by enumeration."""
    context = tables.Tables(models)
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for tokens, probability in found.items():
            seq: Any = context.open("target", (*PROMPT, *tokens))
            if mixed:
                seq = Mixed([seq, context.open("expert", (*DRAFT_PROMPT, *tokens))], Blend((1.0, 0.5)))
            p = tm.law(context.row(seq, 0), Pick(filters, Key(0), 0), (*PROMPT, *tokens))
            longer.update({(*tokens, i): probability * p[i] for i in np.flatnonzero(p)})
        found = longer
    return found


def p_value(
    seed: int,
    draw: Speculative | None,
    filters: Filters,
    *,
    samples: int,
    mixed: bool = False,
    writing: Callable[[Any, Any], Any] = tables.write,
    **options: Any,
) -> float:
    """Of the hypothesis that the first three tokens follow the target's own law."""
    own = models(seed, noise=1.0)
    expected = joint_law(own, filters, 3, mixed)
    context = tables.Tables(own, **options)
    counts = Counter[tuple[int, ...]]()
    stopping = Stopping(max_new_tokens=4, ignore_eos=True)  # one more: else no block covers the third
    for i in range(samples):
        answer = tables.answer_of(context, stopping, filters, seed=1000 * seed + i)
        writer = make(context, answer, draw, mixed=mixed)
        context.drive(writing(writer, answer))
        writer.close()
        counts[tuple(token.id for token in answer.tokens[:3])] += 1
    assert set(counts) <= set(expected)
    ordered = sorted(expected, key=expected.__getitem__)
    bins: list[tuple[float, int]] = []  # (expected, seen), pooled to an expectation of at least 10
    for tokens in ordered:
        pair = (samples * expected[tokens], counts[tokens])
        if bins and bins[-1][0] < 10:
            bins[-1] = (bins[-1][0] + pair[0], bins[-1][1] + pair[1])
        else:
            bins.append(pair)
    if bins[-1][0] < 10:
        bins[-2:] = [(bins[-2][0] + bins[-1][0], bins[-2][1] + bins[-1][1])]
    assert len(bins) > 10
    statistic = sum((seen - wanted) ** 2 / wanted for wanted, seen in bins)
    return float(stats.chi2.sf(statistic, len(bins) - 1))


SAMPLED = [
    (Speculative("draft", Fixed(2)), Filters(temperature=1.0), False),
    (Speculative("draft", Fixed(4)), Filters(temperature=0.7, top_p=0.9), False),
    (Speculative("draft", Confidence(0.5)), Filters(temperature=1.3, min_p=0.1), False),
    (Speculative("draft", Acceptance(6)), Filters(temperature=1.0, top_k=4, repetition_penalty=1.3), False),
    (Speculative("draft", Fixed(3)), Filters(temperature=1.0), True),
    (Speculative(PromptLookup(2), Fixed(3)), Filters(temperature=1.0, top_p=0.95), False),
    (Speculative(PromptLookup(2)), Filters(temperature=1.0), True),
    (Speculative("draft", Fixed(2), copying=PromptLookup(2)), Filters(temperature=1.0, top_p=0.95), False),
    (Speculative("draft", Fixed(3), coupled=True), Filters(temperature=1.0), False),
]


@pytest.mark.parametrize(("draw", "filters", "mixed"), SAMPLED[1::2], ids=str)
def test_sampled_speculation_follows_the_targets_law(draw: Speculative, filters: Filters, mixed: bool) -> None:
    assert p_value(3, draw, filters, samples=1200, mixed=mixed) > 1e-4


@pytest.mark.full
@pytest.mark.parametrize(("draw", "filters", "mixed"), SAMPLED, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_sampled_speculation_follows_the_targets_law_closely(
    draw: Speculative, filters: Filters, mixed: bool, seed: int
) -> None:
    assert p_value(seed, draw, filters, samples=20_000, mixed=mixed) > 1e-4


@pytest.mark.parametrize(
    ("fault", "draft"), [("shifted", "draft"), ("no residual", "draft"), ("no residual", PromptLookup(2))]
)
def test_faults_of_verification_are_found(fault: str, draft: str | PromptLookup) -> None:
    assert p_value(3, Speculative(draft, Fixed(3)), Filters(temperature=1.0), samples=1200, fault=fault) < 1e-6


def test_dropping_tokens_for_what_they_are_is_found() -> None:
    draw = Speculative("draft", Acceptance(6))
    assert p_value(3, draw, Filters(temperature=1.0), samples=1200) > 1e-4
    assert p_value(3, draw, Filters(temperature=1.0), samples=1200, fault="choosy") < 1e-6


async def write_replacing(draw: Any, answer: Any, own: dict[str, Any]) -> None:
    """Some tokens are drawn by somebody else, from the target's law; the draw goes on from these."""
    context, k = draw._context, 0
    while not answer.done:
        for read in await draw.propose():
            pick = Pick(answer.filters, answer.key.child(0, 7), len(answer.tokens))
            token = read
            if tm.number(pick, "replaces") < 0.5:
                p = tm.law(own["target"].logits(draw.tokens()), pick, ())
                token = replace(read, token=tm.inverse(p, tm.number(pick, "token")))
            answer.write([answer.token("target", token)])
            draw.accept([token.token])
            k += 1
            if token.token != read.token or answer.done or k % 3 == 0:  # or stops in between, for no reason
                break
    assert context.open_sequences


def p_value_replacing(samples: int = 1200) -> float:
    own, filters = models(3), Filters(temperature=1.0)
    draw = Speculative("draft", Fixed(4))
    return p_value(3, draw, filters, samples=samples, writing=lambda it, answer: write_replacing(it, answer, own))


def test_what_is_left_over_still_follows_the_targets_law() -> None:
    assert p_value_replacing() > 1e-4


def test_what_is_left_over_from_other_tokens_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Any, tokens: list[int]) -> None:
        for token in tokens:
            offered = self._offered
            accept(self, [offered[0].token if offered else token])

    accept = SpeculativeDraw.accept
    monkeypatch.setattr(SpeculativeDraw, "accept", careless)
    assert p_value_replacing() < 1e-6


# ---------------------------------------------------------------------------------------------- sequences stay in step


ACTIONS = ("propose", "propose", "accept", "accept", "other", "reset", "fork", "close")


class Tended:
    """A draw with the tokens that it should hold, and the random programs that tests run on it."""

    def __init__(self, context: Any, answer: Any, draw: Any, text: list[int]) -> None:
        self.context, self.answer, self.draw, self.text = context, answer, draw, text

    def check(self) -> None:
        draw = self.draw
        assert draw.tokens() == self.text
        seq = draw.seq.parts[0] if isinstance(draw.seq, Mixed) else draw.seq
        assert seq.tokens[: len(self.text)] == self.text[: len(seq.tokens)]
        if isinstance(draw.seq, Mixed):
            for part, prompt in zip(draw.seq.parts, (PROMPT, DRAFT_PROMPT), strict=True):
                assert part.tokens[len(prompt) :] == draw.seq.tokens[len(PROMPT) :]
        ahead = [*self.text, *(read.token for read in draw._offered)]
        drafters = [draw._drafter]
        if isinstance(draw._drafter, CopyingDrafter):
            drafters = [draw._drafter._lookup, draw._drafter._drafter]
        for drafter in drafters:
            if hasattr(drafter, "seq"):
                spelled = drafter.seq.tokens[len(DRAFT_PROMPT) :]
                assert spelled == ahead[len(PROMPT) :][: len(spelled)], "the draft has read something else"
            else:
                assert drafter._index.tokens == self.text[: len(drafter._index.tokens)]

    def propose(self) -> None:
        if self.draw.full or self.answer.remaining <= 0:
            return
        before = list(self.draw._offered)
        self.reads = self.context.drive(self.draw.propose())
        assert self.reads[: len(before)] == before
        assert len(self.reads) <= self.answer.remaining or before


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), data=st.data())
def test_random_programs_leave_sequences_in_step_and_nothing_open(seed: int, data: st.DataObject) -> None:
    rng = random.Random(seed)
    filters = Filters(temperature=rng.choice((0.0, 1.0)))
    mixed = rng.random() < 0.3
    draw = rng.choice(DRAWS)
    context = tables.Tables(models(seed % 1000, limit=40), declines=lambda: rng.random() < 0.1)
    answer = tables.answer_of(context, Stopping(max_new_tokens=1000), filters, seed)
    alive = [Tended(context, answer, make(context, answer, draw, mixed=mixed), list(PROMPT))]
    for _ in range(data.draw(st.integers(1, 25))):
        it = rng.choice(alive)
        action = data.draw(
            st.sampled_from(["propose", "propose", "accept", "accept", "other", "reset", "fork", "close"])
        )
        if action == "propose":
            it.propose()
        elif action == "accept" and it.draw._offered:
            taken = [read.token for read in it.draw._offered[: rng.randint(1, len(it.draw._offered))]]
            if rng.random() < 0.5:
                it.draw.accept(taken)
            else:
                for token in taken:
                    it.draw.accept([token])
            it.text += taken
        elif action == "other" and len(it.text) < 35:
            own = [read.token for read in it.draw._offered[: rng.randint(0, 2)]] + [rng.randrange(SIZE)]
            it.draw.accept(own)
            it.text += own
        elif action == "reset":
            length = rng.randint(len(PROMPT), len(it.text))
            fresh = [rng.randrange(SIZE) for _ in range(rng.randint(0, 3))]
            it.draw.reset(length, fresh)
            it.text = it.text[:length] + fresh
        elif action == "fork" and len(alive) < 4:
            same = rng.random() < 0.5
            key = answer.key if same else answer.key.child(len(it.text), rng.randrange(9))
            other = it.answer.fork(key)
            twin = Tended(context, other, it.draw.fork(other), list(it.text))
            assert (twin.draw._offered == it.draw._offered) == (key == it.answer.key or not it.draw._offered)
            alive.append(twin)
        elif action == "close" and len(alive) > 1:
            it.draw.close()
            it.draw.close()
            alive.remove(it)
        for other in alive:
            other.check()
    for it in alive:
        it.draw.close()
    assert not context.open_sequences


def test_tokens_left_over_are_offered_again_and_others_drawn_anew() -> None:
    own = models(1, noise=0.0)
    context = tables.Tables(own)
    answer = tables.answer_of(context, Stopping(max_new_tokens=100, ignore_eos=True))
    draw = make(context, answer, Speculative("draft", Fixed(4)))
    first = context.drive(draw.propose())
    assert len(first) == 5
    draw.accept([first[0].token])
    passes = context.passes
    assert context.drive(draw.propose()) == first[1:]
    assert context.passes == passes
    draw.accept([(first[1].token + 1) % (SIZE - 1)])
    assert len(draw.seq.tokens) == len(PROMPT) + 1
    again = context.drive(draw.propose())
    assert again != first[2:]
    assert context.passes == passes + 1


def test_a_fork_with_a_key_of_its_own_draws_anew() -> None:
    context = tables.Tables(models(1, noise=0.0))
    answer = tables.answer_of(context, Stopping(max_new_tokens=100, ignore_eos=True), Filters(temperature=1.0))
    draw = make(context, answer, Speculative("draft", Fixed(4)))
    offered = context.drive(draw.propose())
    same = draw.fork(answer.fork(answer.key))
    assert context.drive(same.propose()) == offered
    differing = 0
    for k in range(10):
        other = draw.fork(answer.fork(answer.key.child(0, k)))
        assert other.tokens() == list(PROMPT)
        differing += [read.token for read in context.drive(other.propose())] != [read.token for read in offered]
    assert differing >= 8


def test_counts_are_those_of_the_blocks() -> None:
    candidate, context = run(
        models(5), Speculative("draft", Fixed(4)), Stopping(max_new_tokens=60, ignore_eos=True), Filters()
    )
    kinds = Counter(token.draw for token in candidate.tokens)
    assert context.drafted == sum(context.blocks)
    assert context.accepted == kinds[TokenDraw.ACCEPTED]
    assert context.passes == len(context.blocks) + kinds[TokenDraw.PLAIN]
    assert context.accepted < context.drafted
    assert kinds[TokenDraw.CORRECTED] + kinds[TokenDraw.BONUS] == len(context.blocks)


def test_tokens_that_are_not_worth_it_are_not_verified() -> None:
    stopping = Stopping(max_new_tokens=200, ignore_eos=True)
    candidate, context = run(models(5), Speculative("draft", Acceptance(8)), stopping, Filters(temperature=1.0))
    kinds = Counter(token.draw for token in candidate.tokens)
    assert context.dropped > 20
    assert context.drafted == sum(context.blocks), "none of them is verified"
    assert kinds[TokenDraw.PLAIN] > 2, "where a block's first token is dropped"
    _, context = run(models(5), Speculative("draft", Acceptance(8, stop=0.35)), stopping, Filters(temperature=1.0))
    assert context.dropped == 0, "a bound of one's own stops drafting, and does no more"


def test_no_more_is_drafted_than_can_be_written() -> None:
    for most, limit in itertools.product((1, 2, 3, 7), (4096, len(PROMPT) + 4)):
        own = models(2, noise=0.0, limit=limit)
        _, context = run(own, Speculative("draft", Fixed(8)), Stopping(max_new_tokens=most, ignore_eos=True), Filters())
        assert sum(context.blocks) <= min(most, limit - len(PROMPT)) - len(context.blocks)


def test_a_full_draft_leaves_plain_steps() -> None:
    own = models(2, noise=0.0)
    own["draft"] = tm.Model(own["draft"].vocabulary, own["draft"].logits, limit=len(DRAFT_PROMPT) + 5)
    candidate, context = run(
        own, Speculative("draft", Fixed(2)), Stopping(max_new_tokens=20, ignore_eos=True), Filters()
    )
    assert len(candidate.tokens) == 20
    assert context.blocks
    assert Counter(token.draw for token in candidate.tokens)[TokenDraw.PLAIN] >= 10


def test_a_prompt_as_long_as_the_drafts_context_is_written_plainly() -> None:
    own = models(2)
    own["draft"] = tm.Model(own["draft"].vocabulary, own["draft"].logits, limit=len(DRAFT_PROMPT))
    _, context = run(own, Speculative("draft", Fixed(2)), Stopping(max_new_tokens=5, ignore_eos=True), Filters())
    assert not context.blocks


# ------------------------------------------------------------------------------------------------------------ what fits


def test_reproducible_draws() -> None:
    for length, temperature, coupled in itertools.product((*LENGTHS, None), (0.0, 1.0), (False, True)):
        draw = Speculative("draft", length, coupled)
        own = isinstance(length, Fixed) or coupled or temperature == 0
        context = tables.Tables(models(0))
        answer = tables.answer_of(context, filters=Filters(temperature=temperature))
        assert make(context, answer, draw).reproducible == own


def test_resetting_beyond_the_end_is_refused() -> None:
    context = tables.Tables(models(0))
    draw = make(context, tables.answer_of(context), Speculative("draft", Fixed(2)))
    with pytest.raises(ValueError, match="cannot reset 4 tokens to 5"):
        draw.reset(5, ())
