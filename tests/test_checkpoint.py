"""Models read straight from their files: the same as transformers', sooner, and never what is out of date."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trimtab.decode.config import ModelConfig
from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models import load as loading
from trimtab.decode.models import remembered, self_test
from trimtab.decode.models.blueprint import Blueprint
from trimtab.decode.models.load import LoadedModel, load
from trimtab.decode.models.stack import Stack

Folder = Callable[..., Path]
STACKED = ("llama", "qwen2", "qwen3", "mistral", "gemma3")
TOKENS = list(range(3, 43))


@pytest.fixture(autouse=True)
def own(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Nothing is remembered from before; the models of transformers that were made."""
    folder = tmp_path_factory.mktemp("remembered")
    monkeypatch.setattr(remembered, "home", lambda: folder)
    made: list[str] = []
    real = loading._own

    def watched(asked: Any) -> Any:
        made.append(asked.name)
        return real(asked)

    monkeypatch.setattr(loading, "_own", watched)
    with torch.inference_mode():
        yield made


def logits(model: LoadedModel) -> torch.Tensor:
    storage = model.storage(4, 16)
    batch = RaggedBatch.pack([Span(TOKENS, 0, [2, 0, 3], len(TOKENS))], 16)
    tensors = (torch.from_numpy(a) for a in (batch.tokens, batch.positions))
    tokens, positions = tensors
    return model.forward(tokens, positions, storage.begin(batch), torch.from_numpy(batch.rows)).float()


def given(folder: Path) -> torch.Tensor:
    """The same of transformers, eager."""
    model: Any = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    found: torch.Tensor = model(input_ids=torch.tensor([TOKENS])).logits[0]
    return found


def loaded(folder: Path | str, **options: Any) -> LoadedModel:
    return load("m", ModelConfig(source=str(folder), dtype="float32", **options))


@pytest.mark.parametrize("kind", STACKED)
def test_the_second_time_no_module_is_made(kind: str, tiny_folder: Folder, own: list[str]) -> None:
    folder = tiny_folder(kind)
    first, second = loaded(folder), loaded(folder)
    assert own == ["m"]
    for model in (first, second):
        torch.testing.assert_close(logits(model), given(folder), rtol=1e-4, atol=1e-4)
    same = ("architecture", "vocab_size", "context", "layers", "kv_heads", "head_dim", "dtype")
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
    assert first.generation_config.to_dict() == second.generation_config.to_dict()


def test_weights_are_converted_as_they_are_read(tiny: Any, tmp_path: Path, own: list[str]) -> None:
    """Weights and biases are stored in bfloat16, and run in float32."""
    tiny.save(tiny.make("qwen2", 0).to(torch.bfloat16), tmp_path)
    for _ in range(2):
        torch.testing.assert_close(logits(loaded(tmp_path)), given(tmp_path), rtol=1e-4, atol=1e-4)
    assert own == ["m"]


def test_a_new_process_imports_no_modules(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = f"""if True:
        import sys
        from pathlib import Path
        from trimtab.decode.config import ModelConfig
        from trimtab.decode.models import remembered
        remembered.home = lambda: Path({str(tmp_path)!r})
        from trimtab.decode.models.load import load
        load("m", ModelConfig(source={str(tiny_folder("llama"))!r}, dtype="float32"))
        print("transformers.modeling_utils" in sys.modules)
    """
    said = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in "12"]
    assert [run.stdout.strip() for run in said] == ["True", "False"]


@pytest.mark.parametrize("change", ["weights", "config", "version"])
def test_what_has_changed_is_tested_anew(
    change: str, tiny: Any, tmp_path: Path, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(tiny.make("llama", 0), tmp_path)
    loaded(tmp_path)
    if change == "weights":
        tiny.save(tiny.make("llama", 1), tmp_path)
    elif change == "config":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.01}))
    else:
        monkeypatch.setattr(remembered, "installed", lambda library: "0.0")
    torch.testing.assert_close(logits(loaded(tmp_path)), given(tmp_path), rtol=1e-4, atol=1e-4)
    assert own == ["m", "m"]


