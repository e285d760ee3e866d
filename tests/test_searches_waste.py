"""Nothing is done twice: greedy searches, equal answers, tournaments; counted through the engine, on random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_doubles import Compared, Rated

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches import mathematics
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.result import Token
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.folding import fold, fold_pairs

Folder = Callable[..., Path]
PROMPT = "go on then"


class Made:
    """An engine and its rewards, forgetful between tests."""

    def __init__(self, engine: Engine, length: Rated, versus: Compared) -> None:
        self.engine, self.length, self.versus = engine, length, versus

    def rewards(self) -> tuple[Rated, Compared]:
        """Those of the engine, emptied."""
        self.length.forget()
        self.versus.forget()
        return self.length, self.versus


@pytest.fixture(scope="module")
def made(tiny_folder: Folder) -> Iterator[Made]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kinds = {"base": ("llama", 0), "chat": ("mistral", 2)}
    models = {n: ModelConfig(source=str(tiny_folder(k, seed)), dtype="float32") for n, (k, seed) in kinds.items()}
    length = Rated(lambda sample: float(len(sample.text)))
    versus = Compared(lambda a, b: 0.5 if a == b else 0.9 if a > b else 0.1)
    rewards: dict[str, Any] = {"length": length, "versus": versus}
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=64 << 20, page_tokens=16)) as engine:
        yield Made(engine, length, versus)
        engine.check()
    torch.set_num_threads(threads)


POLICIES: dict[str, Any] = {
    "base": {},
    "nudged": {"policy": Nudged("chat", Entropy(3.0))},
    "mixture": {"policy": Mixture((Weighted("chat", 0.5),))},
    "token reward": {"policy": TokenReward("length", 1.0, 4)},
}
WASTED: dict[str, tuple[Any, Any]] = {
    # a search that is refused, and one of its kind that isn't
    "search.best_of_n.n": (BestOfN(16, "length"), BestOfN(1, "length")),
    "search.segments.samples_per_beam": (Segments("length", 4, 4, max_tokens=4), Segments("length", 1, 1)),
    "search.segments.beams": (Segments("length", 4, 1, max_tokens=4), Segments("length", 1, 1)),
    "search.reject_segments.max_tries": (
        RejectSegments("length", 99.0, max_tries=2),
        RejectSegments("length", 99.0, max_tries=1),
    ),
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("field", WASTED)
def test_equal_greedy_candidates_are_refused(made: Made, field: str, policy: str) -> None:
    wasteful, fine = WASTED[field]
    options: dict[str, Any] = {"max_new_tokens": 6, "seed": 1, **POLICIES[policy]}
    counting, _ = made.rewards()
    with pytest.raises(
        InvalidRequest, match=r"accepted: 1, or sampling\.temperature > 0: at 0, .* are all the same"
    ) as e:
        made.engine.generate(PROMPT, search=wasteful, temperature=0.0, **options)
    assert [violation.field for violation in e.value.violations] == [field]
    assert not counting.calls, "before anything runs"
    greedy = made.engine.generate(PROMPT, temperature=0.0, **options)
    found = made.engine.generate(PROMPT, search=fine, temperature=0.0, **options)
    assert found.text == greedy.text
    if policy == "base":
        assert made.engine.generate(PROMPT, search=wasteful, temperature=0.9, **options).tokens


def test_the_default_of_a_model_is_its_temperature(tiny_folder: Folder, made: Made) -> None:
    """What counts is the temperature that the request comes to, here by a transformers configuration."""
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=6)
    with pytest.raises(InvalidRequest, match=r"search\.best_of_n\.n = 4"):
        made.engine.generate(PROMPT, search=BestOfN(4, "length"), generation_config=config)
    sampled = GenerationConfig(max_new_tokens=6, do_sample=True)
    assert len(made.engine.generate(PROMPT, search=BestOfN(4, "length"), generation_config=sampled).candidates) == 4


def test_greedy_revisions_are_all_different(made: Made) -> None:
    """One that is not better leaves the answer as it was, which would be criticised and revised in the same words."""
    counting, _ = made.rewards()
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.0, "seed": 3}
    refined = made.engine.generate(PROMPT, search=Refine("length", rounds=6), **options)
    values = [candidate.rewards["objective"] for candidate in refined.candidates]
    assert len(values) < 7
    assert values[:-1] == sorted(set(values[:-1])), "what was built upon is better than what it was made of"
    assert values[-1] <= values[-2]
    assert len(counting.calls) == len(values)


def test_evolution_answers_an_instruction_once(made: Made) -> None:
    """The plain answer is there already where greedy decoding would give it to the same instruction again."""
    search = Evolution("length", 2, 2, 4, rounds=1)
    for temperature, count in ((0.8, 3), (0.0, 3)):
        found = made.engine.generate(PROMPT, search=search, max_new_tokens=6, seed=3, temperature=temperature)
        assert len(found.candidates) == count
    texts = [tuple(t.id for t in c.tokens) for c in found.candidates]
    assert texts[0] not in texts[1:]


def test_a_tournament_over_a_scalar_rates_each_once(made: Made) -> None:
    options: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.5, "seed": 5}
    counting, _ = made.rewards()
    best = made.engine.generate(PROMPT, search=BestOfN(16, "length"), **options)
    different = len(counting.samples)
    counting, _ = made.rewards()
    fought = made.engine.generate(PROMPT, search=BestOfN(16, "length", Choose.TOURNAMENT), **options)
    assert len(counting.samples) == different <= 16
    assert len(counting.calls) == fought.usage.reward_calls == best.usage.reward_calls == 1
    assert fought.selected == best.selected
    counting, versus = made.rewards()
    both = {"length": 0.5, "versus": 0.5}
    made.engine.generate(PROMPT, search=BestOfN(16, both, Choose.TOURNAMENT), **options)
    assert len(counting.samples) == different
    assert len(versus.pairs) == different * (different - 1) // 2


def test_equal_answers_are_rated_once(made: Made) -> None:
    """One allowed token and the end of answers: sixteen candidates are few different ones."""
    allowed, end = 70, made.engine.models["base"].eos_token_ids[0]
    bias = {token: float("-inf") for token in range(made.engine.models["base"].vocab_size)}
    bias = {token: value for token, value in bias.items() if token not in (allowed, end)} | {end: 3.0}
    options: dict[str, Any] = {"max_new_tokens": 3, "temperature": 1.0, "seed": 2, "logit_bias": bias}
    for search in (
        BestOfN(16, "length"),
        BestOfN(16, "length", Choose.WEIGHTED),
        BestOfN(16, {"length": 0.5, "versus": 0.5}, Choose.TOURNAMENT),
        Segments("length", 4, 4, max_tokens=1),
    ):
        counting, versus = made.rewards()
        result = made.engine.generate(PROMPT, search=search, **options)
        different = {tuple(t.id for t in c.tokens) for c in result.candidates}
        asked = [(s.text, s.finished, tuple(t.id for t in s.tokens)) for s in counting.samples]
        if isinstance(search, BestOfN):
            assert len(different) <= 4 < len(result.candidates)
            assert len(asked) == len(set(asked)) == len(different)
            assert len(versus.pairs) == len(set(versus.pairs)) <= len(different) * (len(different) - 1) // 2
        else:
            assert len(asked) <= 4 * 3, "rounds of at most four different continuations"
        by_ids = {tuple(t.id for t in c.tokens): c.rewards for c in result.candidates}
        if not versus.pairs:
            assert all(by_ids[tuple(t.id for t in c.tokens)] == c.rewards for c in result.candidates)


def test_what_a_reward_can_read_is_not_folded() -> None:
    token = Token(1, b"a", "base")
    one = Sample("p", "a", True, (token,))
    others = [
        Sample("p", "a", False, (token,)),
        Sample("q", "a", True, (token,)),
        Sample("p", "a", True, (token,), ("r",)),
        Sample("p", "a", True, (Token(2, b"a", "base"),)),
        Sample("p", "a", True, (Token(1, b"a", "chat"),)),
        Sample("p", "a", True, (token, Token(0, b"", "base"))),
        Sample("p", "b", True, (token,)),
    ]
    samples, places = fold([one, *others, one, *others])
    assert samples == [one, *others]
    assert places == [*range(8), *range(8)]
    rounded = Sample("p", "a", True, (Token(1, b"a", "base", logprob=-0.5000001),))
    assert fold([one, rounded])[1] == [0, 0], "figures of the same token in the same place differ by rounding only"


def test_pairs_are_folded_by_symmetry() -> None:
    a, b, c = (Sample("p", text) for text in "abc")
    asked, places = fold_pairs([(a, b), (b, a), (a, a), (b, c), (a, b)])
    assert asked == [(a, b), (b, c)]
    assert places == [(0, False), (0, True), None, (1, False), (0, False)]


def test_folding_changes_no_rating(made: Made) -> None:
    """An objective over several rewards, with equal samples among others, against one by one."""
    from trimtab.decode.rewards.rating import rate

    objective = Objective((RewardTerm("length"), RewardTerm("length", 2.0)), Combine.CONSERVATIVE)
    samples = [Sample("p", text) for text in ("abc", "a", "abc", "", "a")]

    class Context:
        def reward(self, name: str) -> Any:
            return made.engine._rewards[name]

    def run(coroutine: Any) -> Any:
        from trimtab.decode.engine.tasks import Task

        waiting: list[tuple[Any, Any]] = []
        task = Task(coroutine, lambda task, op: waiting.append((task, op)))
        task.start()
        while waiting:
            child, op = waiting.pop()
            child.resume(op.function(*op.args))
        return task.result

    together = run(rate(Context(), objective, samples))  # type: ignore[arg-type]
    alone = [run(rate(Context(), objective, [sample]))[0] for sample in samples]  # type: ignore[arg-type]
    assert together == alone


@pytest.mark.skipif(not mathematics.available(), reason="needs the extra 'math'")
def test_votes_in_the_engine(made: Made) -> None:
    for extract in ("auto", "letter", "number", "text", "math"):
        search = BestOfN(4, "length", Choose.WEIGHTED, extract=extract)
        result = made.engine.generate(PROMPT, search=search, max_new_tokens=6, temperature=1.0, seed=4)
        shares = [candidate.rewards["votes"] for candidate in result.candidates]
        assert shares[result.selected] == max(shares)
    with pytest.raises(InvalidRequest, match=r"search\.best_of_n\.extract = 'maths': accepted: one of auto, letter"):
        made.engine.generate(PROMPT, search=BestOfN(4, choose=Choose.MAJORITY, extract="maths"))


def test_memory_says_how_many_candidates(made: Made) -> None:
    """As many as have room, and no more than the engine's limit."""
    options: dict[str, Any] = {"max_new_tokens": 3, "seed": 1, "temperature": 1.0}
    for held, n in ((40, 5), (8 * 1000, made.engine.limits.max_n)):
        search = BestOfN(objective="length", reject_fraction=0.5, max_held_tokens=held)
        assert len(made.engine.generate(PROMPT, search=search, **options).candidates) == n
