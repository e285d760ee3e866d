"""Searches on tables: every combination, the laws of DESIGN section 3, and oracles that know no caches and no forks."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import search_tables as s
import table_models as tm
from reward_doubles import Rated
from scipy import stats  # type: ignore[import-untyped]

from trimtab.decode.errors import RewardFailed
from trimtab.decode.methods.chance import Choice, chance
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Logprob, Segments
from trimtab.decode.methods.searches.single import Single
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.result import FinishReason
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.rewards.base import Sample
from trimtab.kernels.types import Filters, Key, Pick

LIKED = s.LIKED

SEARCHES: dict[str, Any] = {
    "single": Single(),
    "best": BestOfN(3, LIKED),
    "rejecting": BestOfN(6, LIKED, reject_fraction=0.5, check_every_tokens=3),
    "rejecting by memory": BestOfN(3, LIKED, reject_fraction=0.5, max_held_tokens=24),
    "soft": BestOfN(3, LIKED, Choose.SOFT, temperature=0.5),
    "worst": BestOfN(3, LIKED, Choose.WORST),
    "majority": BestOfN(3, choose=Choose.MAJORITY),
    "weighted": BestOfN(3, LIKED, Choose.WEIGHTED, extract="text"),
    "consensus": BestOfN(3, choose=Choose.CONSENSUS),
    "tournament": BestOfN(3, "odds", Choose.TOURNAMENT),
    "beams": Segments(LIKED, 2, 2, max_tokens=3, lookahead=2, logprob_weight=0.2),
    "trees": Segments(LIKED, 2, 2, max_tokens=5, delimiter=" the", entropy_above=1.5, diverse=True),
    "reject": RejectSegments(LIKED, target=0.9, beta=0.2, entropy_above=1.0, min_tokens=2, max_tokens=6, max_tries=4),
    "evolution": Evolution(LIKED, population=3, survivors=1, period_tokens=3, rounds=1),
    "refine": Refine(LIKED, rounds=1),
}
PAIRS = [(p, d) for p in s.POLICIES for d in s.DRAWS if p != "token_reward" or d == "plain"]
ONE: dict[str, Any] = {
    "best": BestOfN(1, LIKED),
    "rejecting": BestOfN(1, LIKED, reject_fraction=0.5, check_every_tokens=2),
    "rejecting by memory": BestOfN(1, LIKED, reject_fraction=0.5, max_held_tokens=8),
    "segments": Segments(LIKED, 1, 1, max_tokens=3),
    "looking": Segments(LIKED, 1, 1, max_tokens=2, lookahead=3, entropy_above=0.5),
    "reject": RejectSegments(LIKED, target=5.0, entropy_above=1.0, min_tokens=1, max_tokens=3, max_tries=1),
    "evolution": Evolution(LIKED, rounds=0),
    "refine": Refine(LIKED, rounds=0),
}


def told(candidate: Any) -> Any:
    return candidate.tokens, candidate.text, candidate.finish_reason, candidate.stop_match


def streamed(ran: Any) -> None:
    """What was sent is the chosen answer, under its number."""
    assert {chunk.candidate for chunk in ran.chunks} <= {ran.outcome.selected}
    assert "".join(chunk.text for chunk in ran.chunks) == ran.chosen.text
    assert tuple(token for chunk in ran.chunks for token in chunk.tokens) == ran.chosen.tokens
    assert [candidate.index for candidate in ran.outcome.candidates] == list(range(len(ran.outcome.candidates)))


# ---------------------------------------------------------------------------------------------------------- composition


@pytest.mark.parametrize(("policy", "draw"), PAIRS)
def test_every_search_over_every_policy_and_draw(policy: str, draw: str) -> None:
    for seed, (name, search) in enumerate(SEARCHES.items()):
        options = {
            "search": search,
            "policy": s.POLICIES[policy],
            "draw": s.DRAWS[draw],
            "seed": seed,
            "stopping": Stopping(max_new_tokens=10, stop=("s the",)),
            "prompt": "go on then",
        }
        ran = s.run(s.families(seed), **options, order=1)
        streamed(ran)
        assert all(candidate.finish_reason is not None for candidate in ran.outcome.candidates)
        if name not in ("single", "majority", "consensus"):
            assert all("objective" in candidate.rewards for candidate in ran.outcome.candidates), name
        again = s.run(s.families(seed), **options, order=2)
        assert again.outcome == ran.outcome, "the order in which ops are answered changes nothing"
        assert ran.progress or name == "single"
        assert ran.outcome.reproducible


@pytest.mark.parametrize(("policy", "draw"), PAIRS)
def test_a_search_of_one_is_the_inner_draw(policy: str, draw: str) -> None:
    for seed, (name, search) in enumerate(ONE.items()):
        options = {
            "policy": s.POLICIES[policy],
            "draw": s.DRAWS[draw],
            "seed": seed,
            "stopping": Stopping(max_new_tokens=15),
        }
        plain = s.run(s.families(seed), **options)
        ran = s.run(s.families(seed), search=search, **options)
        assert told(ran.chosen) == told(plain.chosen), name
        streamed(ran)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_same_whatever_else_runs(name: str) -> None:
    models = s.families(3)
    options: dict[str, Any] = {"search": SEARCHES[name], "policy": s.POLICIES["nudged"], "seed": 5}
    alone = s.run(models, **options)
    context = s.context_of(models, order=11)
    others = [s.write(context, s.made(models, search=SEARCHES[other], seed=8)) for other in ("best", "beams")]
    outcome = context.drive(s.write(context, s.made(models, **options)), *others)
    assert outcome == alone.outcome
    assert not context.open_sequences


def test_other_seeds_give_other_candidates() -> None:
    models = s.letters(seed=1)
    stopping = Stopping(max_new_tokens=12, ignore_eos=True)
    runs = [s.run(models, search=BestOfN(3, LIKED), seed=seed, stopping=stopping) for seed in range(3)]
    assert len({s.ids_of(candidate) for ran in runs for candidate in ran.outcome.candidates}) == 9


# --------------------------------------------------------------------------------------------- a plain oracle of tokens

FILTERS = Filters(temperature=1.0)


def sampled(
    models: dict[str, Any], key: Key, tokens: Sequence[int], most: int, until: Callable[..., bool]
) -> list[int]:
    """What the base writes after ``tokens`` with the random numbers of ``key``: everything is read anew each time."""
    base, written = models["base"], list(tokens)
    while not over(models, written, most) and not until(written):
        written.append(tm.drawn(base.logits([*s.PROMPT, *written]), Pick(FILTERS, key, len(written)), ()))
    return written


def over(models: dict[str, Any], tokens: Sequence[int], most: int) -> bool:
    return len(tokens) >= most or (len(tokens) > 0 and tokens[-1] in models["base"].vocabulary.eos_token_ids)


def said(models: dict[str, Any], tokens: Sequence[int]) -> str:
    vocabulary = models["base"].vocabulary
    return b"".join(vocabulary.piece(t) for t in tokens if t not in vocabulary.special_ids).decode()


def liked(models: dict[str, Any], tokens: Sequence[int]) -> float:
    return s.scattered(said(models, tokens))  # type: ignore[no-any-return]


def never(_: Sequence[int]) -> bool:
    return False


def answers_of(models: dict[str, Any], seed: int, n: int, most: int) -> list[list[int]]:
    """What the candidates of a best of n are when none is dropped."""
    root = Key(seed)
    return [sampled(models, root.child(0, k) if k else root, (), most, never) for k in range(n)]


@pytest.mark.parametrize("seed", range(12))
def test_early_rejection_equals_the_oracle(seed: int) -> None:
    """The worst share of all that compete is dropped, those that have ended among them."""
    models, most, n, every, fraction = s.letters(4, seed), 12, 7, 2, (0.5, 0.34, 0.8)[seed % 3]
    finished = answers_of(models, seed, n, most)
    competing, pruned, due = list(range(n)), dict[int, list[int]](), 0
    while int(fraction * len(competing)) and any(len(finished[k]) > due for k in competing):
        due += every
        if all(len(finished[k]) <= due for k in competing):
            break
        worst = sorted(competing, key=lambda k: (liked(models, finished[k][:due]), -k))
        for k in worst[: min(len(competing) - 1, int(fraction * len(competing)))]:
            competing.remove(k)
            if len(finished[k]) > due:
                pruned[k] = finished[k][:due]
    expected = [tuple(pruned.get(k, finished[k])) for k in range(n)]
    ran = s.run(
        models,
        search=BestOfN(n, LIKED, reject_fraction=fraction, check_every_tokens=every),
        stopping=Stopping(max_new_tokens=most),
        seed=seed,
    )
    assert [s.ids_of(c) for c in ran.outcome.candidates] == expected
    assert [c.finish_reason == FinishReason.PRUNED for c in ran.outcome.candidates] == [k in pruned for k in range(n)]
    best = max((k for k in range(n) if k not in pruned), key=lambda k: liked(models, finished[k]))
    assert ran.outcome.selected == best
    for k, candidate in enumerate(ran.outcome.candidates):
        assert candidate.rewards["objective"] == candidate.rewards["liked"] == liked(models, expected[k])


@pytest.mark.parametrize("seed", range(20))
def test_segments_equal_the_oracle(seed: int) -> None:
    rng = random.Random(seed)
    models, most = s.letters(4, seed), 11
    search = Segments(
        LIKED,
        beams=rng.choice((1, 2, 3)),
        samples_per_beam=rng.choice((1, 2, 3)),
        max_tokens=rng.choice((2, 4)),
        delimiter=rng.choice((None, "ab", "c")),
        entropy_above=rng.choice((None, 1.0)),
        lookahead=rng.choice((0, 3)),
        reward_weight=rng.choice((1.0, -1.0)),
        logprob_weight=rng.choice((0.0, 0.5)),
        diverse=rng.random() < 0.4,
        logprob=rng.choice(list(Logprob)),
    )
    base = models["base"]

    def entropy(tokens: Sequence[int]) -> float:
        p = tm.softmax(base.logits([*s.PROMPT, *tokens]))
        return float(-(p * np.log(p)).sum())

    def ends(start: int) -> Callable[[Sequence[int]], bool]:
        def end(tokens: Sequence[int]) -> bool:
            new = len(tokens) - start
            delimited = search.delimiter is not None and said(models, tokens).endswith(search.delimiter)
            unsure = search.entropy_above is not None and entropy(tokens) > search.entropy_above
            return new >= search.max_tokens or (new > 0 and (delimited or unsure))

        return end

    def score(key: Key, tokens: list[int]) -> float:
        far = len(tokens) + search.lookahead
        ahead = sampled(models, key, tokens, most, lambda found: len(found) >= far)
        laws = [tm.softmax(base.logits([*s.PROMPT, *tokens[:i]])) for i in range(len(tokens))]
        logps = [np.log(law[token]) for law, token in zip(laws, tokens, strict=True)]
        logp = np.sum(logps) if search.logprob is Logprob.SUM else np.mean(logps)
        return float(search.reward_weight * liked(models, ahead) + search.logprob_weight * logp)

    root = Key(seed)
    count = search.beams * search.samples_per_beam
    pool = [(root.child(0, k) if k else root, list[int](), k // search.samples_per_beam) for k in range(count)]
    while True:
        pool = [(key, sampled(models, key, tokens, most, ends(len(tokens))), tree) for key, tokens, tree in pool]
        scores = [score(key, tokens) for key, tokens, _ in pool]
        order = sorted(range(len(pool)), key=lambda i: (-scores[i], i))
        if search.diverse:
            keep = [next(i for i in order if pool[i][2] == tree) for tree in dict.fromkeys(tree for _, _, tree in pool)]
        else:
            keep = sorted(order[: search.beams])
        beams = [(pool[i], scores[i]) for i in keep]
        if all(over(models, tokens, most) for (_, tokens, _), _ in beams):
            break
        pool = [
            (key.child(len(tokens), k) if k else key, tokens, tree)
            for (key, tokens, tree), _ in beams
            for k in range(1 if over(models, tokens, most) else search.samples_per_beam)
        ]
    expected = [tuple(tokens) for (_, tokens, _), found in sorted(beams, key=lambda beam: -beam[1])]
    ran = s.run(models, search=search, stopping=Stopping(max_new_tokens=most), seed=seed)
    assert [s.ids_of(candidate) for candidate in ran.outcome.candidates] == expected
    streamed(ran)


@pytest.mark.parametrize("seed", range(20))
def test_rejected_segments_equal_the_oracle(seed: int) -> None:
    rng = random.Random(seed)
    models, most = s.letters(4, seed), 14
    search = RejectSegments(
        LIKED,
        target=rng.choice((0.7, 1.5)),
        beta=rng.choice((0.0, 0.3)),
        entropy_above=rng.choice((0.9, 9.0)),
        min_tokens=rng.choice((1, 3)),
        max_tokens=rng.choice((3, 5)),
        max_tries=rng.choice((1, 3, 6)),
        start=rng.choice((0.0, 0.5, 1.0)),
        target_tokens=rng.choice((0, 7, 128)),
    )
    base = models["base"]
    low = (1 - search.start) * liked(models, ()) + search.start * search.target
    key, tokens, tries = Key(seed), list[int](), 0
    while not over(models, tokens, most):
        start = len(tokens)

        def ends(found: Sequence[int], start: int = start) -> bool:
            p = tm.softmax(base.logits([*s.PROMPT, *found]))
            unsure = float(-(p * np.log(p)).sum()) > search.entropy_above
            return len(found) - start >= search.max_tokens or (len(found) - start >= search.min_tokens and unsure)

        bar = low + min(1.0, start / (search.target_tokens or most)) * (search.target - low)
        drawn = []
        for k in range(search.max_tries):
            own = key.child(start, k) if k else key
            found = sampled(models, own, tokens, most, ends)
            drawn.append((liked(models, found), own, found))
            tries += 1
            margin = drawn[-1][0] - bar
            u = chance(own, start, Choice.SEGMENT)
            if margin >= 0 or (search.beta and u < math.exp(margin / search.beta)):
                _, key, tokens = drawn[-1]
                break
        else:
            _, key, tokens = max(drawn, key=lambda one: one[0])
    ran = s.run(models, search=search, stopping=Stopping(max_new_tokens=most), seed=seed)
    assert ran.ids == tuple(tokens)
    assert len(ran.progress) == tries
    streamed(ran)


@pytest.mark.parametrize("seed", range(6))
def test_the_bar_is_of_the_text_and_not_of_its_limit(seed: int) -> None:
    """A longer limit changes no token of what was written under a shorter one, unless the bar is told to follow it."""
    models = s.letters(4, seed)

    def ids(most: int, tokens: int) -> tuple[int, ...]:
        search = RejectSegments(
            LIKED, 1.5, 0.2, entropy_above=9.0, min_tokens=1, max_tokens=3, start=0.0, target_tokens=tokens
        )
        stopping = Stopping(max_new_tokens=most, ignore_eos=True)
        return s.run(models, search=search, stopping=stopping, seed=seed).ids  # type: ignore[no-any-return]

    default = RejectSegments(LIKED, 1.0).target_tokens
    assert default == 128
    assert ids(180, default)[:12] == ids(12, default)
    assert ids(12, 0) == ids(12, 12)


def test_the_bar_stays_at_the_target() -> None:
    """Behind ``target_tokens`` only what reaches the target is accepted at once."""
    good = {"liked": Rated(lambda sample: 1.0 if sample.text.endswith("a") else 0.0)}
    search = RejectSegments(LIKED, 1.0, 0.0, 9.0, 1, 1, max_tries=64, start=0.0, target_tokens=1)
    stopping = Stopping(max_new_tokens=30, ignore_eos=True)
    text = s.run(s.letters(4, 1), search=search, stopping=stopping, rewards=good).chosen.text
    assert set(text[1:]) == {"a"}


@pytest.mark.parametrize("logprob", Logprob)
def test_segments_are_scored_by_ln_p(logprob: Logprob) -> None:
    """Under a constant reward the likeliest of whole answers is taken: by its sum, short ones are, by its mean not."""
    lengths = []
    for seed in range(12):
        models = s.letters(5, 3)
        search = Segments(CONSTANT, 1, 12, max_tokens=30, logprob_weight=1.0, logprob=logprob)
        ran = s.run(models, search=search, stopping=Stopping(max_new_tokens=30), seed=seed)
        candidates = s.run(models, search=BestOfN(12, CONSTANT), stopping=Stopping(max_new_tokens=30), seed=seed)
        values = {s.ids_of(c): c.sum_logprob for c in candidates.outcome.candidates}
        if logprob is Logprob.MEAN:
            values = {ids: value / len(ids) for ids, value in values.items()}
        assert ran.ids == max(values, key=lambda ids: values[ids])
        lengths.append(len(ran.ids))
    assert Segments(CONSTANT).logprob is Logprob.SUM
    assert (np.mean(lengths) < 3) == (logprob is Logprob.SUM)


# -------------------------------------------------------------------------------------------------------- distributions


def law_of(models: dict[str, Any], length: int) -> dict[tuple[int, ...], float]:
    """The distribution of answers of at most ``length`` tokens."""
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        found = {
            (*tokens, *more): p * q
            for tokens, p in found.items()
            for more, q in (
                [((), 1.0)]
                if over(models, tokens, length)
                else [((i,), q) for i, q in enumerate(tm.softmax(models["base"].logits([*s.PROMPT, *tokens])))]
            )
        }
    return found


def p_value(found: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Chi-square; outcomes expected less than five times are one class."""
    total = sum(found.values())
    assert set(found) <= set(law)
    often = [k for k, p in law.items() if p * total >= 5]
    seldom = 1 - sum(law[k] for k in often)
    observed = [found[k] for k in often]
    expected = [law[k] * total for k in often]
    if seldom * total >= 1:
        observed.append(total - sum(observed))
        expected.append(seldom * total)
    scale = sum(observed) / sum(expected)
    return float(stats.chisquare(observed, [value * scale for value in expected]).pvalue)