def test_what_is_remembered_is_held_against(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is read straight from its files passes the self-test, or is refused."""
    folder = tiny_folder("llama")
    loaded(folder)
    real = Stack.__call__
    monkeypatch.setattr(Stack, "__call__", lambda self, tokens, *rest: real(self, tokens.flip(0), *rest))
    with pytest.raises(UnsupportedModel, match="self-test"):
        loaded(folder)


def test_a_damaged_memory_is_made_again(tiny_folder: Folder, own: list[str]) -> None:
    loaded(tiny_folder("llama"))
    (file,) = (remembered._folder("self-tests")).iterdir()
    file.write_bytes(b"no tensors")
    loaded(tiny_folder("llama"))
    loaded(tiny_folder("llama"))
    assert own == ["m", "m"]


def test_only_what_was_used_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "_KEPT", 3)
    expected = self_test.Expected([torch.ones(21, 4), torch.ones(10, 4)], [1.0, 1.0])
    for i in range(5):
        self_test.remember(f"key{i}", expected)
        assert self_test.recall("key0") is not None  # what is used stays
    assert len(list((remembered._folder("self-tests")).iterdir())) == 3
    assert self_test.recall("key1") is None
    assert self_test.recall("key4") is not None


def test_several_files(tiny: Any, tmp_path: Path, own: list[str]) -> None:
    model = tiny.make("qwen2", 0)
    tiny.save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for _ in range(2):
        torch.testing.assert_close(logits(loaded(tmp_path)), given(tmp_path), rtol=1e-4, atol=1e-4)
    assert own == ["m"]


def test_other_formats_go_through_modules(tiny: Any, tmp_path: Path, own: list[str]) -> None:
    model = tiny.make("llama", 0)
    tiny.save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for _ in range(2):
        found = loaded(tmp_path)
        assert isinstance(found.forward, Stack)
        torch.testing.assert_close(logits(found), given(tmp_path), rtol=1e-4, atol=1e-4)
    assert own == ["m", "m"]


def test_a_model_in_the_hubs_cache(
    tiny_folder: Folder, tmp_path: Path, own: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    entry = tmp_path / "models--org--tiny"
    shutil.copytree(tiny_folder("llama"), entry / "snapshots" / "abc")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for _ in range(2):
        found = load("m", ModelConfig(source="org/tiny", dtype="float32"))
        torch.testing.assert_close(logits(found), given(tiny_folder("llama")), rtol=1e-4, atol=1e-4)
    assert own == ["m"]


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 12345.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
        {
            "rope_type": "llama3",
            "rope_theta": 50000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotary_positions_are_those_of_transformers(rope: dict[str, Any]) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = hf.LlamaConfig(**sizes, rope_parameters=rope)
    found = Blueprint.of(config)
    assert found is not None
    (rotary,) = found.rotary.values()
    expected = LlamaRotaryEmbedding(config)(torch.empty(0), torch.arange(400)[None])
    for ours, theirs in zip(rotary.tables(400, torch.float32), expected, strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"model_type": "llama4"}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
        ("gemma3", {"attn_logit_softcapping": 30.0}),
        ("gemma3", {"use_bidirectional_attention": True}),
    ],
)
def test_what_is_not_known_has_no_blueprint(kind: str, changes: dict[str, Any], tiny: Any) -> None:
    config = tiny.make(kind, 0).config
    assert Blueprint.of(config) is not None
    for name, value in changes.items():
        if name == "model_type":
            type(config).model_type, before = value, type(config).model_type
            try:
                assert Blueprint.of(config) is None
            finally:
                type(config).model_type = before
            return
        setattr(config, name, value)
    assert Blueprint.of(config) is None
