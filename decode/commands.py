"""The command ``trimtab``: gathers the subcommands of whatever layers are installed.

A layer offers its subcommands through the entry-point group ``trimtab.commands``: each entry is a function
``register(subparsers)`` that adds parsers and gives each ``set_defaults(run=...)``, a function from the parsed
arguments to an exit status. Modules with such a function must import quickly: all of them are loaded for every
command; what is heavy is imported by the handler.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from trimtab.decode.errors import InvalidRequest, NotFound, TrimtabError, UnsupportedRequest
from trimtab.decode.version import __version__

__all__ = ["GROUP", "Registrar", "Subparsers", "main"]

GROUP = "trimtab.commands"

Subparsers = Any  # argparse._SubParsersAction[ArgumentParser], which has no public name
Registrar = Callable[[Subparsers], None]


class EntryPoint(Protocol):
    """What is needed of ``importlib.metadata.EntryPoint``."""

    @property
    def name(self) -> str: ...

    def load(self) -> Any: ...


def main(argv: Sequence[str] | None = None, *, entry_points: Sequence[EntryPoint] | None = None) -> int:
    """Runs one command and returns its exit status.

    The status is the handler's; 2 for a mistake in what was asked for, 1 for any other error of trimtab's own, 130
    after Ctrl-C. Such errors are one line on standard error; anything else is a defect and shows its traceback.

    Args:
        argv: the arguments after the program's name; those of the process by default.
        entry_points: where subcommands come from; by default what is installed in the group ``trimtab.commands``.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="trimtab", description="Align a large language model while it decodes.")
    parser.add_argument("--version", action="version", version=f"trimtab {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
    failures = []
    for entry_point in sorted(found, key=lambda entry: entry.name):
        try:
            register: Registrar = entry_point.load()
            register(subparsers)
        except Exception as error:  # one broken layer must not take the others with it
            failures.append(f"{entry_point.name}: {type(error).__name__}: {error}")
    # Their commands are missing, which matters to whoever asks for one of them or looks for it in the help.
    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    if wanted not in subparsers.choices:
        for failure in failures:
            sys.stderr.write(f"trimtab: commands could not be loaded from {failure}\n")
    try:
        args = parser.parse_args(arguments)
        return int(args.run(args))
    except TrimtabError as error:
        sys.stderr.write(f"trimtab: error: {error}\n")
        return 2 if isinstance(error, InvalidRequest | NotFound | UnsupportedRequest) else 1
    except KeyboardInterrupt:
        sys.stderr.write("trimtab: interrupted\n")
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`trimtab ... | head`). Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
