"""Warming up answers once what is likely to be asked first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.warm_up import warm_up
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.nudged import Nudged

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_likely_kind_is_answered_once(
    tiny_folder: Callable[..., Path], foreign_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    roles = {"base": "base", "chat": "aligned", "draft": "draft", "other": "draft"}
    folders = {"base": tiny_folder("llama"), "chat": tiny_folder("mistral", 2), "draft": tiny_folder("llama", 1)}
    folders["other"] = foreign_folder
    models: Any = {n: ModelConfig(source=str(f), dtype="float32", role=roles[n]) for n, f in folders.items()}
    asked: list[dict[str, Any]] = []
    generate = Engine.generate

    def watched(self: Engine, prompt: Any, **options: Any) -> Any:
        asked.append({name: options[name] for name in ("model", "policy", "draw") if name in options})
        result = generate(self, prompt, **options)
        assert result.tokens
        return result

    monkeypatch.setattr(Engine, "generate", watched)
    with caplog.at_level(logging.WARNING), Engine(models, options=EngineOptions(memory_bytes=16 << 20)) as engine:
        warm_up(engine)
    assert asked == [
        {"model": "base"},
        {"model": "chat"},
        {"model": "base", "policy": Nudged("chat")},
        {"model": "base", "draw": Speculative("draft")},
        {"model": "chat", "draw": Speculative("draft")},
    ]
    assert not caplog.records


def test_what_fails_is_left_to_those_who_ask(
    tiny_folder: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelConfig(source=str(tiny_folder("llama")), dtype="float32", context_tokens=8)  # too short for a prompt
    with caplog.at_level(logging.WARNING), Engine({"base": model}) as engine:
        warm_up(engine)
        assert engine.generate([1, 2], max_new_tokens=2, ignore_eos=True).tokens
    assert "a first answer with {'model': 'base'} failed" in caplog.text