CONSTANT = "constant"
SAMPLES = 1500
UNMOVED: dict[str, Any] = {
    "best": BestOfN(3, CONSTANT),
    "soft": BestOfN(3, CONSTANT, Choose.SOFT),
    "worst": BestOfN(2, CONSTANT, Choose.WORST),
    "rejecting": BestOfN(4, CONSTANT, reject_fraction=0.5, check_every_tokens=1),
    "beams": Segments(CONSTANT, 2, 2, max_tokens=1),
    "trees": Segments(CONSTANT, 2, 2, max_tokens=2, lookahead=1, diverse=True),
    "reject": RejectSegments(CONSTANT, target=1.0, beta=0.5, entropy_above=1.0, min_tokens=1, max_tokens=2),
    "strict": RejectSegments(CONSTANT, target=1.0, beta=0.0, entropy_above=1.0, min_tokens=1, max_tries=3),
}


def answers(search: Any, rewards: dict[str, Any] | None = None, samples: int = SAMPLES) -> Counter[tuple[int, ...]]:
    models = s.letters(3, 7)
    stopping = Stopping(max_new_tokens=3)
    return Counter(
        s.run(models, search=search, seed=seed, stopping=stopping, rewards=rewards or {}).ids for seed in range(samples)
    )


@pytest.mark.parametrize("name", UNMOVED)
def test_a_constant_reward_leaves_the_distribution_as_it_is(name: str) -> None:
    assert p_value(answers(UNMOVED[name]), law_of(s.letters(3, 7), 3)) > 1e-4


