"""The protocol of rewards: what they must give, how they are combined and found, and what happens when not."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_doubles import Compared

from trimtab.decode.config import ConfigError, EngineConfig, ModelConfig
from trimtab.decode.errors import EngineFailed, RequestCancelled, RewardFailed, UnsupportedRequest
from trimtab.decode.ops import Call, Gather
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.rewards import registry
from trimtab.decode.rewards.base import EngineReward, LocalReward, Reward, Sample, spoken, turns
from trimtab.decode.rewards.calibration import FixedReference
from trimtab.decode.rewards.combine import combine, log_sigmoid, sigmoid
from trimtab.decode.rewards.logistic import Composition, fit
from trimtab.decode.rewards.rating import compare, rate
from trimtab.decode.rewards.readings import cvar, quantile, reading
from trimtab.decode.rewards.registry import make_rewards, reward_types

finite = st.floats(-50, 50)


class Context:
    """Answers calls at once, in this thread; a call that takes longer than its limit is given up."""

    def __init__(self, rewards: Mapping[str, Any], **reasons: Exception) -> None:
        self.rewards = make_rewards(rewards)
        self.calls: list[Call] = []

    def reward(self, name: str) -> Reward:
        return self.rewards[name]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        answer: Any = None
        error: Exception | None = None
        while True:
            try:
                op = coroutine.throw(error) if error is not None else coroutine.send(answer)
            except StopIteration as stop:
                return stop.value
            answer, error = None, None
            try:
                answer = self._answered(op)
            except Exception as raised:
                error = raised

    def _answered(self, op: Any) -> Any:
        if isinstance(op, Gather):
            return [self.run(child) for child in op.children]
        assert isinstance(op, Call)
        self.calls.append(op)
        begun = time.monotonic()
        result = op.function(*op.args)
        if time.monotonic() - begun > op.timeout:
            raise TimeoutError
        return result

    def rate(self, objective: Any, samples: Sequence[Sample]) -> list[float]:
        return [rating.value for rating in self.run(rate(self, objective, samples))]  # type: ignore[arg-type]

    def compare(self, objective: Any, pairs: Sequence[tuple[Sample, Sample]]) -> list[float]:
        return list(self.run(compare(self, objective, pairs)))  # type: ignore[arg-type]


def longer() -> Compared:
    return Compared(lambda a, b: 1 / (1 + math.exp(len(b) - len(a))))


def length(prompt: str, text: str) -> float:
    """Characters of the answer."""
    return len(text)


def vowels(samples: list[Sample]) -> list[int]:
    return [sum(s.text.count(v) for v in "aeiou") for s in samples]


def samples(*texts: str) -> list[Sample]:
    return [Sample("p", text) for text in texts]


# --------------------------------------------------------------------------------------------------------------- rating


@given(st.lists(st.text(max_size=12), max_size=8), st.randoms(use_true_random=False))
def test_neither_order_nor_company_changes_a_rating(texts: list[str], draw: Any) -> None:
    context = Context({"length": length, "vowels": vowels})
    objective = {"length": 0.5, "vowels": -2.0}
    found = dict(zip(texts, context.rate(objective, samples(*texts)), strict=True))
    shuffled = draw.sample(texts, len(texts))
    assert context.rate(objective, samples(*shuffled)) == [found[text] for text in shuffled]
    for text in texts:
        assert context.rate(objective, samples(text)) == [found[text]]


def test_every_reward_is_called_once_for_all_samples() -> None:
    context = Context({"length": length, "vowels": vowels})
    twice = Objective((RewardTerm("length", 1.0), RewardTerm("vowels", 2.0), RewardTerm("length", 3.0)))
    ratings = context.run(rate(context, twice, samples("aa", "b")))  # type: ignore[arg-type]
    assert [dict(r.by_name) for r in ratings] == [{"length": 2, "vowels": 2}, {"length": 1, "vowels": 0}]
    assert [r.value for r in ratings] == [12, 4]
    assert len(context.calls) == 2
    assert all(call.where == "thread" and call.timeout == 30 for call in context.calls)
    assert context.rate(twice, []) == []
    assert len(context.calls) == 2


BROKEN: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (lambda batch: 1 / 0, "it raised ZeroDivisionError: division by zero"),
    "nan": (
        lambda batch: [0.5] * (len(batch) - 1) + [math.nan],
        "it gave nan for sample 1; accepted: numbers in [-1e+30, 1e+30]",
    ),
    "infinite": (lambda batch: [math.inf] * len(batch), "it gave inf for sample 0"),
    "words": (lambda batch: ["good"] * len(batch), "it gave 'good' for sample 0"),
    "few": (lambda batch: [1.0], "it gave 1 numbers for 2 samples"),
    "none": (lambda batch: None, "it gave None in place of 2 numbers"),
    "slow": (lambda batch: time.sleep(0.03) or [1.0] * len(batch), "it took longer than its limit of 0.01 s"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reward_names_itself_and_its_reason(name: str) -> None:
    function, reason = BROKEN[name]
    table = {"type": "python", "function": function, "timeout": 0.01 if name == "slow" else 5.0}
    context = Context({name: table, "length": length})
    with pytest.raises(RewardFailed) as failure:
        context.rate({"length": 1.0, name: 1.0}, samples("a", "b"))
    assert failure.value.reward == name
    assert reason in str(failure.value)
    assert failure.value.timed_out is failure.value.retryable is (name == "slow")
    assert context.rate("length", samples("a", "b")) == [1, 1]


def test_faults_that_are_not_the_reward_s_pass() -> None:
    class Cancelled(EngineReward):
        def __init__(self, error: Exception) -> None:
            self.error = error

        async def rate(self, context: Any, samples: Sequence[Sample]) -> Sequence[float]:
            raise self.error

    for error in (RequestCancelled("by its owner"), EngineFailed("a pass failed")):
        with pytest.raises(type(error)):
            Context({"r": Cancelled(error)}).rate("r", samples("a"))
    with pytest.raises(RewardFailed, match="'r' failed: it raised KeyError"):
        Context({"r": Cancelled(KeyError("x"))}).rate("r", samples("a"))


def test_references_are_asked_for() -> None:
    class Needy(LocalReward):
        needs_reference = True

        def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
            return [float(sample.text in sample.references) for sample in samples]

    context = Context({"needy": Needy()})
    assert context.rate("needy", [Sample("p", "a", references=("a", "b"))]) == [1]
    with pytest.raises(RewardFailed, match="no references"):
        context.rate("needy", [Sample("p", "a", references=("a",)), Sample("p", "a")])


def test_the_prompt_as_a_reward_reads_it() -> None:
    chat = (ChatMessage("system", "be brief"), ChatMessage("user", "hi"), ChatMessage("assistant", "yes?"))
    assert Sample("plain", "").instruction == "plain"
    assert Sample((*chat, ChatMessage("user", "go on")), "").instruction == "go on"
    assert Sample(({"role": "user", "content": "q"},), "").instruction == "q"
    assert spoken("plain") == "plain"
    assert spoken(chat[:2]) == "System: be brief\n\nUser: hi"
    assert turns("plain") == (ChatMessage("user", "plain"),)
    for read in (lambda: Sample((1, 2), "").instruction, lambda: turns((1, 2)), lambda: spoken((3,))):
        with pytest.raises(ValueError, match="accepted"):
            read()
    with pytest.raises(RewardFailed, match=r"'length'.*accepted: a text"):
        Context({"length": length}).rate("length", [Sample((1, 2), "text")])


# -------------------------------------------------------------------------------------------------------------- combine


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=5), st.floats(0, 3))
def test_formulas(pairs: list[tuple[float, float]], spread: float) -> None:
    weights, values = [w for w, _ in pairs], [v for _, v in pairs]
    terms = tuple(RewardTerm(str(i), w) for i, w in enumerate(weights))
    total = combine(Objective(terms), weights, values)
    assert total == pytest.approx(sum(w * v for w, v in pairs), abs=1e-9)
    assert combine(Objective(terms, Combine.MIN), weights, values) == min(w * v for w, v in pairs)
    careful = combine(Objective(terms, Combine.CONSERVATIVE, spread), weights, values)
    mass = sum(map(abs, weights))
    if mass > 1e-6:
        mean = total / mass
        assert careful <= mean + 1e-9
        assert combine(Objective(terms, Combine.CONSERVATIVE, 0.0), weights, values) == pytest.approx(mean, abs=1e-9)
        one = combine(Objective(terms, Combine.CONSERVATIVE), weights, values)
        assert careful == pytest.approx(mean + spread * (one - mean), abs=1e-7)


def test_conservative_is_the_mean_minus_the_deviation() -> None:
    objective = Objective((RewardTerm("a"), RewardTerm("b", 3.0)), Combine.CONSERVATIVE, 2.0)
    assert combine(objective, [1, 3], [0, 4]) == pytest.approx(3 - 2 * math.sqrt(3))
    assert combine(objective, [1, -3], [2, -2]) == pytest.approx(2)  # turned round, both say 2
    assert combine(objective, [0, 0], [1, 2]) == 0


@given(st.floats(-800, 800))
def test_sigmoids_are_stable(x: float) -> None:
    assert 0 <= sigmoid(x) <= 1
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1)
    assert log_sigmoid(x) - log_sigmoid(-x) == pytest.approx(x, rel=1e-9, abs=1e-9)
    if x > -700:
        assert math.exp(log_sigmoid(x)) == pytest.approx(sigmoid(x), rel=1e-9)


def test_a_soft_and_can_not_be_bought() -> None:
    """Where one reward is hopeless, no amount of the other helps; a plain sum can be bought."""
    rewards = {"length": {"type": "python", "function": length, "reference": {"center": 4, "scale": 0.5}},
               "vowels": {"type": "python", "function": vowels, "reference": {"center": 2}}}  # fmt: skip
    context = Context(rewards)
    both = (RewardTerm("length"), RewardTerm("vowels"))
    long, even = "x" * 60, "aeiouu"
    plain = context.rate(Objective(both), samples(long, even))
    soft = context.rate(Objective(both, Combine.LOG_SIGMOID), samples(long, even))
    assert plain[0] > plain[1]
    assert soft[0] < soft[1]
    assert soft[1] == pytest.approx(log_sigmoid((6 - 4) / 0.5) + log_sigmoid(6 - 2))
    assert context.rewards["vowels"].reference == FixedReference(2)


# -------------------------------------------------------------------------------------------------------------- compare


def test_comparisons() -> None:
    context = Context({"longer": longer(), "length": length, "vowels": vowels})
    pairs = [(a, b) for a in samples("a", "bbb", "ee") for b in samples("a", "bbb", "ee")]
    for objective in ("longer", "length", {"length": 1.0, "vowels": -1.0}, {"longer": 2.0, "vowels": -1.0}):
        odds = context.compare(objective, pairs)
        back = context.compare(objective, [(b, a) for a, b in pairs])
        assert [p + q for p, q in zip(odds, back, strict=True)] == pytest.approx([1] * len(pairs))
        assert all(0 <= p <= 1 for p in odds)
    assert context.compare("length", pairs[1:2]) == pytest.approx([sigmoid(-2)])
    assert context.compare({"longer": 2.0, "vowels": -1.0}, pairs[1:2]) == pytest.approx(
        [0.5 + (2 * (sigmoid(-2) - 0.5) - (sigmoid(1) - 0.5)) / 3]
    )
    assert context.compare("length", []) == []
    with pytest.raises(UnsupportedRequest, match="tournament"):
        context.rate("longer", samples("a"))
    with pytest.raises(UnsupportedRequest, match=r"objective\.combine"):
        context.compare(Objective((RewardTerm("longer"),), Combine.MIN), pairs)

    with pytest.raises(RewardFailed, match=r"1\.5 for a probability"):
        Context({"odd": Compared(lambda a, b: 1.5)}).compare("odd", pairs)


# ------------------------------------------------------------------------------------------------------------- readings


def test_quantile_readings() -> None:
    outputs = [0.0, 1.0, 2.0, 3.0]  # at 0.2, 0.4, 0.6, 0.8
    assert [quantile(outputs, q) for q in (0.01, 0.2, 0.3, 0.5, 0.8, 1.0)] == pytest.approx([0, 0, 0.5, 1.5, 3, 3])
    assert quantile(outputs[::-1], 0.3) == pytest.approx(0.5)  # crossing quantiles are sorted
    assert cvar(outputs, 1.0) == pytest.approx(1.5)
    assert cvar(outputs, 0.2) == pytest.approx(0)
    assert cvar(outputs, 0.4) == pytest.approx((0.2 * 0 + 0.2 * 0.5) / 0.4)
    assert reading("probability", ("a", "b"), "b", 0.5)([0.0, 1000.0]) == pytest.approx(1)
    assert reading(None, ("a", "b"), 1, 0.5)([4.0, 5.0]) == 5
    assert reading(None, ("a",), None, 0.5)([4.0]) == 4


@given(st.lists(finite, min_size=2, max_size=12), st.floats(0.01, 1), st.floats(0.01, 1))
def test_risk_is_ordered(outputs: list[float], a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    assert quantile(outputs, low) <= quantile(outputs, high) + 1e-9
    assert cvar(outputs, low) <= cvar(outputs, high) + 1e-9
    assert min(outputs) - 1e-9 <= cvar(outputs, low) <= quantile(outputs, low) + 1e-9
    steps = [quantile(outputs, (i + 0.5) * high / 4000) for i in range(4000)]
    assert cvar(outputs, high) == pytest.approx(sum(steps) / 4000, abs=0.05)


# ------------------------------------------------------------------------------------------------------------- registry


def test_built_in_types_are_entry_points() -> None:
    types = reward_types()
    assert {"bleu", "calibrated", "classifier", "constraints", "judge", "profile", "python", "similarity"} <= set(types)
    assert all(callable(entry.load()) for entry in types.values())


def test_a_plug_in_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plug_in_for_tests.py").write_text(
        "from trimtab.decode.rewards.base import LocalReward\n"
        "class Ends(LocalReward):\n"
        "    kind = 'prefix'\n"
        "    def __init__(self, sign='.'):\n"
        "        self.sign = sign\n"
        "    def rate(self, samples):\n"
        "        return [float(s.text.endswith(self.sign)) for s in samples]\n"
        "def wrong():\n"
        "    return 3\n"
    )
    info = tmp_path / "plug_in_for_tests-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in-for-tests\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[trimtab.rewards]\nends = plug_in_for_tests:Ends\nwrong = plug_in_for_tests:wrong\ngone = plug_in_missing:x\n"
    )
    assert "ends" not in reward_types()
    monkeypatch.syspath_prepend(tmp_path)
    context = Context({"end": {"type": "ends", "sign": "!"}})
    assert context.rate("end", samples("a!", "a.")) == [1, 0]
    assert context.rewards["end"].info.kind == "prefix"
    with pytest.raises(ConfigError, match=r"rewards\.e\.sing = '!': accepted: one of sign.*did you mean 'sign'"):
        make_rewards({"e": {"type": "ends", "sing": "!"}})
    with pytest.raises(ConfigError, match=r"rewards\.e\.type = 'wrong'.*made a int"):
        make_rewards({"e": {"type": "wrong"}})
    with pytest.raises(ConfigError, match=r"rewards\.e\.type = 'gone'.*plug_in_missing"):
        make_rewards({"e": {"type": "gone"}})
    sys.modules.pop("plug_in_for_tests", None)


def test_an_old_build_s_metadata_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "trimtab.egg-info"
    info.mkdir()
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: trimtab\nVersion: 0.0.1\n")
    (info / "entry_points.txt").write_text("[console_scripts]\ntrimtab = trimtab.decode.commands:main\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not metadata.entry_points(group="trimtab.rewards")  # what the obvious call would find
    assert "judge" in reward_types()


def test_what_a_reward_can_be_made_of() -> None:
    pairwise = longer()
    made = make_rewards(
        {
            "function": length,
            "batched": vowels,
            "object": pairwise,
            "again": pairwise,
            "table": {"type": "length", "at_least": 3, "description": "long enough", "timeout": 2},
            "path": {"type": "python", "function": f"{math.__name__}:hypot", "kind": "prefix", "runs_on": "process"},
        }
    )
    assert list(made) == ["function", "batched", "object", "again", "table", "path"]
    assert [reward.name for reward in made.values()] == list(made)  # one object under two names has both
    assert made["function"].info.kind == "sequence"
    assert made["function"].info.description == "Characters of the answer."
    assert (made["table"].description, made["table"].timeout) == ("long enough", 2)
    assert (made["path"].kind, made["path"].runs_on) == ("prefix", "process")
    assert made["object"].info.pairwise
    assert not pairwise.name


def test_a_process_reward_can_be_sent_to_one() -> None:
    import pickle

    made = make_rewards({"p": {"type": "python", "function": "math:hypot", "runs_on": "process"}})["p"]
    assert isinstance(made, LocalReward)
    function, sample = pickle.loads(pickle.dumps((made.rate, Sample("p", "a", references=("b",)))))
    assert sample == Sample("p", "a", references=("b",))
    assert function.__self__.function is math.hypot


async def coroutine_function(prompt: str, text: str) -> float:
    return 0.0


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (3, r"rewards\.r = 3: accepted: a reward, a function"),
        ({"at_least": 3}, r"rewards\.r\.type = None"),
        ({"type": "lenght", "at_least": 3}, r"rewards\.r\.type = 'lenght'.*did you mean 'length'"),
        ({"type": "length", "atleast": 3}, r"rewards\.r\.atleast = 3.*did you mean 'at_least'"),
        ({"type": "length"}, r"rewards\.r\.at_least = None"),
        ({"type": "length", "at_least": 3, "timeout": 0}, r"rewards\.r\.timeout = 0: accepted: a finite number > 0"),
        ({"type": "length", "at_least": 3, "reference": 3}, r"rewards\.r\.reference = 3"),
        ({"type": "length", "at_least": 3, "reference": {"scale": 0}}, r"rewards\.r\.reference\.scale = 0"),
        ({"type": "length", "at_least": 3, "reference": {"centre": 0}}, r"rewards\.r\.reference\.centre"),
        ({"type": "length", "at_least": 3, "reference": {"model": "m"}}, r"rewards\.r\.reference\.model = 'm'"),
        ({"type": "python"}, r"rewards\.r\.function = None: accepted: a value"),
        ({"type": "python", "function": "math"}, r"rewards\.r\.function = 'math': accepted: the import path"),
        ({"type": "python", "function": "math:nothing"}, r"rewards\.r\.function.*nothing"),
        ({"type": "python", "function": "no_module_of_that_name:f"}, r"rewards\.r\.function.*no_module_of_that_name"),
        ({"type": "python", "function": length, "kind": "whole"}, r"rewards\.r\.kind = 'whole'.*sequence, prefix"),
        ({"type": "python", "function": length, "runs_on": "engine"}, r"rewards\.r\.runs_on"),
        (coroutine_function, r"rewards\.r = .*accepted: a plain function"),
        (lambda: 0.0, r"rewards\.r = .*accepted: a plain function"),
        (lambda a, b, c: 0.0, r"rewards\.r = .*accepted: a plain function"),
        ({"type": "profile", "terms": {"r": 1}}, r"rewards\.r\.terms\.r.*doesn't build on 'r' itself"),
        ({"type": "profile", "terms": {"other": 1}}, r"rewards\.r\.terms\.other"),
        ({"type": "profile", "terms": {}}, r"rewards\.r\.terms"),
        ({"type": "profile", "terms": {"l": "a"}}, r"rewards\.r\.terms\.l = 'a': accepted: a finite number"),
        ({"type": "profile", "terms": {"l": 1}, "combine": "mean"}, r"rewards\.r\.combine = 'mean'.*log_sigmoid"),
    ],
)
def test_faults_of_configuration_are_named(spec: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_rewards({"r": spec, "l": length})


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as failure:
        make_rewards(
            {"a": 1, "b": {"type": "x"}, "fine": length, "c": {"type": "length", "unit": "miles", "exactly": 1}}
        )
    assert [v.field for v in failure.value.violations] == ["rewards.a", "rewards.b.type", "rewards.c.unit"]


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"rewards\.b\.type.*pip install 'trimtab\[rewards\]'"):
        make_rewards({"b": {"type": "bleu"}})


def test_models_must_be_there() -> None:
    class Asks(EngineReward):
        models = ("judge",)

        async def rate(self, context: Any, samples: Sequence[Sample]) -> Sequence[float]:
            return [0.0] * len(samples)

    with pytest.raises(ConfigError, match=r"rewards\.a\.model = 'judge': accepted: one of the models 'base'"):
        make_rewards({"a": Asks()}, {"base": ModelConfig(source="x")})
    assert make_rewards({"a": Asks()}, {"judge": ModelConfig(source="x")})["a"].info.models == ("judge",)


def test_profiles_build_on_one_another_in_any_order() -> None:
    table = {"type": "profile", "combine": "sum"}
    rewards = {
        "top": {**table, "terms": {"middle": 2.0, "length": 1.0}},
        "middle": {**table, "terms": {"vowels": 1.0, "length": -1.0}},
        "length": {"type": "python", "function": length, "kind": "prefix"},
        "vowels": {"type": "python", "function": vowels, "kind": "token"},
    }
    context = Context(rewards)
    assert context.rate("top", samples("aeb")) == [2 * (2 - 3) + 3]
    assert context.rewards["top"].kind == "prefix"  # the weakest of its parts
    circle = {"a": {**table, "terms": {"b": 1}}, "b": {**table, "terms": {"a": 1}}}
    with pytest.raises(ConfigError, match=r"rewards\.b\.terms\.a"):
        make_rewards(circle)


def test_tables_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    (tmp_path / "t.toml").write_text(
        '[models.m]\nsource = "x"\n[rewards.j]\ntype = "json"\npath = "./schema.json"\n'
        '[rewards.p]\ntype = "profile"\nterms = { j = 1.0 }\n'
    )
    config = EngineConfig.load(tmp_path / "t.toml")
    assert config.rewards["j"]["path"] == str(tmp_path.resolve() / "schema.json")
    rewards = make_rewards(config.rewards, config.models)
    assert rewards["j"].rate(samples("{}", "[]")) == [1, 0.75]  # type: ignore[attr-defined]
    for text, named in (
        ("[rewards.r]\nkind = 3", r"rewards\.r\.type = None"),
        ("[rewards.r]\ntype = 3", r"rewards\.r\.type = 3"),
        ("[rewards.'a b']\ntype = 'json'", r"rewards = 'a b'"),
        ("[rewards]\nr = 'json'", r"rewards\.r = 'json'"),
    ):
        (tmp_path / "bad.toml").write_text(f'[models.m]\nsource = "x"\n{text}\n')
        with pytest.raises(ConfigError, match=named):
            EngineConfig.load(tmp_path / "bad.toml")


# ------------------------------------------------------------------------------------------------------------- logistic


def test_a_composition_recovers_what_made_the_preferences(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    import numpy as np

    draw = np.random.default_rng(0)
    true = np.array([1.5, -0.02, 0.0])
    first, second = (draw.normal(size=(4000, 3)) * (1, 50, 1) for _ in range(2))
    wins = draw.random(4000) < 1 / (1 + np.exp(-(first - second) @ true))
    better, worse = np.where(wins[:, None], first, second), np.where(wins[:, None], second, first)
    names = ("helpful", "length", "noise")
    found = fit(names, better.tolist(), worse.tolist())
    assert [found.weights[n] for n in names] == pytest.approx(true, abs=0.12)
    assert fit(names, worse.tolist(), better.tolist()).weights["helpful"] < -1  # the control
    found.save(tmp_path / "c.json")
    tables: dict[str, Any] = {"c": {"type": "logistic", "path": str(tmp_path / "c.json")}}
    tables |= {name: {"type": "python", "function": length, "kind": "prefix"} for name in names}
    context = Context(tables)
    expected = found.intercept + 3 * sum(found.weights.values())
    assert context.rate("c", samples("abc")) == pytest.approx([expected])
    assert context.rewards["c"].kind == "prefix"


def test_compositions_are_checked(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    for better, worse in (([], []), ([[1.0]], [[1.0], [2.0]]), ([[math.nan, 1]], [[0, 0]])):
        with pytest.raises(ValueError, match="preferred"):
            fit(("a", "b"), better, worse)
    Composition({"nothing": 1.0}).save(tmp_path / "c.json")
    (tmp_path / "bad.json").write_text("[]")
    for path, named in (("c.json", r"path\.nothing"), ("bad.json", "path"), ("none.json", "path")):
        with pytest.raises(ConfigError, match=rf"rewards\.c\.{named}"):
            make_rewards({"c": {"type": "logistic", "path": str(tmp_path / path)}})


def test_rewards_are_read_without_torch() -> None:
    import subprocess

    code = (
        "import sys, trimtab.decode.rewards.registry as r\nr.make_rewards({'l': {'type': 'length', 'at_least': 1}})\n"
    )
    code += "r.make_rewards({'x': len})\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", timeout=120)
    assert registry.GROUP == "trimtab.rewards"
