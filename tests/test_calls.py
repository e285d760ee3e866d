"""Plain functions beside the engine's thread: results, exceptions, time limits, processes that die."""

from __future__ import annotations

import operator
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.decode.engine.calls import Calls
from trimtab.decode.ops import Call


class Desk:
    """Calls, and what came back of them by name."""

    def __init__(self) -> None:
        self.woken = threading.Event()
        self.calls = Calls(self.woken.set)
        self.results: dict[str, Any] = {}

    def submit(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        run = SimpleNamespace(name=name)
        self.calls.submit(run, name, Call(function, args, **options))  # type: ignore[arg-type]
        return run

    def wait(self, count: int, seconds: float = 60.0) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while len(self.results) < count and time.monotonic() < end:
            self.woken.wait(min(self.calls.timeout() or 0.05, 0.05))
            self.woken.clear()
            for _, task, result, error in self.calls.poll():
                self.results[str(task)] = error if error is not None else result
        assert len(self.results) == count, self.results
        return self.results


@pytest.fixture
def desk() -> Any:
    desk = Desk()
    yield desk
    desk.calls.close()


@pytest.mark.parametrize("where", ["thread", "process"])
def test_results_and_exceptions_come_back(desk: Desk, where: Any) -> None:
    for i in range(10):
        desk.submit(f"sum{i}", operator.add, i, 1, where=where)
    desk.submit("bad", int, "no number", where=where)
    desk.submit("exit", sys.exit, 3, where=where)
    results = desk.wait(12)
    assert [results[f"sum{i}"] for i in range(10)] == list(range(1, 11))
    assert isinstance(results["bad"], ValueError)
    assert "no number" in str(results["bad"])
    assert isinstance(results["exit"], RuntimeError)
    assert "SystemExit" in str(results["exit"])
    assert desk.calls.timeout() is None


@pytest.mark.parametrize("where", ["thread", "process"])
def test_time_limit(desk: Desk, where: Any) -> None:
    """Calls that hang end by their time limit, however many; those beside and after them are answered."""
    if where == "process":  # workers that run, so that only the hanging ones meet their limit
        desk.submit("warm", operator.add, 1, 1, where=where)
        desk.wait(1)
    for i in range(5):
        desk.submit(f"hang{i}", time.sleep, 30, where=where, timeout=0.3)
    began = time.monotonic()
    desk.submit("quick", operator.add, 2, 2, where=where, timeout=50)
    count = 6 + (where == "process")
    results = desk.wait(count)
    assert time.monotonic() - began < 25
    assert all(isinstance(results[f"hang{i}"], TimeoutError) for i in range(5))
    assert results["quick"] == 4
    desk.submit("after", operator.add, 3, 3, where=where)
    assert desk.wait(count + 1)["after"] == 6


def test_a_process_that_dies_fails_its_call_and_no_later_one(desk: Desk) -> None:
    desk.submit("die", os._exit, 7, where="process")
    assert isinstance(desk.wait(1)["die"], Exception)
    desk.submit("after", operator.add, 1, 1, where="process")
    assert desk.wait(2)["after"] == 2


def test_forgotten_calls_come_back_to_nobody(desk: Desk) -> None:
    gate = threading.Event()
    run = desk.submit("forgotten", gate.wait)
    desk.calls.forget(run)
    gate.set()
    desk.submit("other", operator.add, 1, 2)
    assert desk.wait(1) == {"other": 3}
    assert desk.calls.timeout() is None


@pytest.mark.parametrize("where", ["thread", "process"])
def test_waiting_for_the_calls_of_others_costs_no_time_limit_and_little_time(desk: Desk, where: Any) -> None:
    """More calls hang than there are workers, all with a long limit: one behind them with a short one is answered."""
    if where == "process":
        desk.submit("warm", operator.add, 1, 1, where=where)
        desk.wait(1)
    hanging = [desk.submit(f"hang{i}", time.sleep, 60, where=where, timeout=55) for i in range(5)]
    began = time.monotonic()
    desk.submit("quick", operator.add, 2, 2, where=where, timeout=0.3)
    count = 1 + (where == "process")
    assert desk.wait(count)["quick"] == 4
    assert time.monotonic() - began < 30  # processes start slowly on a busy machine
    for run in hanging:
        desk.calls.forget(run)


def test_the_process_of_a_forgotten_call_is_killed(desk: Desk, tmp_path: Any) -> None:
    """A request that is cancelled leaves no process at work behind."""
    path = str(tmp_path / "pid")
    noted = f"import os, time; open({path!r} + '~', 'w').write(str(os.getpid())); os.rename({path!r} + '~', {path!r})"
    run = desk.submit("forgotten", exec, f"{noted}; time.sleep(60)", where="process")
    end = time.monotonic() + 30
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    desk.calls.forget(run)
    while time.monotonic() < end and _runs(pid):
        time.sleep(0.02)
    assert not _runs(pid)
    desk.submit("after", operator.add, 1, 1, where="process")
    assert desk.wait(1)["after"] == 2


def test_threads_that_come_back_late_are_not_kept() -> None:
    """What was left behind ends when its function does, and workers there are too many of end too."""
    desk = Desk()
    gate = threading.Event()
    before = _workers()
    for i in range(6):
        desk.submit(f"late{i}", gate.wait, timeout=0.1)
    desk.wait(6)
    gate.set()
    desk.submit("after", operator.add, 1, 1)
    desk.wait(7)
    end = time.monotonic() + 20
    while _workers() - before > 4 and time.monotonic() < end:
        time.sleep(0.02)
    assert 1 <= _workers() - before <= 4
    desk.calls.close()


def _workers() -> int:
    return sum(thread.name == "trimtab-call" for thread in threading.enumerate())


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
