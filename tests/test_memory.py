"""Memory that an engine takes, and gives back."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import textwrap
import time
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.decode.config import ConfigError, EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.memory import memory_limit
from trimtab.decode.engine.storage import Storage

Folder = Callable[..., Path]

# Resident memory of a process of its own, so that other tests don't count. One engine first: what it imports stays.
TEN_ENGINES = """
    import gc, sys
    import torch
    from trimtab.decode.config import EngineOptions, ModelConfig
    from trimtab.decode.engine.engine import Engine
    from trimtab.decode.engine.memory import give_back

    def resident() -> int:
        fields = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
        return int(fields["VmRSS"].split()[0]) // 1024

    def once() -> tuple[int, int]:
        options = EngineOptions(memory_bytes=512 << 20, max_batch_rows=8)
        engine = Engine({"base": ModelConfig(source=sys.argv[1], dtype="float32")}, options=options)
        opened = resident()
        engine.generate(list(range(200)), max_new_tokens=8, ignore_eos=True)
        engine.close()
        return opened, resident()

    torch.set_num_threads(1)
    before = resident()
    once()
    first = resident()
    found = [once() for _ in range(10)]
    print(before, first, max(opened for opened, _ in found), found[-1][1])
"""


def numbers(program: str, *arguments: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()[-4:]]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_ten_engines_leave_nothing_behind(tiny_folder: Folder) -> None:
    """A pool of 512 MB takes memory as it is used, and what an engine took is free when it is closed."""
    folder = tiny_folder("llama", 0, hidden_size=384, intermediate_size=1024, num_hidden_layers=4)  # 26 MB
    _, first, opened, last = numbers(TEN_ENGINES, str(folder))
    assert opened < first + 150  # the weights, and while they are packed twice; not the pool
    assert last < first + 50


def test_a_pool_takes_no_memory_before_it_is_used() -> None:
    storage = Storage(4, 64, 512, 8, 64, torch.float32, torch.device("cpu"))
    assert storage._all.numel() * 4 == 4 * 2 * 64 * 8 * 512 * 64 * 4
    assert not storage._all[:, :, 3].any()
    storage._all[0, 0, 0, 0, 0] = 1.0
    assert float(storage.pools[0].sum()) == 64.0  # one memory, seen by layers
    storage.release()
    assert storage._all.numel() == 0


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_short_prompt_takes_little_of_a_pool() -> None:
    """Its keys and values lie in two places of each layer: in huge pages that would be 120 MB."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

    storage = Storage(30, 64, 512, 3, 64, torch.float32, torch.device("cpu"))
    before = resident()
    storage._all[:, :, 0, :, :40] = 1.0
    assert resident() - before < 20
    assert float(storage._all[:, :, 0].sum()) == 30 * 2 * 3 * 40 * 64


def test_a_pool_too_small_to_be_of_use_is_refused(tiny_folder: Folder) -> None:
    models: Any = {"base": ModelConfig(source=str(tiny_folder("llama", 0)), dtype="float32")}
    with pytest.raises(ConfigError, match=r"engine.memory_bytes.*at least [0-9]+, so that 'base' has room") as refused:
        Engine(models, options=EngineOptions(memory_bytes=1000))
    (least,) = re.findall(r"at least (\d+)", str(refused.value))
    with pytest.raises(ConfigError):
        Engine(models, options=EngineOptions(memory_bytes=int(least) - 1))
    with Engine(models, options=EngineOptions(memory_bytes=int(least))) as engine:
        assert len(engine.generate([1, 2], max_new_tokens=60, ignore_eos=True).tokens) == 60


def test_an_engine_that_is_dropped_ends(tiny_folder: Folder) -> None:
    """Its thread doesn't hold it; dropping one without closing it is said."""
    models: Any = {"base": ModelConfig(source=str(tiny_folder("llama", 0)), dtype="float32")}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine = Engine(models, options=EngineOptions(memory_bytes=16 << 20))
        engine.generate([1, 2], max_new_tokens=2)
        thread, pool, gone = (
            engine._loop._thread,
            weakref.ref(engine._loop.scheduler.models["base"].storage),
            weakref.ref(engine),
        )
        del engine
        gc.collect()
        assert gone() is None
        thread.join(60)
    assert not thread.is_alive()
    assert any(issubclass(w.category, ResourceWarning) and "not closed" in str(w.message) for w in said)
    for _ in range(100):
        if pool() is None:
            break
        time.sleep(0.05)
        gc.collect()
    assert pool() is None


def test_a_closed_engine_is_dropped_in_silence(tiny_folder: Folder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = Engine({"base": ModelConfig(source=str(tiny_folder("llama", 0)), dtype="float32")})
        engine.close()
        del engine
        gc.collect()


def test_a_request_under_way_keeps_its_engine(tiny_folder: Folder) -> None:
    engine = Engine({"base": ModelConfig(source=str(tiny_folder("llama", 0)), dtype="float32")})
    events = engine.stream([1, 2], max_new_tokens=40, ignore_eos=True)
    thread = engine._loop._thread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del engine
        gc.collect()
        last = list(events)[-1]
        assert len(last.result.tokens) == 40  # type: ignore[union-attr]
        del events, last
        for _ in range(100):
            gc.collect()
            if not thread.is_alive():
                break
            time.sleep(0.05)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    ("files", "mine", "expected"),
    [
        ({"memory.max": "max"}, "0::/", None),
        ({"memory.max": "1000"}, "0::/", 1000),
        ({"a/memory.max": "max", "memory.max": "5000"}, "0::/a", 5000),
        ({"a/memory.max": "3000", "a/b/memory.max": "4000"}, "0::/a/b", 3000),
        ({"memory/memory.limit_in_bytes": "2000"}, "4:memory:/\n3:cpu:/x", 2000),
        ({"memory/x/memory.limit_in_bytes": "700", "memory.max": "9"}, "4:cpu,memory:/x", 700),
        ({"memory.max": "6000"}, "0::/of/the/host", 6000),
        ({}, "nonsense", None),
    ],
    ids=str,
)
def test_a_containers_limit_counts(tmp_path: Path, files: dict[str, str], mine: str, expected: int | None) -> None:
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "mine").write_text(mine)
    found = memory_limit(tmp_path / "groups", tmp_path / "mine")
    if expected is None:
        assert found >= 1 << 30
    else:
        assert found == expected
    assert memory_limit(tmp_path / "groups", tmp_path / "none") >= 1 << 30
