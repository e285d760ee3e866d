"""Tasks: coroutines driven op by op. ``gather`` keeps order, the first failure closes the rest, closing is at once."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from typing import Any

import pytest

from trimtab.decode.engine.tasks import Task
from trimtab.decode.ops import Extend, Read, gather


class Desk:
    """Takes the ops that tasks wait for, and answers them when told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Task, Extend]] = []

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        task = Task(coroutine, lambda task, op: self.waiting.append((task, op)))
        task.start()
        return task

    def answer(self, index: int = 0) -> None:
        task, op = self.waiting.pop(index)
        task.resume([read(token) for token in op.tokens])

    def fail(self, index: int = 0, error: Exception | None = None) -> None:
        self.waiting.pop(index)[0].fail(error or OSError("no answer"))

    @property
    def asked(self) -> list[int]:
        return [op.tokens[0] for task, op in self.waiting if not task.done]


def read(token: int) -> Read:
    return Read(token, 0.0, 0.0, 1.0, token)


async def ask(token: int) -> int:
    """One op, answered with its own token."""
    (found,) = await Extend(None, (token,))  # type: ignore[arg-type]
    return found.token


class Log:
    """What coroutines went through."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def steps(self, name: str, count: int, result: Any = None) -> Any:
        try:
            for i in range(count):
                await ask(i)
            self.lines.append(f"{name} done")
            return name if result is None else result
        except Exception as error:
            self.lines.append(f"{name} caught {type(error).__name__}")
            raise
        finally:
            self.lines.append(f"{name} closed")


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def log() -> Log:
    return Log()


def test_a_task_goes_from_op_to_op(desk: Desk) -> None:
    async def method() -> list[int]:
        return [await ask(3), await ask(4)]

    task = desk.start(method())
    assert desk.asked == [3]
    desk.answer()
    assert not task.done
    assert desk.asked == [4]
    desk.answer()
    assert task.done
    assert task.result == [3, 4]
    assert task.error is None


def test_a_failure_is_raised_where_the_task_waits(desk: Desk) -> None:
    async def method() -> int:
        try:
            return await ask(1)
        except OSError:
            return await ask(2)

    task = desk.start(method())
    desk.fail()
    assert desk.asked == [2]
    desk.fail(error=KeyError("again"))
    assert task.done
    assert isinstance(task.error, KeyError)


def test_a_bug_in_a_method_is_its_error(desk: Desk) -> None:
    async def method() -> None:
        raise ZeroDivisionError

    assert isinstance(desk.start(method()).error, ZeroDivisionError)


def test_only_ops_can_be_awaited(desk: Desk) -> None:
    class Other:
        def __await__(self) -> Any:
            yield 7

    async def method() -> None:
        await Other()

    error = desk.start(method()).error
    assert isinstance(error, TypeError)
    assert "awaited int; accepted: Extend, Draft, Verify, Value, Call, gather" in str(error)


@pytest.mark.parametrize("seed", range(5))
def test_gather_keeps_the_order_of_its_children(desk: Desk, seed: int) -> None:
    """Whatever the order in which they end."""
    rng = random.Random(seed)
    log = Log()

    async def method() -> Any:
        return await gather(*(log.steps(f"c{i}", rng.randrange(5)) for i in range(6)))

    task = desk.start(method())
    while desk.waiting:
        desk.answer(rng.randrange(len(desk.waiting)))
    assert task.result == [f"c{i}" for i in range(6)]


def test_children_wait_at_the_same_time(desk: Desk) -> None:
    async def method() -> list[int]:
        return await gather(*map(ask, range(5)))

    task = desk.start(method())
    assert desk.asked == [0, 1, 2, 3, 4]
    for _ in range(5):
        desk.answer(-1)
    assert task.result == [0, 1, 2, 3, 4]


def test_gathering_nothing_goes_on_at_once(desk: Desk) -> None:
    async def method() -> tuple[list[int], list[str]]:
        log = Log()
        return await gather(), await gather(log.steps("x", 0), log.steps("y", 0))

    assert desk.start(method()).result == ([], ["x", "y"])


def test_the_first_failure_closes_the_siblings(desk: Desk, log: Log) -> None:
    async def method() -> Any:
        return await gather(log.steps("a", 3), log.steps("b", 3), log.steps("c", 3))

    task = desk.start(method())
    desk.fail(1)
    assert isinstance(task.error, OSError)
    assert log.lines == ["b caught OSError", "b closed", "a closed", "c closed"]
    assert desk.asked == [], "closed tasks still wait"
    for waiting, _ in desk.waiting:
        waiting.resume([read(0)])  # an answer that comes late changes nothing
        waiting.fail(OSError())
    assert len(log.lines) == 4


def test_a_child_that_fails_at_once_keeps_later_ones_from_starting(desk: Desk, log: Log) -> None:
    async def fails() -> None:
        raise ArithmeticError

    async def method() -> Any:
        return await gather(log.steps("a", 1), fails(), log.steps("never", 1))

    task = desk.start(method())
    assert isinstance(task.error, ArithmeticError)
    assert log.lines == ["a closed"], "a coroutine that never started has nothing to clean up"


def test_a_method_may_go_on_after_a_failed_gather(desk: Desk, log: Log) -> None:
    async def fails(first: bool) -> str:
        if not first:
            await ask(9)
        raise ArithmeticError

    async def method(first: bool) -> list[Any]:
        found = []
        for _ in range(3):
            try:
                await gather(fails(first), log.steps("a", 1), log.steps("b", 1))
            except ArithmeticError:
                found.append(await gather(ask(1), log.steps("c", 1)))
        return found

    for first in (True, False):
        task = desk.start(method(first))
        for _ in range(100):
            live = [i for i, (waiting, _) in enumerate(desk.waiting) if not waiting.done]
            if not live:
                break
            desk.answer(live[0])
        assert task.result == [[1, "c"]] * 3


def test_gathers_nest(desk: Desk, log: Log) -> None:
    async def inner(name: str) -> Any:
        try:
            return await gather(log.steps(f"{name}0", 2), log.steps(f"{name}1", 1))
        finally:
            log.lines.append(f"{name} closed")

    async def method() -> Any:
        return await gather(inner("a"), inner("b"), ask(5))

    task = desk.start(method())
    while desk.waiting:
        desk.answer()
    assert task.result == [["a0", "a1"], ["b0", "b1"], 5]

    log.lines.clear()
    task = desk.start(method())
    desk.fail(3)  # b1: ends b, and with it a and both of its children
    assert isinstance(task.error, OSError)
    assert log.lines == [
        "b1 caught OSError",
        "b1 closed",
        "b0 closed",
        "b closed",
        "a0 closed",
        "a1 closed",
        "a closed",
    ]


def test_closing_runs_finally_from_the_inside_out(desk: Desk, log: Log) -> None:
    async def method() -> Any:
        try:
            return await gather(log.steps("a", 2), log.steps("b", 2))
        finally:
            log.lines.append("method closed")

    task = desk.start(method())
    desk.answer()
    task.close()
    assert task.done
    assert task.error is None
    assert log.lines == ["a closed", "b closed", "method closed"]
    task.close()
    task.resume([read(1)])
    assert len(log.lines) == 3


def test_closing_before_the_start(desk: Desk, log: Log) -> None:
    task = Task(log.steps("a", 1), lambda task, op: None)
    task.close()
    task.start()
    assert task.done
    assert log.lines == []


@pytest.mark.parametrize("how", ["close", "fail"])
def test_ending_half_way_leaves_no_child(how: str) -> None:
    """Random trees of gathers, closed or failed after random answers: everything that began has ended."""
    for seed in range(40):
        rng, desk = random.Random(seed), Desk()
        begun: set[int] = set()
        ended: set[int] = set()

        async def tree(depth: int, rng: random.Random = rng, begun: set[int] = begun, ended: set[int] = ended) -> int:
            number = len(begun)
            begun.add(number)
            try:
                for _ in range(rng.randrange(1, 4)):
                    if depth and rng.random() < 0.6:
                        await gather(*(tree(depth - 1) for _ in range(rng.randrange(3))))
                    else:
                        await ask(number)
                return number
            finally:
                ended.add(number)

        task = desk.start(tree(3))
        for _ in range(rng.randrange(12)):
            if desk.waiting:
                desk.answer(rng.randrange(len(desk.waiting)))
        if how == "close" or not desk.waiting:
            task.close()
        else:
            desk.fail(rng.randrange(len(desk.waiting)))
            assert isinstance(task.error, OSError)
        assert task.done
        assert ended == begun
        assert not desk.asked
