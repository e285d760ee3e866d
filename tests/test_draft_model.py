"""Drafts that are cut from a target: written, read, loaded beside it, and the one that comes with the package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trimtab.decode.config import ModelConfig
from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models.acceptance import AcceptanceHead
from trimtab.decode.models.draft import DraftSpec, assemble, read_draft, write_draft
from trimtab.decode.models.load import LoadedModel, load
from trimtab.decode.models.sources import DRAFTS, bundled_draft

Folder = Callable[..., Path]
NAME = "smollm2-135m-draft"
IDS = torch.arange(3, 300, 3)
LIMIT = 16 << 20  # bytes that the shipped weights may take
FLOOR = 0.3  # greedy agreement of the shipped draft on the fixed prompts below


def made(folder: Path, target: Any, source: Path, layers: tuple[int, ...] = (0, 2), head: bool = True) -> Any:
    """Writes a draft of ``layers``, with noise in its weights; returns the module that it must equal."""
    draft = assemble(target, layers, IDS)
    with torch.no_grad():
        for parameter in (*draft.model.layers.parameters(), *draft.model.norm.parameters()):
            noisy = parameter + 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
            parameter.copy_(noisy.to(torch.bfloat16))  # what the file can hold
    size = target.config.hidden_size
    spec = DraftSpec(
        target=str(source),
        layers=layers,
        vocab_size=target.config.vocab_size,
        hidden_size=size,
        head_blocks=2 if head else None,
        head_width=8 if head else None,
    )
    torch.manual_seed(0)
    state = AcceptanceHead(size + 1, 2, 8).to(torch.bfloat16).state_dict() if head else None
    write_draft(folder, spec, IDS, draft.state_dict(), state)
    return draft


def run(model: LoadedModel, tokens: list[int], hidden: bool = False) -> Any:
    """Logits, or logits and hidden states, of all positions of one sequence."""
    storage = model.storage(4, 16)
    batch = RaggedBatch.pack([Span(tokens, 0, [2, 0, 1], len(tokens))], 16)
    arrays = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.rows))
    ids, positions, rows = arrays
    with torch.inference_mode():
        call = model.forward_hidden if hidden else model.forward
        assert call is not None
        return call(ids, positions, storage.begin(batch), rows)


# gpt2 and opt are laid out otherwise and are refused; mistral and gemma3 have sliding layers
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gemma3"])
def test_a_written_draft_loads_as_the_same_module(kind: str, tiny: Any, tiny_folder: Folder, tmp_path: Path) -> None:
    source = tiny_folder(kind)
    eager = made(tmp_path / "draft", tiny.make(kind), source)
    model = load("draft", ModelConfig(source=str(tmp_path / "draft"), role="draft", dtype="float32", device="cpu"))
    assert model.layers == 2
    assert model.vocab_size == tiny.VOCAB
    assert model.draft_ids is not None
    assert model.draft_ids.dtype == torch.int64
    assert model.draft_ids.tolist() == IDS.tolist()
    assert model.vocabulary.same_ids(load("t", ModelConfig(source=str(source), dtype="float32")).vocabulary)
    tokens = [(7 * i + 3) % 300 for i in range(40)]
    with torch.inference_mode():
        expected = eager(torch.tensor([tokens])).logits[0]
        states = eager.model(torch.tensor([tokens])).last_hidden_state[0]
    found, hidden = run(model, tokens, hidden=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    top = torch.softmax(expected, -1).amax(-1)
    torch.testing.assert_close(hidden[:, :-1], states, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(torch.sigmoid(hidden[:, -1]), top, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(run(model, tokens), found, rtol=0, atol=0)


def test_the_draft_of_other_layers_is_another_one(tiny: Any, tiny_folder: Folder, tmp_path: Path) -> None:
    source = tiny_folder("llama")
    for name, layers in (("a", (0, 2)), ("b", (2, 0))):
        made(tmp_path / name, tiny.make("llama"), source, layers)
    models = [load(n, ModelConfig(source=str(tmp_path / n), dtype="float32")) for n in ("a", "b")]
    first, second = (run(model, [5, 6, 7, 8]) for model in models)
    assert float((first - second).abs().mean()) > 0.05


def test_the_acceptance_head_reads_the_hidden_states(tiny: Any, tiny_folder: Folder, tmp_path: Path) -> None:
    made(tmp_path / "draft", tiny.make("llama"), tiny_folder("llama"))
    model = load("draft", ModelConfig(source=str(tmp_path / "draft"), dtype="float32"))
    _, hidden = run(model, list(range(20)), hidden=True)
    assert model.acceptance is not None
    found = model.acceptance(hidden)
    assert found.shape == (20,)
    assert found.dtype == torch.float32
    assert bool(((found > 0) & (found < 1)).all())
    assert len(set(found.tolist())) > 15
    head = model.acceptance
    assert isinstance(head, AcceptanceHead)
    greedy = torch.arange(20) % 2 == 0
    mixed = head(hidden, greedy)
    assert torch.equal(mixed[~greedy], found[~greedy])
    assert not torch.equal(mixed[greedy], found[greedy])


def test_residual_blocks_have_weights_of_their_own() -> None:
    head = AcceptanceHead(12, 3, 12)
    pointers = {block.weight.data_ptr() for block in head.blocks}  # type: ignore[operator]
    assert len(pointers) == 3


def test_an_ordinary_model_has_no_draft_fields(tiny_folder: Folder) -> None:
    model = load("draft", ModelConfig(source=str(tiny_folder("llama")), role="draft", dtype="float32"))
    assert model.draft_ids is None
    assert model.acceptance is None
    assert model.forward_hidden is not None


def test_a_model_through_its_own_modules_gives_hidden_states_too(tiny: Any, tiny_folder: Folder) -> None:
    model = load("m", ModelConfig(source=str(tiny_folder("gpt2")), dtype="float32"))
    tokens = list(range(4, 30))
    logits, hidden = run(model, tokens, hidden=True)
    eager = tiny.make("gpt2")
    with torch.inference_mode():
        torch.testing.assert_close(
            hidden, eager.transformer(torch.tensor([tokens])).last_hidden_state[0], rtol=1e-3, atol=1e-3
        )
        torch.testing.assert_close(eager.lm_head(hidden), logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2; accepted: 1"),
        ({"vocab_size": 305}, "vocab_size is 305"),
        ({"hidden_size": 64}, "hidden_size is 64"),
        ({"layers": [0, 9]}, r"layers \[0, 9\] asked for; accepted: 0 to 2"),
        ({"layers": [0]}, "weights don't fit"),
        ({"layers": None}, "no draft can be read"),
        ({"head_width": 4}, "acceptance head doesn't fit"),
        ({"colour": "red"}, "no draft can be read"),
        ({"vocab_size": 200}, "kept ids must ascend within 0 to 199"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    change: dict[str, Any], said: str, tiny: Any, tiny_folder: Folder, tmp_path: Path
) -> None:
    made(tmp_path, tiny.make("llama"), tiny_folder("llama"))
    found = json.loads((tmp_path / "draft.json").read_text(encoding="utf-8"))
    (tmp_path / "draft.json").write_text(json.dumps({**found, **change}), encoding="utf-8")
    with pytest.raises(UnsupportedModel, match=said):
        load("draft", ModelConfig(source=str(tmp_path), dtype="float32"))


@pytest.mark.parametrize("ids", [[5, 3], [3, 3], [-1, 4], [4, 304], []])
def test_kept_ids_out_of_order_or_range_are_refused(
    ids: list[int], tiny: Any, tiny_folder: Folder, tmp_path: Path
) -> None:
    made(tmp_path, tiny.make("llama"), tiny_folder("llama"))
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "draft_ids": torch.tensor(ids, dtype=torch.int32)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModel, match="kept ids must ascend within 0 to 303"):
        load("draft", ModelConfig(source=str(tmp_path), dtype="float32"))


def test_a_damaged_file_is_named(tiny: Any, tiny_folder: Folder, tmp_path: Path) -> None:
    made(tmp_path, tiny.make("llama"), tiny_folder("llama"))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(UnsupportedModel, match="no draft can be read from"):
        load("draft", ModelConfig(source=str(tmp_path), dtype="float32"))


def test_models_laid_out_otherwise_are_refused(tiny: Any) -> None:
    with pytest.raises(UnsupportedModel, match="it isn't laid out as Llama is"):
        assemble(tiny.make("gpt2"), (0,), IDS)


def test_a_target_may_be_given_relative_to_the_draft(tiny: Any, tiny_folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "target").symlink_to(tiny_folder("llama"))
    made(tmp_path / "draft", tiny.make("llama"), Path("../target"))
    assert load("draft", ModelConfig(source=str(tmp_path / "draft"), dtype="float32")).draft_ids is not None


# --------------------------------------------------------------------------------------------------- the shipped draft


def test_the_shipped_weights_are_small_and_described() -> None:
    folder = bundled_draft(NAME)
    assert folder == DRAFTS / NAME
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT
    found = read_draft(folder)
    assert found is not None
    assert found.spec.target == "smollm2-135m-instruct"
    assert found.spec.head_blocks is not None
    assert bundled_draft("no-such-draft") is None
    assert bundled_draft("../drafts/" + NAME) is None


@pytest.mark.real
def test_the_shipped_draft_agrees_with_its_target(real_models: Any) -> None:
    target = load("target", ModelConfig(source="smollm2-135m-instruct", device="cpu"))
    draft = load("draft", ModelConfig(source=NAME, role="draft", device="cpu"))
    assert draft.draft_ids is not None
    assert draft.acceptance is not None
    assert set(draft.vocabulary.eos_token_ids) <= set(draft.draft_ids.tolist())
    agreed, expected, count = 0, 0.0, 0
    for question in ("Give me three tips for staying healthy.", "Tom has 3 boxes of 12 eggs. How many eggs is that?"):
        prompt = target.vocabulary.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        tokens = target.vocabulary.encode(prompt, False)
        begin = len(tokens)
        storage = target.storage(1, 512)
        done = 0
        while len(tokens) < begin + 64 and tokens[-1] not in target.vocabulary.eos_token_ids:
            batch = RaggedBatch.pack([Span(tokens[done:], done, [0], 1)], 512)
            done = len(tokens)
            arrays = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.rows))
            ids, positions, rows = arrays
            with torch.inference_mode():
                tokens.append(int(target.forward(ids, positions, storage.begin(batch), rows)[0].argmax()))
        batch = RaggedBatch.pack([Span(tokens[:-1], 0, [0], len(tokens) - begin)], 512)
        with torch.inference_mode():
            assert draft.forward_hidden is not None
            arrays = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.rows))
            ids, positions, rows = arrays
            logits, hidden = draft.forward_hidden(ids, positions, draft.storage(1, 512).begin(batch), rows)
            head = draft.acceptance
            assert isinstance(head, AcceptanceHead)
            expected += float(head(hidden, torch.ones(len(hidden), dtype=torch.bool)).sum())
        proposed = draft.draft_ids[logits.argmax(-1)].numpy()
        agreed += int((proposed == np.asarray(tokens[begin:])).sum())
        count += len(proposed)
    assert agreed / count > FLOOR
    assert abs(expected - agreed) / count < 0.2  # what its head expects