@pytest.mark.parametrize("name", [name for name in UNMOVED if name != "strict"])
def test_another_reward_does_not(name: str) -> None:
    likes = {"constant": Rated(lambda sample: float(sample.text.count("a")))}
    assert p_value(answers(UNMOVED[name], likes, 600), law_of(s.letters(3, 7), 3)) < 1e-4


def test_redrawing_by_length_would_move_it() -> None:
    """The bar of a segment must not depend on its own length: a reward of the length alone shows what that would do."""
    likes = {"constant": Rated(lambda sample: 0.25 - 0.3 * len(sample.tokens))}
    assert p_value(answers(UNMOVED["reject"], likes, 600), law_of(s.letters(3, 7), 3)) < 1e-4


@pytest.mark.parametrize("n", [2, 5])
def test_best_of_n_is_the_law_of_the_largest(n: int) -> None:
    """One token of 30 under a reward without ties: P(best = x) = F(x)^n - F(x-)^n, with its win rate and KL."""
    models = s.letters(30, 3)
    p = tm.softmax(models["base"].logits(s.PROMPT))
    order = sorted(range(30), key=lambda i: liked(models, [i]))
    below = np.concatenate([[0.0], np.cumsum(p[order])])
    law = {(token,): float(below[i + 1] ** n - below[i] ** n) for i, token in enumerate(order)}
    found = Counter(
        s.run(models, search=BestOfN(n, LIKED), seed=seed, stopping=Stopping(max_new_tokens=1)).ids
        for seed in range(1500)
    )
    assert p_value(found, law) > 1e-4
    assert p_value(found, {(i,): float(p[i]) for i in range(30)}) < 1e-6, "plain sampling is another law"
    total = sum(found.values())
    place = {token: i for i, token in enumerate(order)}
    wins = sum(count * (below[place[ids[0]]] + p[ids[0]] / 2) for ids, count in found.items()) / total
    assert wins == pytest.approx(n / (n + 1), abs=0.03)
    kl = sum(q * math.log(q / p[ids[0]]) for ids, q in law.items() if q > 0)
    assert 0.8 * (math.log(n) - (n - 1) / n) < kl <= math.log(n) - (n - 1) / n


