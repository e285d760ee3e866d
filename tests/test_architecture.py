"""The way of a request that docs/architecture.md tells is the one that a request takes."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from trimtab.decode import Engine, ModelConfig


def told(repository: Path) -> list[tuple[str, str]]:
    """File and function of each step of the exercise's answer."""
    page = (repository / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"^\| \d \| `([\w/.]+)` \| `([\w.]+)` \|", page, re.MULTILINE)


def way(repository: Path, source: Path) -> list[tuple[str, str]]:
    """File and function of every call that a request makes, on both threads, each where it came first."""
    calls: dict[tuple[str, str], None] = {}
    watching = False

    def watch(frame: FrameType, event: str, _: object) -> None:
        path = Path(frame.f_code.co_filename)
        if watching and event == "call" and path.is_relative_to(repository):
            calls.setdefault((path.relative_to(repository).as_posix(), frame.f_code.co_qualname))

    before = sys.getprofile()
    threading.setprofile(watch)  # for the engine's thread, which is about to be made
    try:
        with Engine({"base": ModelConfig(source=str(source), dtype="float32")}) as engine:
            threading.setprofile(None)
            sys.setprofile(watch)
            watching = True
            engine.generate("Once upon a time", max_new_tokens=2, seed=1)
            watching = False
    finally:
        threading.setprofile(None)
        sys.setprofile(before)
    return list(calls)


def test_the_exercise_has_the_right_answer(repository: Path, tiny_folder: Callable[..., Path]) -> None:
    steps = told(repository)
    assert 5 <= len(steps) <= 9
    assert len({path for path, _ in steps}) == len(steps)
    taken = way(repository, tiny_folder("llama"))
    missing = [step for step in steps if step not in taken]
    assert not missing
    assert sorted(steps, key=taken.index) == steps
