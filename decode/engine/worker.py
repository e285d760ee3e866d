"""The process behind calls that run in one: ``python -m trimtab.decode.engine.worker FD``. Imports next to nothing.

Not a multiprocessing child: those import the program's main module again, and with it whatever it does at top level.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["one_thread", "serve"]


def one_thread() -> None:
    """Hold torch on this thread, or in this process, to one core.

    Every thread that computes has OpenMP workers of its own; more of them than cores slow the engine's thread down.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def serve(pipe: Connection) -> None:
    """Say that this process is there, then answer (function, args) with (result, None) or (None, exception).

    Until the other side closes the pipe.
    """
    _send(pipe, None, None)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        except Exception as error:  # a name that can't be imported here
            _send(pipe, None, error)
            continue
        _send(pipe, *_run(function, args))


def _run(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    try:
        return function(*args), None
    except Exception as error:
        return None, error
    except BaseException as error:  # SystemExit of a function ends its call, not this process
        return None, RuntimeError(f"{type(error).__name__}: {error}")


def _send(pipe: Connection, result: Any, error: Exception | None) -> None:
    try:
        pipe.send((result, error))
    except Exception as fault:  # what can't be pickled
        pipe.send(
            (
                None,
                RuntimeError(f"{type(fault).__name__}: {fault}; its answer was {result if error is None else error!r}"),
            )
        )


if __name__ == "__main__":
    one_thread()
    sys.stdout = sys.stderr
    serve(Connection(int(sys.argv[1])))
