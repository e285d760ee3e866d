"""The page of the configuration says what is accepted: it is up to date, complete, and true."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.commands import main
from trimtab.decode.config import ConfigError, EngineConfig, EngineOptions, ModelConfig
from trimtab.decode.request.info import Limits
from trimtab.server.cli.configuration import as_markdown, as_text
from trimtab.server.config import ServerConfig

TABLES: dict[str, Any] = {"models.NAME": ModelConfig, "limits": Limits, "engine": EngineOptions, "server": ServerConfig}


def rows(table: str) -> dict[str, tuple[str, str, str]]:
    """What the page has of a table: by key, what is accepted, the default, the meaning."""
    _, _, section = as_markdown().partition(f"\n## `[{table}]`\n")
    found = re.findall(r"^\| `(\w+)` \| (.+?) \| `(.+?)` \| (.+) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return {key: (accepted, default, meaning) for key, accepted, default, meaning in found}


def read(table: str, key: str, value: object) -> object:
    """What the readers make of one key."""
    if table == "server":
        return getattr(ServerConfig.from_table({key: value}), key)
    data: dict[str, Any] = {"models": {"a": {"source": "x"}}}
    if table == "models.NAME":
        data["models"]["a"][key] = value
        return getattr(EngineConfig.from_dict(data).models["a"], key)
    config = EngineConfig.from_dict({**data, table: {key: value}})
    return getattr(getattr(config, table), key)


def test_the_page_is_up_to_date(repository: Path) -> None:
    page = (repository / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == as_markdown(), "run: trimtab config --markdown > docs/configuration.md"


@pytest.mark.parametrize("table", TABLES)
def test_every_key_is_there_and_explained(table: str) -> None:
    found = rows(table)
    assert list(found) == [field.name for field in fields(TABLES[table])]
    for key, (accepted, default, meaning) in found.items():
        assert accepted, key
        assert default, key
        assert meaning, key


@pytest.mark.parametrize("table", TABLES)
def test_a_default_that_is_a_value_can_be_written_in_the_file(table: str) -> None:
    for field in fields(TABLES[table]):
        written = rows(table)[field.name][1]
        if written == "required":
            assert field.name == "source"
        elif written == "none":
            assert field.default is None
        else:
            assert str(field.default).lower() == written.lower()
            assert read(table, field.name, field.default) == field.default


@pytest.mark.parametrize(
    ("table", "key", "accepted", "inside", "outside"),
    [
        ("models.NAME", "context_tokens", "a whole number >= 2", [2], [1, 2.0, True]),
        ("models.NAME", "memory_share", "a number in (0, 1]", [0.001, 1], [0, 1.001, "0.5"]),
        ("models.NAME", "role", "one of base, aligned, draft, reward", ["reward"], ["Base", 1]),
        ("models.NAME", "device", "auto, cpu, cuda or cuda:N", ["cuda:7"], ["gpu", "cuda:"]),
        ("models.NAME", "trust_remote_code", "true or false", [True], [1, "true"]),
        ("limits", "max_stop", "a whole number >= 0", [0], [-1]),
        ("limits", "max_queue", "a whole number >= 1", [1], [0]),
        ("engine", "token_budget", "a whole number >= 1", [1], [0, "1"]),
        ("server", "port", "a whole number in [0, 65535]", [0, 65535], [-1, 65536]),
        ("server", "max_request_bytes", "a whole number in [1024, 2147483647]", [1024, 2**31 - 1], [1023, 2**31]),
        ("server", "max_generation_time", "seconds above 0", [0.1], [0, -1.0]),
        ("server", "grace", "seconds, at least 0", [0], [-0.1, "1"]),
    ],
)
def test_what_a_key_accepts(table: str, key: str, accepted: str, inside: list[Any], outside: list[Any]) -> None:
    assert rows(table)[key][0] == accepted
    for value in inside:
        assert read(table, key, value) == value
    for value in outside:
        with pytest.raises(ConfigError, match=key):
            read(table, key, value)


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", as_markdown(), re.MULTILINE | re.DOTALL)
    (tmp_path / "trimtab.toml").write_text(example, encoding="utf-8")
    config = EngineConfig.load(tmp_path / "trimtab.toml")
    assert list(config.models) == ["base", "chat", "draft"]
    assert (config.limits.max_new_tokens, config.engine.threads) == (1024, 2)
    assert ServerConfig.from_table(config.server).port == 50051
    assert config.rewards["brief"]["type"] == "length"


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    assert capsys.readouterr().out == as_text()
    assert main(["config", "--markdown"]) == 0
    assert capsys.readouterr().out == as_markdown()
