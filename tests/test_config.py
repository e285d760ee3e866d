"""trimtab.toml: everything it may say is read, and everything else is refused by name."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, Any

import pytest

from trimtab.decode.config import ConfigError, EngineConfig, EngineOptions, ModelConfig
from trimtab.decode.request.info import Limits

if TYPE_CHECKING:
    from pathlib import Path

FULL = """
[models.base]
source = "./weights/base"
role = "base"
dtype = "bfloat16"
device = "cuda:0"
memory_share = 0.75
context_tokens = 2048
template = "{{ messages[0]['content'] }}"
trust_remote_code = true

[models.chat]
source = "org/chat"
role = "aligned"

[rewards.helpful]
type = "classifier"
source = "org/reward"

[limits]
max_new_tokens = 100
max_n = 2
max_top_logprobs = 0
max_queue = 3
max_stop = 4
max_stop_bytes = 5

[engine]
max_batch_rows = 8
token_budget = 128
page_tokens = 16
memory_bytes = 1_000_000
threads = 2

[server]
port = 50051
anything = { nested = [1, 2] }
"""


def model(**keys: Any) -> dict[str, Any]:
    return {"models": {"a": {"source": "x", **keys}}}


def test_a_full_file(tmp_path: Path) -> None:
    path = tmp_path / "trimtab.toml"
    path.write_text(FULL)
    config = EngineConfig.load(path)
    assert config.models == {
        "base": ModelConfig(
            source=str(tmp_path / "weights" / "base"),
            role="base",
            dtype="bfloat16",
            device="cuda:0",
            memory_share=0.75,
            context_tokens=2048,
            template="{{ messages[0]['content'] }}",
            trust_remote_code=True,
        ),
        "chat": ModelConfig(source="org/chat", role="aligned"),
    }
    assert list(config.models) == ["base", "chat"]
    assert config.rewards == {"helpful": {"type": "classifier", "source": "org/reward"}}
    assert config.limits == Limits(
        max_new_tokens=100, max_n=2, max_top_logprobs=0, max_queue=3, max_stop=4, max_stop_bytes=5
    )
    assert config.engine == EngineOptions(
        max_batch_rows=8, token_budget=128, page_tokens=16, memory_bytes=1_000_000, threads=2
    )
    assert config.server == {"port": 50051, "anything": {"nested": [1, 2]}}


def test_the_full_file_names_every_key() -> None:
    """A field added to a table without being read here would make the test above incomplete."""
    for cls in (ModelConfig, Limits, EngineOptions):
        assert all(f"\n{f.name} = " in FULL for f in fields(cls))


def test_defaults() -> None:
    config = EngineConfig.from_dict(model())
    assert config.models["a"] == ModelConfig(source="x")
    assert (config.limits, config.engine) == (Limits(), EngineOptions())
    assert (dict(config.rewards), dict(config.server)) == ({}, {})


def test_configurations_are_frozen() -> None:
    config = EngineConfig.demo()
    with pytest.raises(TypeError):
        config.models["c"] = ModelConfig(source="x")  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        config.limits = Limits()  # type: ignore[misc]


def test_the_demo_models() -> None:
    models = EngineConfig.demo().models
    assert {name: (m.source, m.role) for name, m in models.items()} == {
        "base": ("gemma-3-270m", "base"),
        "chat": ("smollm2-135m-instruct", "aligned"),
        "draft": ("smollm2-135m-draft", "draft"),
    }


def test_only_sources_written_as_folders_are_folders(tmp_path: Path) -> None:
    for source, expected in {
        "./a": str(tmp_path / "a"),
        "../a": str(tmp_path.parent / "a"),
        "org/a": "org/a",
        "/abs/a": "/abs/a",
        "gemma-3-270m": "gemma-3-270m",
    }.items():
        config = EngineConfig.from_dict({"models": {"m": {"source": source}}}, folder=tmp_path)
        assert config.models["m"].source == expected


@pytest.mark.parametrize(
    ("data", "field", "said"),
    [
        ({}, "models", "at least one table [models.NAME]"),
        ({"models": {}}, "models", "at least one table"),
        ({"models": 3}, "models", "a table [models]"),
        ({"models": {"a": "x"}}, "models.a", "a table [models.NAME]"),
        ({"models": {"a b": {"source": "x"}}}, "models", "a name of 1 to 64"),
        ({"models": {"a": {}}}, "models.a.source", "a hub id or a folder"),
        (model() | {"engin": {}}, "engin", "did you mean 'engine'?"),
        (model() | {"bench": {}}, "bench", "one of models, rewards, limits, engine, server"),
        (model(dtyp="auto"), "models.a.dtyp", "did you mean 'dtype'?"),
        (model(source="  "), "models.a.source", "a folder"),
        (model(role="nudger"), "models.a.role", "one of base, aligned, draft"),
        (model(dtype="int8"), "models.a.dtype", "one of auto, float32, bfloat16, float16"),
        (model(device="gpu"), "models.a.device", "cuda:N"),
        (model(memory_share=0), "models.a.memory_share", "(0, 1]"),
        (model(memory_share=1.5), "models.a.memory_share", "(0, 1]"),
        (model(memory_share=float("nan")), "models.a.memory_share", "(0, 1]"),
        (model(memory_share=True), "models.a.memory_share", "(0, 1]"),
        (model(context_tokens=1), "models.a.context_tokens", "a whole number >= 2"),
        (model(context_tokens=10.0), "models.a.context_tokens", "a whole number >= 2"),
        (model(template=""), "models.a.template", "Jinja"),
        (model(trust_remote_code=1), "models.a.trust_remote_code", "true or false"),
        (model() | {"limits": {"max_n": True}}, "limits.max_n", "a whole number >= 1"),
        (model() | {"limits": {"max_m": 1}}, "limits.max_m", "did you mean 'max_n'?"),
        (model() | {"engine": {"threads": 0}}, "engine.threads", "a whole number >= 1"),
        (model() | {"engine": []}, "engine", "a table [engine]"),
        (model() | {"rewards": {"r": 1}}, "rewards.r", "a table"),
        (model() | {"server": "x"}, "server", "a table [server]"),
    ],
)
def test_bad_keys_are_named(data: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_dict(data)
    (violation,) = caught.value.violations
    assert violation.field == field
    assert said in violation.accepted
    assert field in str(caught.value)
    assert not caught.value.retryable


def test_all_faults_at_once() -> None:
    data = {"models": {"a": {"source": 1, "rol": "x"}}, "engine": {"threads": -1}, "limit": {}}
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_dict(data)
    named = {v.field for v in caught.value.violations}
    assert named == {"models.a.source", "models.a.rol", "engine.threads", "limit"}


def test_memory_shares_of_a_device_fit_together() -> None:
    def two(first: float, second: float | None, device: str = "cpu") -> dict[str, Any]:
        one = {"source": "x", "device": "cpu", "memory_share": first}
        other = {"source": "y", "device": device} | ({} if second is None else {"memory_share": second})
        return {"models": {"a": one, "b": other}}

    EngineConfig.from_dict(two(0.7, 0.3))
    EngineConfig.from_dict(two(0.7, None))
    EngineConfig.from_dict(two(1.0, 1.0, "cuda:0"))
    for bad in (two(0.7, 0.4), two(1.0, None)):
        with pytest.raises(ConfigError, match="memory_share"):
            EngineConfig.from_dict(bad)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a readable TOML file"):
        EngineConfig.load(tmp_path / "missing.toml")
    for content in (b"[models", b"\xff\xfe"):
        path = tmp_path / "bad.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="valid TOML"):
            EngineConfig.load(path)
