"""What ``trimtab generate`` loads of a configuration for one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.commands import main
from trimtab.decode.config import EngineConfig
from trimtab.decode.errors import NotFound
from trimtab.decode.models.load import load
from trimtab.decode.request.method import Method
from trimtab.decode.request.objective import Objective
from trimtab.decode.request.spec_string import parse_draw, parse_policy, parse_search
from trimtab.decode.rewards import registry
from trimtab.server.cli.needed import needed

TABLES: dict[str, Any] = {
    "models": {name: {"source": f"./{name}"} for name in ("base", "chat", "draft", "tutor", "judge", "anti")},
    "rewards": {
        "short": {"type": "length", "at_most": 50},
        "style": {"type": "keywords", "wanted": ["please"]},
        "grade": {"type": "judge", "model": "judge", "criteria": "good", "verdicts": {"yes": 1, "no": 0}},
        "ratio": {"type": "implicit", "aligned": "tutor", "base": "anti"},
        "both": {"type": "profile", "terms": {"grade": 1.0, "short": 0.5}},
        "centred": {"type": "length", "at_most": 5, "reference": {"model": "tutor"}},
        "ranked": {"type": "calibrated", "reward": "both", "model": "chat"},
        "fitted": {"type": "logistic", "path": "weights.json"},
        "own": {"type": "other_package"},
        "brought": {"type": "classifier", "source": "./somewhere"},
    },
}
LIGHT = {"short", "style"}


@pytest.fixture(scope="module")
def config() -> EngineConfig:
    return EngineConfig.from_dict(TABLES)


def found(
    config: EngineConfig, model: str, policy: str = "", draw: str = "", search: str = ""
) -> tuple[set[str], set[str]]:
    methods: Sequence[tuple[str, Callable[[str], Method]]] = (
        (policy, parse_policy),
        (draw, parse_draw),
        (search, parse_search),
    )
    left = needed(config, model, [parse(text) for text, parse in methods if text])
    assert (left.limits, left.engine, left.server) == (config.limits, config.engine, config.server)
    assert all(left.models[name] == config.models[name] for name in left.models)
    return set(left.models), set(left.rewards)


@pytest.mark.parametrize(
    ("asked", "models", "rewards"),
    [
        ({}, set(), set()),
        ({"policy": "nudged:tutor"}, {"tutor"}, set()),
        ({"policy": "mixture:tutor=1,anti=-1"}, {"tutor", "anti"}, set()),
        ({"draw": "speculative:draft"}, {"draft"}, set()),
        ({"draw": "speculative:lookup"}, set(), set()),
        ({"search": "evolution:short,mutator=tutor"}, {"tutor"}, {"short"}),
        ({"policy": "token_reward:grade"}, {"judge"}, {"grade"}),
        ({"search": "best_of_n:4,objective=ratio"}, {"tutor", "anti"}, {"ratio"}),
        ({"search": "best_of_n:4,objective=(grade,short=0.5)"}, {"judge"}, {"grade", "short"}),
        ({"search": "best_of_n:4,objective=centred"}, {"tutor"}, {"centred"}),
        ({"search": "refine:ranked"}, {"chat", "judge"}, {"ranked", "both", "grade"}),
        ({"search": "refine:brought"}, set(), {"brought"}),
    ],
)
def test_what_a_request_names_is_loaded(
    config: EngineConfig, asked: dict[str, str], models: set[str], rewards: set[str]
) -> None:
    assert found(config, "base", **asked) == ({"base"} | models, LIGHT | rewards)


@pytest.mark.parametrize("reward", ["fitted", "own"])
def test_all_is_loaded_where_it_cant_be_told(config: EngineConfig, reward: str) -> None:
    """A file has the names of rewards, and another package's code may ask any model."""
    assert found(config, "base", search=f"refine:{reward}") == (set(config.models), set(config.rewards))


@pytest.mark.parametrize(
    "asked", [{"policy": "nudged:gone"}, {"draw": "speculative:gone"}, {"search": "refine:gone"}], ids=str
)
def test_all_is_loaded_where_a_name_is_none(config: EngineConfig, asked: dict[str, str]) -> None:
    """So that the error lists all that there are."""
    assert found(config, "base", **asked) == (set(config.models), set(config.rewards))


def test_a_model_that_is_none_is_refused_at_once(config: EngineConfig) -> None:
    with pytest.raises(NotFound, match="model = 'gpt': accepted: one of 'anti', 'base', 'chat', 'draft', 'judge', "):
        needed(config, "gpt", [])


def test_a_type_of_another_package_is_told_from_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, entry in registry.reward_types().items():
        assert entry.value.startswith("trimtab."), name
    theirs = metadata.EntryPoint("own", "their_package:own", registry.GROUP)
    monkeypatch.setattr("trimtab.server.cli.needed.reward_types", lambda: {"length": theirs})
    config = EngineConfig.from_dict({**TABLES, "rewards": {"short": TABLES["rewards"]["short"]}})
    assert needed(config, "base", [parse_search("best_of_n:2", Objective.of("short"))]) is config


def test_the_command_loads_no_other_model(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, file, loaded = tiny_folder("llama"), tmp_path / "trimtab.toml", list[str]()
    names = ("base", "chat", "draft")
    file.write_text("".join(f'[models.{name}]\nsource = "{folder}"\ndtype = "float32"\n' for name in names))
    monkeypatch.setattr(
        "trimtab.decode.engine.loading.load", lambda name, config: (loaded.append(name), load(name, config))[1]
    )
    options = ["--config", str(file), "--max-new-tokens", "3", "--temperature", "0", "--raw"]
    assert main(["generate", "go on", "--model", "chat", *options]) == 0
    assert loaded == ["chat"]
    alone = capsys.readouterr().out
    loaded.clear()
    assert main(["generate", "go on", "--model", "chat", "--draw", "speculative:draft", *options]) == 0
    assert loaded == ["chat", "draft"]
    assert capsys.readouterr().out == alone != ""
    assert main(["generate", "go on", "--model", "gpt", *options]) == 2
    assert "one of 'base', 'chat', 'draft'" in capsys.readouterr().err