# -------------------------------------------------------------------------------------------------------- what it costs


def test_the_prompt_is_read_once() -> None:
    models = s.families(1)
    for name, models_read in (("base", 1), ("nudged", 2), ("cross vocabulary", 2), ("mixture", 3)):
        ran = s.run(models, search=BestOfN(8, LIKED), policy=s.POLICIES[name])
        assert ran.context.opened == models_read


def test_pruned_candidates_are_closed_at_once() -> None:
    models = s.letters(12, 5)
    context = s.context_of(models)
    open_now: list[tuple[int, int]] = []

    def after() -> None:
        calls = len(context.rewards["liked"].calls)
        open_now.append((calls, len(context.open_sequences)))

    context.after = after
    search = BestOfN(16, LIKED, reject_fraction=0.5, check_every_tokens=4)
    s.run(models, context=context, search=search, stopping=Stopping(max_new_tokens=40, ignore_eos=True))
    most = {calls: max(count for found, count in open_now if found == calls) for calls, _ in open_now}
    assert most == {0: 16, 1: 8, 2: 4, 3: 2, 4: 1, 5: 0}
    assert context.rewards["liked"].calls == [16, 8, 4, 2, 1]


@pytest.mark.parametrize("seed", range(20))
def test_rejection_by_memory_equals_the_oracle(seed: int) -> None:
    """A full memory drops the worst share of all, and then the worst under way until all have room for 8 more."""
    models, most, n = s.letters(4, seed), 60, 5
    fraction, held = (0.5, 0.34, 0.1)[seed % 3], (40, 57, 100, 240)[seed % 4]
    finished = answers_of(models, seed, n, most)
    competing, running, pruned, written = list(range(n)), list(range(n)), dict[int, list[int]](), 0
    while len(running) > 1:
        written = held // len(running)
        running = [k for k in running if len(finished[k]) > written]
        if len(running) < 2 or len(running) * (written + 8) <= held:
            continue
        worst = sorted(competing, key=lambda k: (liked(models, finished[k][:written]), -k))
        dropped = worst[: min(len(competing) - 1, int(fraction * len(competing)))]
        left = [k for k in worst if k in running and k not in dropped]
        while len(left) > 1 and len(left) * (written + 8) > held:
            dropped.append(left.pop(0))
        pruned |= {k: finished[k][:written] for k in dropped if k in running}
        competing, running = ([k for k in some if k not in dropped] for some in (competing, running))
    expected = [tuple(pruned.get(k, finished[k])) for k in range(n)]
    ran = s.run(
        models,
        search=BestOfN(n, LIKED, reject_fraction=fraction, max_held_tokens=held),
        stopping=Stopping(max_new_tokens=most),
        seed=seed,
    )
    assert [s.ids_of(c) for c in ran.outcome.candidates] == expected
    assert [c.finish_reason == FinishReason.PRUNED for c in ran.outcome.candidates] == [k in pruned for k in range(n)]


