"""Drives coroutine methods: advances them to their next op and hands results back. Not asyncio: no loop, no threads."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from trimtab.decode.ops import Call, Draft, Extend, Gather, Value, Verify

__all__ = ["Op", "Task"]

Op = Extend | Draft | Verify | Value | Call
_OPS = (Extend, Draft, Verify, Value, Call)


class Task:
    """A coroutine and, while it gathers, its children.

    Args:
        coroutine: the method.
        submit: called with (task, op) for every op that the engine must answer; the answer comes by ``resume``.
        parent: the gathering task.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        submit: Callable[[Task, Op], None],
        parent: Task | None = None,
        index: int = 0,
    ) -> None:
        self._coroutine, self._submit, self._parent, self._index = coroutine, submit, parent, index
        self._children: list[Task] = []
        self._results: list[Any] = []
        self._missing = 0
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None

    def start(self) -> None:
        self._advance(None, None)

    def resume(self, answer: Any) -> None:
        """Hand the awaited op's answer to the coroutine."""
        self._advance(answer, None)

    def fail(self, error: Exception) -> None:
        """Raise ``error`` at the point where the coroutine waits."""
        self._advance(None, error)

    def close(self) -> None:
        """Stop the coroutine and its children at once; their ``finally`` blocks run."""
        for child in self._children:
            child.close()
        if not self.done:
            self.done = True
            self._coroutine.close()

    def _advance(self, value: Any, error: Exception | None) -> None:
        if self.done:
            return
        try:
            op = self._coroutine.throw(error) if error is not None else self._coroutine.send(value)
        except StopIteration as stop:
            self._finish(stop.value, None)
            return
        except Exception as failure:
            self._finish(None, failure)
            return
        if isinstance(op, Gather):
            self._gather(op)
        elif isinstance(op, _OPS):
            try:
                self._submit(self, op)
            except Exception as fault:  # an op that makes no sense is the fault of the method that awaits it
                self._advance(None, fault)
        else:
            accepted = ", ".join(kind.__name__ for kind in _OPS)
            self._advance(None, TypeError(f"a method awaited {type(op).__name__}; accepted: {accepted}, gather"))

    def _finish(self, result: Any, error: Exception | None) -> None:
        self.done, self.result, self.error = True, result, error
        if self._parent is not None:
            self._parent._child_done(self)

    def _gather(self, op: Gather) -> None:
        self._children = [Task(child, self._submit, self, i) for i, child in enumerate(op.children)]
        self._results = [None] * len(self._children)
        self._missing = len(self._children)
        if not self._children:
            self._advance([], None)
            return
        for child in list(self._children):
            if child.done or self.done:
                break  # a sibling failed, and closed the rest
            child.start()

    def _child_done(self, child: Task) -> None:
        if child.error is not None:
            siblings, self._children = self._children, []
            for sibling in siblings:
                sibling.close()
            self._advance(None, child.error)
            return
        self._results[child._index] = child.result
        self._missing -= 1
        if self._missing == 0:
            self._children = []
            self._advance(self._results, None)
