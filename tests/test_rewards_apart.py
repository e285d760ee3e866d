"""Rules with expressions of the user's run in a process: they say the same there, and end with their time limit."""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.config import ConfigError, EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import RewardFailed
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.request.result import Token
from trimtab.decode.rewards.base import LocalReward, Sample
from trimtab.decode.rewards.constraints import Constraints
from trimtab.decode.rewards.registry import make_rewards

HOPELESS = r"(?:a|a)*b"  # over 40 times "a": 2^40 ways
RULES: dict[str, list[dict[str, Any]]] = {
    "first": [{"kind": "regex", "expression": "x+y"}, {"kind": "commas", "exactly": 0}],
    "second": [{"kind": "words", "exactly": 2}],
}


@pytest.mark.parametrize(
    ("table", "place"),
    [
        ({"type": "regex", "expression": "a"}, "process"),
        ({"type": "json", "schema": {"type": "array"}}, "process"),
        ({"type": "json"}, "thread"),
        ({"type": "keywords", "wanted": ["a"], "banned": ["b"]}, "thread"),
        ({"type": "constraints", "constraints": [{"kind": "commas", "exactly": 0}]}, "thread"),
        ({"type": "constraints", "constraints": RULES["second"] + RULES["first"]}, "process"),
    ],
)
def test_where_rules_run(table: dict[str, Any], place: str) -> None:
    if "schema" in table:
        pytest.importorskip("jsonschema")
    assert make_rewards({"r": table})["r"].runs_on == place


@given(st.lists(st.tuples(st.sampled_from(["first", "second", "third"]), st.text("xy, a", max_size=9), st.booleans())))
def test_rules_say_the_same_in_a_process(drawn: list[tuple[str, str, bool]]) -> None:
    reward = Constraints([{"kind": "regex", "expression": "^a", "wanted": False}], RULES, strict=0.3)
    samples = [Sample(prompt, text, finished) for prompt, text, finished in drawn]
    function, args = pickle.loads(pickle.dumps(reward.work(samples)))
    assert function(*args) == reward.rate(samples)


def test_a_process_is_sent_what_rules_read_and_no_more() -> None:
    """Neither tokens, nor what comes after what is read; and tables of any kind."""
    tokens = tuple(Token(i, b"a", "base") for i in range(5000))
    schema: Mapping[str, Any] = MappingProxyType({"type": "array", "items": MappingProxyType({"type": "integer"})})
    pytest.importorskip("jsonschema")
    made = make_rewards({"r": {"type": "json", "schema": schema}})["r"]
    assert isinstance(made, LocalReward)
    sent = pickle.dumps(made.work([Sample((1, 2), "[1]", tokens=tokens)]))
    assert len(sent) < 1000
    function, args = pickle.loads(sent)
    assert function(*args) == [1]


@pytest.fixture(scope="module")
def engine(tiny_folder: Callable[..., Path]) -> Iterator[Engine]:
    rewards: dict[str, Any] = {
        "hopeless": {"type": "regex", "expression": HOPELESS, "timeout": 1.5},
        "vowels": {"type": "regex", "expression": "[aeiou]"},
        "same": {"type": "python", "function": lambda _, text: float(bool(set("aeiou") & set(text))), "kind": "prefix"},
        "short": {"type": "length", "at_most": 5, "unit": "characters"},
    }
    models: dict[str, Any] = {"base": ModelConfig(source=str(tiny_folder("llama")), dtype="float32")}
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=8 << 20, page_tokens=16)) as made:
        yield made


def test_a_hopeless_expression_fails_its_own_requests_and_stops_no_other(engine: Engine) -> None:
    options: dict[str, Any] = {"search": BestOfN(2, objective="short"), "max_new_tokens": 24, "seed": 5}
    expected = engine.generate("the sea", **options).text
    engine.score([("p", "warm")], reward="vowels")
    failures: list[Exception] = []

    def hopeless() -> None:
        try:
            engine.score([("p", "a" * 40)], reward="hopeless")
        except RewardFailed as error:
            failures.append(error)

    threads = [threading.Thread(target=hopeless) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert engine.generate("the sea", **options).text == expected
    assert [scored.value for scored in engine.score([("p", "sea"), ("p", "x")], reward="vowels")] == [1, 0]
    for thread in threads:
        thread.join(60)
    assert len(failures) == 4
    assert all(isinstance(error, RewardFailed) and error.timed_out for error in failures)
    assert [scored.value for scored in engine.score([("p", "b")], reward="hopeless")] == [1]


def test_a_token_reward_in_a_process_chooses_as_one_in_a_thread(engine: Engine) -> None:
    answers = {
        name: engine.generate("the sea", policy=TokenReward(name, width=3), max_new_tokens=8, temperature=0.0).text
        for name in ("vowels", "same")
    }
    assert answers["vowels"] == answers["same"]


@pytest.mark.parametrize("place", ["thread", "process"])
def test_a_function_beside_the_configuration_is_found(
    place: str, tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text("def words(prompt, text):\n    return len(text.split())\n")
    (tmp_path / "trimtab.toml").write_text(
        f"""
        [models.base]
        source = "{tiny_folder("llama")}"
        dtype = "float32"
        [rewards.words]
        type = "python"
        function = "beside:words"
        runs_on = "{place}"
        [engine]
        memory_bytes = {8 << 20}
        """
    )
    with Engine.from_config(tmp_path / "trimtab.toml") as made:
        (scored,) = made.score([("p", "three short words")], reward="words")
    assert scored.value == 3
    with pytest.raises(ConfigError, match=r"beside.*'gone'"):
        make_rewards({"r": {"type": "python", "function": f"{tmp_path}/beside:gone"}})