@pytest.mark.parametrize("held", [128, 150, 200, 512])
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5])
def test_candidates_hold_no_more_than_they_may(held: int, fraction: float) -> None:
    """Tokens of the answers under way, counted whenever a method waits; the last one may be as long as it wants.

    However small the memory and the share that is dropped, an answer is rated only after 8 more tokens.
    """
    models = s.letters(4, 3)
    rated: dict[str, int] = {}

    def of(sample: Sample) -> float:
        shorter = [length for text, length in rated.items() if sample.text.startswith(text)]
        assert len(sample.tokens) >= 8 + max(shorter, default=0) or sample.finished
        rated[sample.text] = len(sample.tokens)
        return s.scattered(sample.text)  # type: ignore[no-any-return]

    context = s.context_of(models, rewards={"liked": Rated(of)})
    most = 0

    def after() -> None:
        nonlocal most
        lengths = [len(seq.tokens) - len(s.PROMPT) for seq in context.open_sequences]
        if len(lengths) > 1:
            most = max(most, sum(lengths))

    context.after = after
    search = BestOfN(16, LIKED, reject_fraction=fraction, max_held_tokens=held)
    s.run(models, context=context, search=search, stopping=Stopping(max_new_tokens=64, ignore_eos=True))
    assert held // 2 <= most <= held
    assert len(context.rewards["liked"].calls) <= 8


