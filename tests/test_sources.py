"""Where the source of a model leads, and what is refused before a hub is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers

from trimtab.decode.commands import main
from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import EngineClosed, UnsupportedModel
from trimtab.decode.models.bundled import bundled
from trimtab.decode.models.sources import bundled_draft, check_source, path, resolve

DRAFT = "smollm2-135m-draft"


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("smollm2", "(did you mean 'smollm2-135m-instruct' or 'smollm2-135m-draft'?)"),
        ("SmolLM2-135M", "(did you mean 'smollm2-135m-instruct' or 'smollm2-135m-draft'?)"),
        ("gemma-3-270", "(did you mean 'gemma-3-270m'?)"),
        ("smollm2-135m-drafts", "(did you mean 'smollm2-135m-draft'?)"),
        ("gema3-270m", "(did you mean 'gemma-3-270m'?)"),
        ("qqq", "(those are 'smollm2-135m-instruct', 'gemma-3-270m', 'smollm2-135m-draft')"),
    ],
)
def test_a_name_that_is_none_is_refused_with_those_alike(source: str, hint: str) -> None:
    with pytest.raises(UnsupportedModel) as caught:
        check_source("x", source)
    assert f"model 'x' cannot be served: no model can be read from {source!r}" in str(caught.value)
    assert hint in str(caught.value)


def test_what_may_be_a_model_is_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("folder", "./folder", "owner/name", DRAFT, *(model.name for model in bundled())):
        check_source("x", source)


def test_no_hub_is_asked_and_nothing_is_loaded(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the models before it."""
    asked = []
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *a, **k: asked.append(a))
    with pytest.raises(UnsupportedModel, match="did you mean 'smollm2-135m-instruct'"):
        Engine({"first": str(tiny_folder("llama")), "x": "smollm2"})
    assert not asked


def test_the_draft_has_a_path(model_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "path", DRAFT]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == bundled_draft(DRAFT) == path(DRAFT)
    assert (folder / "draft.json").is_file()
    assert resolve(DRAFT) == str(folder)
    assert main(["models", "path", "smollm"]) == 2
    assert f"'{DRAFT}'" in capsys.readouterr().err
    assert not model_cache.exists()


def test_an_engine_is_closed_by_async_with(tiny_folder: Callable[..., Path]) -> None:
    async def serve() -> Engine:
        config = ModelConfig(source=str(tiny_folder("llama")), dtype="float32")
        options = EngineOptions(memory_bytes=8 << 20, page_tokens=16)
        async with Engine({"base": config}, options=options) as engine:
            assert isinstance(engine, Engine)
            one, two = await engine.agenerate(["go", "on"], max_new_tokens=3, temperature=0)
            assert one.usage.returned_tokens == two.usage.returned_tokens == 3
        return engine

    engine = asyncio.run(serve())
    with pytest.raises(EngineClosed):
        engine.generate("go", max_new_tokens=1)
