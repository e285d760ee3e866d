"""What is remembered of a folder is what transformers reads there, and is forgotten when a file changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from trimtab.decode.config import ModelConfig
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models import reading, remembered
from trimtab.decode.models.blueprint import Blueprint
from trimtab.decode.models.load import LoadedModel, load
from trimtab.decode.models.reading import recall_reading
from trimtab.decode.text.plain_tokenizer import PlainTokenizer
from trimtab.decode.text.templates import PromptTemplate
from trimtab.decode.text.vocabulary import Vocabulary

Folder = Callable[..., Path]
# Families of the flat stack, but for Qwen2, of whose tokenizer.json transformers makes another tokenizer.
KINDS = ("llama", "qwen3", "mistral", "gemma3")
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Give me three tips."}],
    [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b "},
        {"role": "user", "content": "\u00e9 <b>"},
    ],
    [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "An apple is "}],
]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is remembered from before."""
    folder = tmp_path_factory.mktemp("remembered")
    monkeypatch.setattr(remembered, "home", lambda: folder)
    with torch.inference_mode():
        yield folder


def loaded(folder: Path | str, **options: Any) -> LoadedModel:
    return load("m", ModelConfig(source=str(folder), dtype="float32", **options))


def is_remembered(folder: Path) -> bool:
    return recall_reading(str(folder)) is not None


def compare(model: LoadedModel, folder: Path, texts: list[str]) -> None:
    """A model whose reading was remembered, with what transformers reads."""
    known = recall_reading(str(folder))
    assert known is not None
    vocabulary = model.vocabulary
    assert isinstance(vocabulary.tokenizer, PlainTokenizer)
    theirs: Any = hf.AutoTokenizer.from_pretrained(folder)
    given = hf.AutoConfig.from_pretrained(folder)
    ours, other = Blueprint.of(known.config), Blueprint.of(given)
    assert ours is not None
    assert other is not None
    for name in Blueprint.__slots__:
        if name != "rotary":
            assert getattr(ours, name) == getattr(other, name), name
    for kind, rotary in other.rotary.items():
        torch.testing.assert_close(ours.rotary[kind].frequencies, rotary.frequencies, rtol=0, atol=0)
    plain = json.loads(json.dumps(given.to_dict()))
    assert known.config.to_dict() == plain
    for name in plain:
        assert json.dumps(getattr(known.config, name)) == json.dumps(plain[name])
    defaults = hf.GenerationConfig.from_pretrained(folder)
    assert model.generation_config.to_dict() == json.loads(json.dumps(defaults.to_dict()))
    assert set(vars(model.generation_config)) <= set(vars(defaults)) | {"transformers_version"}
    reference = Vocabulary(theirs, eos_token_ids=vocabulary.eos_token_ids, limit=model.vocab_size)
    for name in ("size", "special_ids", "bos", "prefix_space", "prefix_ids", "special_names"):
        assert getattr(vocabulary, name) == getattr(reference, name), name
    assert vocabulary.pieces() == reference.pieces()
    assert len(vocabulary.tokenizer) == len(theirs)
    for text in texts:
        for special in (True, False):
            assert vocabulary.encode(text, special) == theirs(text, add_special_tokens=special)["input_ids"]
            assert vocabulary.encode_with_offsets(text, special) == reference.encode_with_offsets(text, special)
    template, expected = PromptTemplate(vocabulary), PromptTemplate(reference)
    assert template.turn_end() == expected.turn_end()
    assert template.has_chat_template == expected.has_chat_template
    for chat in CHATS:
        assert template.encode(chat) == expected.encode(chat)
        if theirs.chat_template and chat[-1]["role"] == "user":
            ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
            assert template.encode(chat) == ids


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_is_what_transformers_reads(kind: str, tiny_folder: Folder) -> None:
    folder = tiny_folder(kind)
    first = loaded(folder)
    assert not isinstance(first.vocabulary.tokenizer, PlainTokenizer)
    compare(loaded(folder), folder, ["the thing and a <bos> of it\n\n", "\u00e9\U0001f375 \x00", " ", "no<eos>"])


@pytest.mark.real
@pytest.mark.parametrize("role", ["aligned", pytest.param("base", marks=pytest.mark.full)])
def test_the_bundled_models(role: str, real_models: Any, repository: Path) -> None:
    folder = getattr(real_models, role)
    texts = [(repository / name).read_text(encoding="utf-8") for name in ("README.md", "docs/drafts.md", "setup.py")]
    texts += [
        "<|im_start|>user\nHi<|im_end|><bos><start_of_turn>",
        "\u4f60\u597d, \u043c\u0438\u0440! \U0001f9ff 12 345\t\t",
    ]
    loaded(folder)
    compare(loaded(folder), folder, texts)


def test_a_new_process_needs_no_transformers(tiny_folder: Folder, tmp_path: Path) -> None:
    program = """if True:
        import os, sys
        from trimtab.decode import Engine
        from trimtab.decode.config import ModelConfig
        with Engine({"m": ModelConfig(source=sys.argv[1], dtype="float32")}) as engine:
            result = engine.generate([{"role": "user", "content": "the"}], max_new_tokens=8, temperature=0)
        print(["transformers" in sys.modules, result.text])
    """
    command = [sys.executable, "-P", "-c", program, str(tiny_folder("llama"))]
    environment = {"TRIMTAB_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1", "PATH": ""}
    said = [subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout for _ in "12"]
    assert said[0].startswith("[True, ")
    assert said[1] == said[0].replace("[True, ", "[False, ")