@pytest.mark.parametrize(("held", "n"), [(7, 1), (8, 1), (40, 5), (47, 5)])
def test_memory_says_how_many_begin(held: int, n: int) -> None:
    search = BestOfN(objective=LIKED, reject_fraction=0.5, max_held_tokens=held)
    ran = s.run(s.letters(4, 3), search=search)
    assert len(ran.outcome.candidates) == n
    told_n = s.run(s.letters(4, 3), search=replace(search, n=n))
    assert told_n.outcome == ran.outcome


def test_an_answer_that_has_ended_competes() -> None:
    """A short answer that is better than every beginning leaves room for fewer of them."""
    models = s.letters(4, 2)
    likes_ends = {"liked": Rated(lambda sample: float(sample.finished) + s.scattered(sample.text) / 2)}
    fewer = 0
    for seed in range(10):
        ends = [len(tokens) <= 3 for tokens in answers_of(models, seed, 8, 40)]
        search = BestOfN(8, LIKED, reject_fraction=0.5, check_every_tokens=3)
        ran = s.run(models, search=search, stopping=Stopping(max_new_tokens=40), seed=seed, rewards=likes_ends)
        under_way = [c for c in ran.outcome.candidates if len(c.tokens) > 3]
        assert len(under_way) <= max(0, 4 - sum(ends))
        fewer += any(ends)
        assert ran.chosen.finish_reason is not FinishReason.PRUNED
    assert fewer >= 5, "some do end early"


def test_rejection_costs_less_than_all() -> None:
    models = s.letters(4, 5)
    stopping = Stopping(max_new_tokens=32, ignore_eos=True)
    plain = s.run(models, search=BestOfN(16, LIKED), stopping=stopping)
    pruned = s.run(models, search=BestOfN(16, LIKED, reject_fraction=0.5, check_every_tokens=4), stopping=stopping)
    assert sum(len(c.tokens) for c in plain.outcome.candidates) == 16 * 32
    assert sum(len(c.tokens) for c in pruned.outcome.candidates) == 8 * 4 + 4 * 8 + 2 * 12 + 16 + 32


def test_each_answer_is_rated_once_as_it_ends() -> None:
    models = s.letters(4, 2)
    rated: Counter[tuple[str, bool]] = Counter()

    def of(sample: Sample) -> float:
        rated[sample.text, sample.finished] += 1
        return s.scattered(sample.text)  # type: ignore[no-any-return]

    search = BestOfN(8, LIKED, reject_fraction=0.3, check_every_tokens=2)
    ran = s.run(models, search=search, rewards={"liked": Rated(of)}, stopping=Stopping(max_new_tokens=9))
    ends = Counter(c.text for c in ran.outcome.candidates if c.finish_reason != FinishReason.PRUNED)
    assert {text: count for (text, finished), count in rated.items() if finished} == ends


# ------------------------------------------------------------------------------------------------------------- choosing


def test_choices() -> None:
    for seed in range(10):
        models = s.letters(5, seed)
        ran = {
            choose: s.run(
                models, search=BestOfN(6, "odds" if choose is Choose.TOURNAMENT else LIKED, choose), seed=seed
            )
            for choose in Choose
        }
        texts = [candidate.text for candidate in ran[Choose.BEST].outcome.candidates]
        assert all([c.text for c in one.outcome.candidates] == texts for one in ran.values())
        values = [s.scattered(text) for text in texts]
        assert ran[Choose.BEST].outcome.selected == values.index(max(values))
        assert ran[Choose.WORST].outcome.selected == values.index(min(values))
        assert ran[Choose.TOURNAMENT].outcome.selected == values.index(max(values)), "no cycles: the best beats all"
        most = max(texts.count(text) for text in texts if text) if any(texts) else len(texts)
        voted = ran[Choose.MAJORITY].chosen.text
        assert not any(texts) or (voted and texts.count(voted) == most)
        sums = {text: s.scattered(text) * texts.count(text) for text in texts if text}
        assert not sums or sums[ran[Choose.WEIGHTED].chosen.text] == max(sums.values())
        for choose in (Choose.MAJORITY, Choose.WEIGHTED):
            shares = {c.text: c.rewards["votes"] for c in ran[choose].outcome.candidates if c.text}
            assert not sums or sum(shares.values()) == pytest.approx(1)


