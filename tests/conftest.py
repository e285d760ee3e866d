"""Fixtures that every test file may use. Nothing here imports torch, so that tests of plain data stay quick."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

# Read when transformers and torch are first imported. No test may reach a model hub; and the oversubscription of
# cores by several test runs at once would cost more than the threads bring.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
# Read when torch first multiplies: a compiled multiplication is kept for every shape, by default 1024 of them, which
# takes 0.2 GB after tests of many shapes and saves no time.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
# Read when triton is first imported: without a GPU its kernels run through the interpreter.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("trimtab", deadline=None)  # other work on the machine must not fail a test
settings.load_profile("trimtab")


class RealModels(NamedTuple):
    """Folders of the bundled pair, as transformers loads them."""

    base: Path
    aligned: Path


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_models(request: pytest.FixtureRequest) -> RealModels:
    """The bundled pair, fetched first if it is not in the cache. Tests that use it are marked ``real``."""
    from trimtab.decode.models.bundled import bundled, ensure
    from trimtab.decode.models.progress import TextProgress

    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled(), TextProgress() as progress:
        folders = {model.role: ensure(model.name, progress=progress) for model in bundled()}
    return RealModels(base=folders["base"], aligned=folders["aligned"])


@pytest.fixture
def model_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model cache, also for processes that the test starts."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The helper module ``tiny``: random models of every architecture."""
    return importlib.import_module("tiny")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small work: a second thread gains little here and waits for its turn on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny_folder(kind, seed=0, **changes)``: the folder of a random model, made at its first use."""
    made: dict[str, Path] = {}

    def folder(kind: str, seed: int = 0, **changes: Any) -> Path:
        key = repr((kind, seed, sorted(changes.items())))
        if key not in made:
            made[key] = tiny.save(tiny.make(kind, seed, **changes), tmp_path_factory.mktemp(kind))
        return made[key]

    return folder


@pytest.fixture(scope="session")
def foreign_folder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose vocabulary is another than that of ``tiny``'s models."""
    folder = tmp_path_factory.mktemp("foreign")
    tiny.make("llama", 3).save_pretrained(folder)
    importlib.import_module("nudging_models").tokenizer("nudger").save_pretrained(folder)
    return folder


# ---------------------------------------------------------------------------------------------- memory of the processes


_MUCH = 1 << 10  # MB of a process from which on a file's models are freed before the next file begins
_PEAKS = pytest.StashKey[list[int]]()


@pytest.fixture(autouse=True, scope="module")
def _give_back() -> Iterator[None]:
    """Free what a file's models took before the next file loads its own; tiny ones may wait."""
    yield
    if _resident() > _MUCH:
        from trimtab.decode.engine.memory import give_back

        gc.collect()
        give_back()


def _resident() -> int:
    """Memory of this process, in MB; 0 where the system doesn't say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
    except OSError:
        return 0


def _peak() -> int:
    """The most memory, in MB, that this process has had resident."""
    import resource

    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # macOS counts bytes, Linux kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that load the bundled models come first: they take the longest, and a new process has the most room."""
    large = {item.path for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: item.path not in large)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells the process that started it, which says it at the end."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = _peak()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    peak = getattr(node, "workeroutput", {}).get("peak")
    if peak is not None:
        node.config.stash.setdefault(_PEAKS, []).append(peak)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    peaks = config.stash.get(_PEAKS, []) or [_peak()]
    terminalreporter.write_line(f"peak memory of a process: {max(peaks)} MB")