def change_config(folder: Path, name: str, **changes: Any) -> None:
    given = json.loads((folder / name).read_text(encoding="utf-8"))
    (folder / name).write_text(json.dumps({**given, **changes}), encoding="utf-8")


def test_a_change_is_seen(tiny: Any, tmp_path: Path) -> None:
    tiny.save(tiny.make("llama", 0), tmp_path)
    for _ in range(2):
        assert loaded(tmp_path).context == tiny.CONTEXT
    change_config(tmp_path, "config.json", max_position_embeddings=77)
    change_config(tmp_path, "generation_config.json", do_sample=True, temperature=0.25)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    for _ in range(2):
        model = loaded(tmp_path)
        assert model.context == 77
        assert (model.generation_config.do_sample, model.generation_config.temperature) == (True, 0.25)
        assert PromptTemplate(model.vocabulary).encode(CHATS[0])[-1] == model.vocabulary.encode("!")[0]
    assert is_remembered(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert not is_remembered(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_what_is_damaged_is_refused_as_ever(file: str, tiny: Any, tmp_path: Path) -> None:
    said = []
    for folder, before in ((tmp_path / "known", 1), (tmp_path / "new", 0)):
        tiny.save(tiny.make("llama", 0), folder)
        for _ in range(before):
            loaded(folder)
        assert is_remembered(folder) is bool(before)
        (folder / file).write_text("{ this is no JSON")
        with pytest.raises(Exception) as error:  # noqa: PT011  # whatever transformers raises, here as there
            loaded(folder)
        said.append((error.type, str(error.value).replace(str(folder), "FOLDER")))
    assert said[0] == said[1]


def test_other_libraries_read_anew(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded(tiny_folder("llama"))
    assert is_remembered(tiny_folder("llama"))
    for library in ("transformers", "tokenizers", "jinja2"):
        with monkeypatch.context() as patch:
            versions = {name: remembered.installed(name) for name in ("transformers", "tokenizers", "jinja2")}
            patch.setattr(reading, "installed", {**versions, library: "0"}.__getitem__)
            assert not is_remembered(tiny_folder("llama"))


def test_what_lies_damaged_in_the_cache_is_read_anew(tiny_folder: Folder, cache: Path) -> None:
    loaded(tiny_folder("llama"))
    (file,) = (cache / "readings").iterdir()
    for damage in (b"", b"[]", b'{"config": 1}', b"\xff"):
        file.write_bytes(damage)
        assert not is_remembered(tiny_folder("llama"))
        loaded(tiny_folder("llama"))
        assert is_remembered(tiny_folder("llama"))


def other_tokenizer(folder: Path) -> None:
    change_config(folder, "tokenizer_config.json", pad_token="<a token that tokenizer.json lacks>")


def split_special(folder: Path) -> None:
    change_config(folder, "tokenizer_config.json", split_special_tokens=True)


def several_templates(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")


def scaled_positions(folder: Path) -> None:
    change_config(folder, "config.json", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0})


@pytest.mark.parametrize("change", [other_tokenizer, split_special, several_templates, scaled_positions])
def test_what_is_not_plain_is_read_by_transformers(change: Callable[[Path], None], tiny: Any, tmp_path: Path) -> None:
    tiny.save(tiny.make("llama", 0), tmp_path)
    change(tmp_path)
    for _ in range(2):
        assert not isinstance(loaded(tmp_path).vocabulary.tokenizer, PlainTokenizer)


def test_a_tokenizer_that_is_not_its_file_is_made_by_transformers(tiny_folder: Folder) -> None:
    for _ in range(2):
        vocabulary = loaded(tiny_folder("qwen2")).vocabulary
        assert type(vocabulary.tokenizer).__name__ == "Qwen2Tokenizer"


def test_templates_that_would_be_rendered_otherwise_are_left_to_transformers(
    tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.decode.text.plain_tokenizer.render", lambda *a, **k: "something else")
    loaded(tiny_folder("llama"))
    assert not is_remembered(tiny_folder("llama"))


def test_code_of_the_folder_is_never_passed_by(tiny_folder: Folder) -> None:
    loaded(tiny_folder("llama"), trust_remote_code=True)
    assert not is_remembered(tiny_folder("llama"))
    loaded(tiny_folder("llama"))
    model = loaded(tiny_folder("llama"), trust_remote_code=True)
    assert not isinstance(model.vocabulary.tokenizer, PlainTokenizer)


def test_refusals_stay(tiny_folder: Folder) -> None:
    loaded(tiny_folder("llama"))
    with pytest.raises(UnsupportedModel, match="device 'cuda' is not available"):
        loaded(tiny_folder("llama"), device="cuda")


def test_another_dtype_runs_the_self_test_and_reads_the_rest(
    tiny_folder: Folder, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_folder("llama")
    loaded(folder)
    capfd.readouterr()
    model = load("m", ModelConfig(source=str(folder), dtype="bfloat16"))
    assert isinstance(model.vocabulary.tokenizer, PlainTokenizer)
    assert model.dtype is torch.bfloat16
    assert capfd.readouterr().err == ""