def test_a_soft_choice_follows_its_temperature() -> None:
    models = s.letters(12, 4)
    for temperature in (0.3, 2.0):
        share = expected = spread = 0.0
        for seed in range(400):
            search = BestOfN(4, LIKED, Choose.SOFT, temperature=temperature)
            ran = s.run(models, search=search, seed=seed, stopping=Stopping(max_new_tokens=1))
            values = np.array([candidate.rewards["objective"] for candidate in ran.outcome.candidates])
            p = tm.softmax(values / temperature)
            best = values == values.max()
            share += float(best[ran.outcome.selected])
            expected += float(p[best].sum())
            spread += float(p[best].sum() * (1 - p[best].sum()))
        assert abs(share - expected) < 4 * math.sqrt(spread)


def test_thresholds() -> None:
    models = s.letters(5, 1)
    values = [c.rewards["objective"] for c in s.run(models, search=BestOfN(4, LIKED)).outcome.candidates]
    best = values.index(max(values))
    for choose in (Choose.BEST, Choose.SOFT, Choose.WORST, Choose.MAJORITY):
        above = s.run(models, search=BestOfN(4, LIKED, choose, threshold=max(values) + 0.01)).outcome
        assert (above.selected, above.abstained) == (best, True)
        at = s.run(models, search=BestOfN(4, LIKED, choose, threshold=max(values))).outcome
        assert (at.selected, at.abstained) == (best, False), "only one is acceptable"
    below = s.run(models, search=BestOfN(4, LIKED, Choose.WORST, threshold=min(values))).outcome
    assert (below.selected, below.abstained) == (values.index(min(values)), False)


def test_ties_go_to_the_first() -> None:
    models = s.letters(5, 1)
    for choose in (Choose.BEST, Choose.WORST):
        assert s.run(models, search=BestOfN(4, CONSTANT, choose)).outcome.selected == 0


# ------------------------------------------------------------------------------------------------------------- failures


def raises(_: Sample) -> float:
    raise ZeroDivisionError("by nothing")


class Late:
    """A reward that fails once it has been asked often enough."""

    def __init__(self, after: int, of: Callable[[Sample], Any]) -> None:
        self.left, self.of = after, of

    def __call__(self, sample: Sample) -> Any:
        self.left -= 1
        return self.of(sample) if self.left < 0 else s.scattered(sample.text)


async def settled(request: Any, results: list[Any]) -> None:
    """A request whose failure is its result."""
    try:
        results.append(await request)
    except RewardFailed as error:
        results.append(error)


FAILURES: dict[str, Any] = {"raises": raises, "nan": lambda sample: math.nan, "no number": lambda sample: "much"}


@pytest.mark.parametrize("fault", FAILURES)
@pytest.mark.parametrize("name", [name for name in SEARCHES if name not in ("single", "majority", "consensus")])
def test_a_failing_reward_ends_its_request_and_no_other(name: str, fault: str) -> None:
    models = s.letters(4, 3)
    good = s.run(models, search=SEARCHES["beams"], seed=1).outcome
    for after in (0, 1):
        bad = Rated(Late(after, FAILURES[fault]))
        context = s.context_of(models, order=after, rewards={"bad": bad})
        search = replace(SEARCHES[name], objective="bad")
        requests = [
            s.write(context, s.made(models, search=SEARCHES["beams"], seed=1)),
            s.write(context, s.made(models, search=search, seed=2)),
        ]
        results: list[Any] = []
        context.drive(*(settled(request, results) for request in requests))
        failed = [result for result in results if isinstance(result, RewardFailed)]
        assert [error.reward for error in failed] == ["bad"]
        assert [result for result in results if not isinstance(result, RewardFailed)] == [good]
        assert not context.open_sequences


def test_a_slow_reward_says_so() -> None:
    context = s.context_of(s.letters(4, 3), slow=("liked",))
    with pytest.raises(RewardFailed, match="'liked' failed: it took longer") as caught:
        s.run(s.letters(4, 3), context=context, search=SEARCHES["best"])
    assert caught.value.retryable
    assert not context.open_sequences


def test_a_failing_token_reward() -> None:
    context = s.context_of(s.letters(4, 3), rewards={"liked": Rated(Late(9, raises))})
    with pytest.raises(RewardFailed):
        s.run(s.letters(4, 3), context=context, search=BestOfN(3, CONSTANT), policy=s.POLICIES["token_reward"])
    assert not context.open_sequences


# ---------------------------------------------------------------------------------------------------------- time budget


@pytest.mark.parametrize("name", SEARCHES)
def test_out_of_time_gives_the_best_so_far(name: str) -> None:
    models = s.letters(4, 6)
    for ticks in (0, 15, 50):
        left = [ticks]

        def out_of_time(left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] < 0

        ran = s.run(
            models,
            search=SEARCHES[name],
            stopping=Stopping(max_new_tokens=60, ignore_eos=True, time_budget=1.0),
            out_of_time=out_of_time,
        )
        streamed(ran)
        assert ran.chosen.finish_reason == FinishReason.TIME_BUDGET
        assert ran.chosen.tokens
        assert sum(len(c.tokens) for c in ran.outcome.candidates) <= ticks + 30


