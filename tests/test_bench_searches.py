"""Benchmarks of searches: replays equal real runs, pools hold smaller searches, figures are those of the rows."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reward_doubles as doubles
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trimtab.bench.commands import register
from trimtab.bench.contestants import Batch
from trimtab.bench.data import append_rows, read_rows
from trimtab.bench.record import Recorder, Row, load
from trimtab.bench.searches import best_of_n, rejection
from trimtab.bench.searches import ifeval_search as searching
from trimtab.bench.searches.best_of_n import Candidates, Held, Returned, held_pages
from trimtab.bench.searches.constraints import reward_for
from trimtab.bench.searches.ifeval_search import Tried, record, tried
from trimtab.bench.searches.plot import plot_rejection
from trimtab.bench.searches.pool import Asked, Deadline, best, collect, kept_rows, messages, seed_of
from trimtab.bench.searches.rejection import Rated, Rule, beginning, choose, fill, point, rated, replay
from trimtab.bench.tables import table
from trimtab.decode.commands import main
from trimtab.decode.config import EngineOptions
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import FinishReason
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.rewards.base import Sample

PROMPTS = ("What is in the sea?", "Name a ship and its port.", "Who is there?")
TOKENS, STEP, N = 24, 4, 8
NAMED = {
    "model": "tiny",
    "n": 3,
    "max_new_tokens": 6,
    "temperature": 1.0,
    "prompts": 2,
    "prompt_tokens": [3, 5],
}


def run(*arguments: object) -> int:
    """The command, without the other layers."""
    plugin: Any = SimpleNamespace(name="bench", load=lambda: register)
    return main([str(argument) for argument in arguments], entry_points=[plugin])


def quality(sample: Sample) -> float:
    """What it says of a beginning says something of the whole, and nothing exact; rounded, so that there are ties."""
    return round(sum(map(sample.text.count, "aeo")) / (1 + len(sample.text)), 2)


@pytest.fixture(scope="module")
def engine(tiny_folder: Callable[..., Path]) -> Iterator[Engine]:
    options = EngineOptions(memory_bytes=8 << 20, page_tokens=8)
    rewards = {"reward": doubles.Rated(quality, "prefix")}
    with Engine({"model": str(tiny_folder("llama"))}, rewards=rewards, options=options) as made:
        yield made
        made.check()


def settings(**changes: Any) -> rejection.Options:
    given = {"data": Path("none"), "reward": "none", "samples": N, "against": 4, "step": STEP, "max_new_tokens": TOKENS}
    grid = {"every": (4, 8), "fractions": (0.3, 0.6), "temperature": 1.0}
    return dataclasses.replace(rejection.Options(**{**given, **grid}), **changes).checked()


@pytest.fixture(scope="module")
def pools(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, options = tmp_path_factory.mktemp("pools") / "pool.jsonl", settings()
    work = [Asked({"prompt": prompt}, rejection._request(options, prompt, N)) for prompt in PROMPTS]
    assert fill(engine, work, path, options, Deadline(None))
    return path


# ------------------------------------------------------------------------------------------------------------ replay


@pytest.mark.parametrize("n", [2, 5, N])
def test_a_replay_is_what_a_real_run_does(engine: Engine, pools: Path, n: int) -> None:
    options, dropped, early = settings(), 0, 0
    for row, rule in itertools.product(read_rows(pools), (None, *options.rules, Rule(0.9, 8))):
        request = rejection._request(options, row["prompt"], N, rule)
        result = engine.generate(
            request.prompt,
            search=dataclasses.replace(request.search, n=n),
            sampling=request.sampling,
            stopping=request.stopping,
        )
        said = replay(rated(row)[:n], rule, STEP)
        assert (said.chosen, said.tokens) == (result.selected, sum(len(c.tokens) for c in result.candidates))
        dropped += sum(c.finish_reason is FinishReason.PRUNED for c in result.candidates)
        early += sum(c.finish_reason is FinishReason.EOS for c in result.candidates)
        assert all(len(c["beginnings"]) == (c["tokens"] - 1) // STEP for c in row["candidates"])
    assert dropped > 0  # otherwise nothing was replayed


def test_a_replay_with_other_ratings_is_another_run(pools: Path) -> None:
    """The negative control: were beginnings not looked at, turning them round would change nothing."""
    rows = [rated(row) for row in read_rows(pools)]
    turned = [[dataclasses.replace(c, beginnings=tuple(-v for v in c.beginnings)) for c in row] for row in rows]
    rule = Rule(0.6, 4)
    assert [replay(row, rule, STEP).chosen for row in rows] != [replay(row, rule, STEP).chosen for row in turned]


def test_the_candidates_of_a_pool_are_those_of_every_smaller_one(engine: Engine, pools: Path) -> None:
    options = settings()
    for row in read_rows(pools):
        request = rejection._request(options, row["prompt"], N)
        kept = [(c["tokens"], c["reward"]) for c in row["candidates"]]
        for n in (1, 3):
            small = engine.generate(
                request.prompt,
                search=BestOfN(n, "reward"),
                sampling=request.sampling,
                stopping=request.stopping,
            )
            assert [(len(c.tokens), c.rewards["objective"]) for c in small.candidates] == kept[:n]


def test_the_beginning_of_an_answer_ends_in_the_answer(engine: Engine) -> None:
    request = rejection._request(settings(), PROMPTS[0], N)
    result = engine.generate(
        request.prompt, search=request.search, sampling=request.sampling, stopping=request.stopping
    )
    for candidate in result.candidates:
        parts = [beginning(engine, candidate, length) for length in range(len(candidate.tokens) + 1)]
        assert parts[0] == ""
        assert all(b.startswith(a) for a, b in itertools.pairwise(parts))
        assert candidate.text.startswith(parts[-1])


rates = st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 1))  # with ties


@st.composite
def random_pools(draw: st.DrawFn) -> list[Rated]:
    found = []
    for _ in range(draw(st.integers(1, 9))):
        tokens = draw(st.integers(1, 20))
        beginnings = tuple(draw(rates) for _ in range((tokens - 1) // 2))
        found.append(Rated(tokens, draw(rates), beginnings))
    return found


@given(random_pools(), st.floats(0.01, 0.99), st.integers(1, 4))
def test_rejection_never_costs_more_and_never_finds_better(pool: list[Rated], fraction: float, every: int) -> None:
    plain, rejecting = replay(pool, None, 2), replay(pool, Rule(fraction, 2 * every), 2)
    assert plain.tokens == sum(one.tokens for one in pool)
    assert 1 <= rejecting.tokens <= plain.tokens
    assert pool[rejecting.chosen].reward <= pool[plain.chosen].reward
    if all(len(set(one.beginnings) | {one.reward}) == 1 for one in pool):  # a beginning that says it all loses nothing
        assert pool[rejecting.chosen].reward == pool[plain.chosen].reward


def test_what_a_beginning_says_exactly_costs_nothing() -> None:
    draw = random.Random(3)
    pool = [Rated(100, value, (value,) * 24) for value in (draw.random() for _ in range(64))]
    found = replay(pool, Rule(0.75, 8), 4)
    assert found.chosen == replay(pool, None, 4).chosen
    assert found.tokens == 8 * 48 + 16 * 12 + 24 * 3 + 100  # 64 -> 16 -> 4 -> 1


def test_how_well_beginnings_foretell_the_whole() -> None:
    draw = random.Random(5)
    pool = [Rated(12, draw.random(), (float(i), float(i % 2), draw.random())) for i in range(300)]
    pool = [dataclasses.replace(one, beginnings=(one.reward**3, *one.beginnings[1:])) for one in pool]
    ended = [Rated(3, draw.random(), ()) for _ in range(50)]
    found = rejection.foretold([pool + ended, pool[:2], [Rated(9, 1.0, (0.5,))] * 5], 4)
    assert {tokens: len(values) for tokens, values in found.items()} == {4: 1, 8: 1, 12: 1}
    assert found[4][0] == pytest.approx(1.0), "of ranks: the cube of a number says all of it"
    rewards = [one.reward for one in pool]
    assert found[8][0] == pytest.approx(stats.spearmanr([i % 2 for i in range(300)], rewards).statistic), "with ties"
    assert abs(found[12][0]) < 0.2


def test_groups_of_a_pool_are_averaged() -> None:
    pool = [Rated(10 * (i + 1), float(i), (0.0,) * 4) for i in range(4)]
    found = point([pool, pool[::-1]], 2, None, 2)
    assert found.reward.tolist() == [2.0, 2.0]
    assert found.tokens.tolist() == [50.0, 50.0]


def test_the_rule_is_the_best_within_the_budget() -> None:
    draw = random.Random(1)
    pools = [
        [
            Rated(40, value, tuple(value + draw.gauss(0, 1 / k) for k in range(1, 10)))
            for value in (draw.gauss(0, 1) for _ in range(8))
        ]
        for _ in range(40)
    ]
    options = settings(budget=0.9)
    every = list(itertools.product(options.counts, options.rules))
    found = {(n, rule): point(pools, n, rule, STEP).mean for n, rule in every}
    limit = 0.9 * point(pools, 4, None, STEP).mean[1]
    fitting = [chosen for chosen in every if found[chosen][1] <= limit]
    chosen = choose(pools, options)
    assert chosen in fitting
    assert len(fitting) < len(every)  # otherwise the budget decided nothing
    assert all(found[chosen][0] >= found[other][0] for other in fitting)
    assert choose(pools, settings(budget=0.01)) == min(every, key=lambda chosen: found[chosen][1])


def test_a_replay_refuses_checks_that_nothing_is_known_of() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        replay([Rated(9, 0.0, (0.0, 0.0))], Rule(0.5, 6), 4)


def test_the_table_and_the_picture_of_rejection(tmp_path: Path, pools: Path) -> None:
    rows = [rated(row) for row in read_rows(pools)]
    options = settings()
    one = {"same": True, "real_reward": 1.0, "replayed_reward": 1.0, "real_tokens": 9, "replayed_tokens": 9}
    real = [{**one, "plain_seconds": 2.0, "rejecting_seconds": 1.0}]
    found = rejection.record(rows, N, Rule(0.6, 4), real, options).rows
    by_name = {(row.case, row.subject, row.metric): row for row in found}
    plain, ours = point(rows, 4, None, STEP), point(rows, N, Rule(0.6, 4), STEP)
    share = by_name["all", f"rejecting of {N} / plain of 4", "tokens generated"]
    assert share.value == pytest.approx(ours.tokens.sum() / plain.tokens.sum(), rel=1e-5)
    gain = by_name["all", f"rejecting of {N} - plain of 4", "reward"]
    assert gain.value == pytest.approx(float((ours.reward - plain.reward).mean()), abs=1e-5)
    text = table("rejection", found)
    assert f"| 4 | {plain.mean[0]:.3f} | {plain.mean[1]:.0f} |" in text
    assert "1 real run chose the same 100 %" in text
    pytest.importorskip("matplotlib")
    plot_rejection(found, tmp_path / "curve.svg")
    assert "<svg" in (tmp_path / "curve.svg").read_text(encoding="utf-8")
    with pytest.raises(InvalidRequest, match="bench rejection"):
        plot_rejection([], tmp_path / "none.svg")


# -------------------------------------------------------------------------------------------------------------- pools


def test_a_pool_goes_on_where_it_was(engine: Engine, pools: Path, tmp_path: Path) -> None:
    options = settings()
    path = tmp_path / "pool.jsonl"
    whole = pools.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:40], encoding="utf-8")  # killed while it wrote the second
    work = [Asked({"prompt": prompt}, rejection._request(options, prompt, N)) for prompt in PROMPTS]
    assert not fill(engine, work, path, options, Deadline(0.0))  # no time: nothing is begun
    assert len(read_rows(path)) == 1
    assert fill(engine, work, path, options, Deadline(None))
    strip = lambda rows: {r["prompt"]: [(c["tokens"], c["beginnings"]) for c in r["candidates"]] for r in rows}  # noqa: E731
    assert strip(read_rows(path)) == strip(read_rows(pools))
    assert path.read_text(encoding="utf-8").startswith(lines[0])  # what was there is not made again
    assert len(read_rows(path)) == len(PROMPTS)


def test_answers_that_were_made_otherwise_are_refused(pools: Path) -> None:
    with pytest.raises(InvalidRequest, match="another place"):
        kept_rows(pools, settings(temperature=0.5).made)
    assert len(kept_rows(pools, settings().made)) == len(PROMPTS)


def test_a_failing_request_ends_the_run(engine: Engine, tmp_path: Path) -> None:
    asked = Asked({"prompt": "x"}, Request(model="model", prompt=messages("x"), stopping=Stopping(max_new_tokens=2)))

    def keep(asked: Asked, result: Any) -> Mapping[str, Any]:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        collect(engine, [asked], tmp_path / "x.jsonl", {}, keep, concurrency=1, deadline=Deadline(None))


def test_seeds_belong_to_prompts() -> None:
    seeds = {seed_of(prompt, seed) for prompt in PROMPTS for seed in range(3)}
    assert len(seeds) == 9
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_of_equal_rewards_the_first_is_taken() -> None:
    assert best([0.0, 2.0, 2.0]) == 1


# ------------------------------------------------------------------------------------------------------ gold standard


class Checkers:
    """Keeps the constraints whose number is in the response."""

    def followed(self, row: Mapping[str, Any]) -> list[bool]:
        return [str(k) in row["response"] for k in range(len(row["instruction_id_list"]))]


def scored(samples: int, responses: Sequence[str], rewards: Sequence[float], greedy: str = "0") -> Tried:
    row = {"prompt": f"{responses}{greedy}", "instruction_id_list": ["a", "b"], "kwargs": [{}, {}]}
    pool = [{"response": r, "reward": v, "tokens": 10} for r, v in zip(responses, rewards, strict=True)][:samples]
    checkers: Any = Checkers()
    answers = {"greedy": {**row, "candidates": [{"response": greedy}], "generated": 7}}
    return tried(answers | ({"pool": {**row, "candidates": pool}} if pool else {}), checkers)


def figures(rows: Sequence[Row]) -> dict[tuple[str, str, str], float]:
    return {(row.case, row.subject, row.metric): row.value for row in rows}


def test_figures_of_the_gold_standard_by_hand(tmp_path: Path) -> None:
    options = searching.Options(data=Path("none"), samples=4, deep_samples=16)
    # The reward takes the third of the first, which keeps both; of the second one that keeps none though the last does.
    one = scored(4, ["", "0", "01", "1"], [0.1, 0.5, 1.0, 0.5], greedy="01")
    two = scored(4, ["", "0", "2", "01"], [0.1, 0.5, 0.9, 0.8])
    found = record({"instruct": [one, two]}, options).rows
    value = figures(found)
    case = "instruct, 2 prompts"
    assert value[case, "best of 4", "prompts kept whole"] == 0.5
    assert value[case, "best of 4", "constraints kept"] == 0.5
    assert value[case, "best of 4", "tokens generated"] == 40
    assert value[case, "one sample", "tokens generated"] == 10
    assert value[case, "pass@4", "prompts kept whole"] == 1.0
    assert value[case, "pass@1", "prompts kept whole"] == 0.0
    assert value[case, "greedy", "prompts kept whole"] == 0.5
    assert value[case, "greedy", "constraints kept"] == 0.75
    assert value[case, "greedy", "tokens generated"] == 7
    assert value[case, "rules", "agree with the checkers"] == 7 / 8  # all but the last
    assert value[case, "best of 4 / greedy", "prompts kept whole"] == 1.0
    assert not any(subject == "best of 16" for _, subject, _ in value)
    text = table("ifeval_search", found)
    assert "| instruct, 2 prompts | **best of 4** | 50.0 %" in text
    assert "| 40 | 100.0 % |" in text


def test_deep_pools_are_a_case_of_their_own() -> None:
    options = searching.Options(data=Path("none"), samples=4, deep_samples=16)
    deep = scored(16, ["01"] * 16, [0.0] * 16)
    found = figures(record({"instruct": [deep, scored(4, ["0"] * 4, [0.0] * 4)]}, options).rows)
    assert found["instruct, 1 prompts", "best of 16", "prompts kept whole"] == 1.0
    assert found["instruct, 2 prompts", "best of 4", "prompts kept whole"] == 0.5
    assert ("instruct, 2 prompts", "best of 16", "prompts kept whole") not in found
    alone = figures(record({"instruct": [deep]}, options).rows)
    assert {case for case, _, _ in alone} == {"instruct, 1 prompts"}
    with pytest.raises(InvalidRequest, match="answers of 'instruct'"):
        record({"instruct": []}, options)


def test_methods_without_a_pool_have_figures() -> None:
    options = searching.Options(data=Path("none"), methods=("greedy",))
    found = record({"instruct": [scored(0, [], [], greedy="01"), scored(0, [], [])]}, options).rows
    assert figures(found)["instruct, 2 prompts", "greedy", "prompts kept whole"] == 0.5
    text = table("ifeval_search", found)
    assert text.count("instruct, 2 prompts") == 1
    assert "agree" not in text
    assert "Segment search" not in text


def test_the_rules_of_a_row_are_seen_by_the_search(tiny_folder: Callable[..., Path]) -> None:
    """Requests carry the prompt as a message; the reward must still find the rules of that prompt."""
    row = {"prompt": PROMPTS[0], "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    with Engine({"aligned": str(tiny_folder("llama"))}, rewards={"constraints": reward_for([row])}) as engine:
        scores = engine.score([(messages(PROMPTS[0]), text) for text in ("a, b", "a b")], reward="constraints")
        other = engine.score([(messages("something else"), "a, b")], reward="constraints")
    assert scores[0].value < scores[1].value == 1.0
    assert other[0].value == 1.0  # a prompt without rules keeps them all


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    rule = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}], "split": "report"}
    append_rows(tmp_path / "ifeval.jsonl", [{"prompt": prompt, **rule} for prompt in PROMPTS])
    return tmp_path / "ifeval.jsonl"


def test_ifeval_search_end_to_end(tmp_path: Path, gold: Path, tiny_folder: Callable[..., Path]) -> None:
    pytest.importorskip("lm_eval")
    folder, out = tiny_folder("llama"), tmp_path / "out"
    words: list[object] = ["--data", gold, "--out", out, "--aligned", folder, "--base", tiny_folder("qwen3")]
    words += ["--samples", 2, "--deep-samples", 4, "--deep-prompts", 1, "--max-new-tokens", 12, "--temperature", 1.0]
    words += ["--beams", 2, "--samples-per-beam", 2, "--segment-tokens", 4, "--memory-mb", 32, "--nudged-prompts", 2]
    words += ["--systems", "instruct", "nudged", "--results", tmp_path / "results"]
    assert run("bench", "ifeval-search", *words, "--stop-after", 0) == 0
    assert not out.exists() or not list(out.iterdir())  # no time: nothing
    assert run("bench", "ifeval-search", *words) == 0
    pool = {row["prompt"]: row for row in read_rows(out / "instruct-pool.jsonl")}
    assert [len(pool[prompt]["candidates"]) for prompt in PROMPTS] == [4, 2, 2]
    assert len(read_rows(out / "nudged-segments.jsonl")) == 2
    rows = load(tmp_path / "results" / "ifeval_search.jsonl")

    def keeps(response: str) -> bool:  # the checkers let an empty answer keep nothing
        return "," not in response and bool(response.strip())

    expected = np.mean([keeps(pool[p]["candidates"][0]["response"]) for p in PROMPTS])
    assert figures(rows)["instruct, 3 prompts", "one sample", "prompts kept whole"] == pytest.approx(expected)
    passed = figures(rows)["instruct, 1 prompts", "pass@4", "prompts kept whole"]
    assert passed == any(keeps(candidate["response"]) for candidate in pool[PROMPTS[0]]["candidates"])
    assert {row.case for row in rows} == {"instruct, 1 prompts", "instruct, 3 prompts", "nudged, 2 prompts"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"systems": ("chat",)}, "chat"),
        ({"methods": ()}, "methods"),
        ({"samples": 0}, "samples"),
        ({"deep_samples": 4, "samples": 16}, "deep_samples"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_options_of_the_gold_standard(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        searching.Options(data=Path("none"), **changes).checked()


def test_a_reward_model_that_was_trained_again_is_another(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    names = {rejection.named("some/hub-id")}
    for weights in (b"one", b"two"):
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
        names |= {rejection.named(str(tmp_path / "model")), rejection.named(str(tmp_path / "model"))}
    assert len(names) == 3
    assert not any(str(tmp_path) in name for name in names)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"every": (6,)}, "multiples of step"),
        ({"fractions": (1.0,)}, "fractions"),
        ({"against": 9}, "against"),
        ({"budget": 0.0}, "budget"),
        ({"samples": 1, "against": 1}, "samples"),
    ],
)
def test_bad_options_of_rejection(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        settings(**changes)


def test_rejection_end_to_end(tmp_path: Path, tiny: Any, tiny_folder: Callable[..., Path]) -> None:
    import transformers as hf

    arguments = {**tiny.KINDS["llama"][2], "num_labels": 1, "pad_token_id": 0}
    judge = hf.LlamaForSequenceClassification(hf.LlamaConfig(**arguments)).eval()
    tiny.randomise(judge, 5)
    folder = tiny.save(judge, tmp_path / "judge")
    rows = [{"prompt": f"{prompt} {k}", "split": s} for k, s in enumerate(("tune", "report")) for prompt in PROMPTS]
    append_rows(tmp_path / "data.jsonl", rows)
    words: list[object] = ["--data", tmp_path / "data.jsonl", "--reward", folder, "--model", tiny_folder("llama")]
    words += ["--out", tmp_path / "out", "--prompts", 2, "--tune-prompts", 2, "--samples", N, "--against", 4]
    words += ["--step", 4, "--every", 4, 8, "--max-new-tokens", TOKENS, "--memory-mb", 64, "--confirm", 2]
    words += ["--fractions", 0.3, 0.6, "--temperature", 1.0, "--results", tmp_path / "results"]
    assert run("bench", "rejection", *words, "--stop-after", 0) == 0
    assert not (tmp_path / "results").exists()
    assert run("bench", "rejection", *words) == 0
    found = figures(load(tmp_path / "results" / "rejection.jsonl"))
    assert found["all", "real runs", "same answer"] == 1.0
    assert found["all", "real runs", "difference of tokens generated"] == 0.0
    assert found["all", "real runs", "difference of reward"] == pytest.approx(0, abs=1e-3)
    before = (tmp_path / "out" / "pool.jsonl").read_bytes()
    assert run("bench", "rejection", *words) == 0  # from the files alone
    assert (tmp_path / "out" / "pool.jsonl").read_bytes() == before


# --------------------------------------------------------------------------------------------------------- best of n


def test_whole_pages_of_a_prompt_are_held_once(tiny_folder: Callable[..., Path]) -> None:
    options, size = EngineOptions(memory_bytes=8 << 20, page_tokens=32), 32
    with Engine({"model": str(tiny_folder("llama"))}, options=options) as engine:
        for prompt_tokens, n in ((96, 6), (99, 6), (70, 1), (9, 4)):
            prompt = [1 + i % 40 for i in range(prompt_tokens)]
            # The last pages are filled to the end, so there is time to see all of them held.
            held = held_pages(engine, prompt, n, size + 1 - prompt_tokens % size, size)
            assert held.most == held.shared
            if n > 1 and prompt_tokens > size:
                assert held.shared < held.apart


def test_the_sums_of_pages_by_hand() -> None:
    assert Held.expected(8, 27, 6, 14) == Held(0, 3 + 6 * 2, 6 * 5)
    assert Held.expected(64, 200, 16, 121).apart == 16 * 5


def options_of_n(**changes: Any) -> best_of_n.Options:
    return dataclasses.replace(best_of_n.Options(n=3, prompts=2, max_new_tokens=6, repeats=2), **changes).checked()


def test_both_sides_write_as_many_tokens(tiny_folder: Callable[..., Path]) -> None:
    import torch

    folder = str(tiny_folder("llama"))
    ours = Candidates(folder, 3, 1.0, 8, 8 << 20, None)
    theirs = Returned(folder, torch.float32, "cpu", 3, 1.0)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    recorder = Recorder("best_of_n", seed=0, dtype="float32", settings=NAMED)
    contestants = {"trimtab, pages of 8": ours, "transformers": theirs}
    best_of_n.compare(recorder, contestants, dict.fromkeys(range(-1, 2), prompts), options_of_n(page_tokens=(8,)))
    ours._engine.close()
    for batch in (theirs.run(prompts, 6), theirs.run(prompts, 6)):
        assert len({tuple(tokens) for tokens in batch.tokens}) > 2  # samples, not one answer over and over
    value = figures(recorder.rows)
    assert value["best of 3", "trimtab, pages of 8", "pages held"] <= 3 * 2
    assert value["best of 3", "trimtab, pages of 8 / transformers", "speed"] > 0
    assert "| trimtab, pages of 8 |" in table("best_of_n", recorder.rows)


def test_unequal_work_is_no_comparison() -> None:
    short: Any = SimpleNamespace(run=lambda prompts, tokens: Batch([[1] * (tokens - 1)] * 6, [], 1.0, 0))
    recorder = Recorder("best_of_n", seed=0, dtype="float32", settings=NAMED)
    with pytest.raises(RuntimeError, match="in place of 6"):
        best_of_n.compare(recorder, {"a": short, "b": short}, {k: [[1], [2]] for k in range(-1, 2)}, options_of_n())


@pytest.mark.parametrize(
    "changes", [{"n": 0}, {"page_tokens": ()}, {"page_tokens": (64, 64)}, {"temperature": 0.0}, {"threads": 0}]
)
def test_bad_options_of_best_of_n(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(changes))):
        options_of_n(**changes)


@pytest.mark.full
def test_best_of_n_end_to_end(tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
    words = ["--model", tiny_folder("llama"), "-n", 3, "--page-tokens", 0, 64, "--memory-mb", 32]
    assert run("bench", "best-of-n", *words, "--quick", "--results", tmp_path) == 0
    found = figures(load(tmp_path / "best_of_n.jsonl"))
    assert found["best of 3", "trimtab, pages of 64", "pages held"] > 0
    assert found["best of 3", "trimtab / transformers", "speed"] > 0