# ---------------------------------------------------------------------------------------------------------- the streams


def test_segments_stream_what_all_beams_share() -> None:
    streaming = 0
    for seed in range(10):
        ran = s.run(
            s.letters(4, seed),
            search=Segments(LIKED, 2, 3, max_tokens=2),
            stopping=Stopping(max_new_tokens=20, ignore_eos=True),
            seed=seed,
        )
        streaming += len(ran.chunks) > 1
    assert streaming >= 5, "some beams win, and then everything before is settled"


def test_rejected_segments_stream_as_they_are_accepted() -> None:
    ran = s.run(
        s.letters(4, 2),
        search=RejectSegments(LIKED, target=0.8, entropy_above=9.0, min_tokens=1, max_tokens=4),
        stopping=Stopping(max_new_tokens=20, ignore_eos=True),
    )
    assert [len(chunk.tokens) for chunk in ran.chunks] == [4] * 5


# --------------------------------------------------------------------------------------------------- prompts of its own


def test_evolution_replaces_weak_answers_by_survivors() -> None:
    search = Evolution(LIKED, population=4, survivors=1, period_tokens=5, rounds=2)
    ran = s.run(
        s.letters(6, 2), search=search, prompt="fgh", stopping=Stopping(max_new_tokens=12, ignore_eos=True), seed=4
    )
    assert len(ran.outcome.candidates) == 1 + 2 * 4
    for first in (1, 5):
        population = [s.ids_of(candidate) for candidate in ran.outcome.candidates[first : first + 4]]
        assert len({ids[:10] for ids in population}) == 1, "all go on from the survivor of two periods"
        assert len(set(population)) > 1, "each after its own instruction, with its own random numbers"
    alone = s.run(
        s.letters(6, 2),
        search=Evolution(LIKED, population=4, survivors=4, period_tokens=5, rounds=1),
        prompt="fgh",
        stopping=Stopping(max_new_tokens=12, ignore_eos=True),
        seed=4,
    )
    assert len({s.ids_of(candidate)[:10] for candidate in alone.outcome.candidates[1:]}) == 4


def test_evolution_lets_what_has_ended_compete() -> None:
    """An answer that ended and leads survives; others are replaced by none that is still under way, and dropped."""
    likes_ends = {"liked": Rated(lambda sample: float(sample.finished) + s.scattered(sample.text) / 2)}
    search = Evolution(LIKED, population=4, survivors=1, period_tokens=3, rounds=1)
    ended = 0
    for seed in range(12):
        ran = s.run(
            s.letters(5, 2),
            search=search,
            prompt="fgh",
            rewards=likes_ends,
            stopping=Stopping(max_new_tokens=30),
            seed=seed,
        )
        population = ran.outcome.candidates[1:]
        if early := [c for c in population if len(c.tokens) <= 3 and c.finish_reason is not FinishReason.PRUNED]:
            others = [c for c in population if c not in early]
            assert all(c.finish_reason is FinishReason.PRUNED and len(c.tokens) == 3 for c in others)
            ended += bool(others)
        assert ran.chosen.finish_reason is not FinishReason.PRUNED
    assert ended >= 4


def test_helpers_are_asked_with_the_prompts_of_the_method() -> None:
    asked: list[tuple[str, Any]] = []

    class Listening(s.Tables):  # type: ignore[misc]
        def render(self, model: str, prompt: Any) -> list[int]:
            asked.append((model, prompt))
            found: list[int] = super().render(model, prompt)
            return found

    models = s.letters(6, 2)
    rewards = {name: make() for name, make in s.REWARDS.items()}
    for search in (Refine(LIKED, rounds=2, critic="chat"), Evolution(LIKED, population=2, rounds=1, mutator="chat")):
        asked.clear()
        context = Listening(models, rewards=rewards)
        prompt = (ChatMessage("system", "be kind"), ChatMessage("user", "why?"))
        plan = s.made(models, search=search)
        plan = replace(plan, request=replace(plan.request, prompt=prompt))
        outcome = context.drive(s.write(context, plan))
        if isinstance(search, Refine):
            assert [model for model, _ in asked] == ["chat", "base"] * 2
            assert asked[0][1][:2] == prompt
            assert asked[0][1][2] == ChatMessage("assistant", outcome.candidates[0].text)
            assert len(outcome.candidates) == 3
        else:
            (mutator, mutation), (_, parent), (_, mutated) = asked
            assert mutator == "chat"
            assert "why?" in mutation[0].content
            assert parent == prompt
            assert mutated[0] == prompt[0]
            assert mutated[1].role == "user"
            assert mutated[1].content != "why?"
        assert not context.open_sequences


def test_refine_builds_on_the_best() -> None:
    """A revision that is worse than what was there is not what the next one starts from."""
    for seed in range(5):
        ran = s.run(s.letters(6, seed), search=Refine(LIKED, rounds=3), prompt="abc", seed=seed)
        values = [candidate.rewards["objective"] for candidate in ran.outcome.candidates]
        assert ran.outcome.selected == values.index(max(values))
        assert len(values) == 4
