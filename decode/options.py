"""Options of commands that are checked as soon as they are read: paths, and what may be given once only.

A mistake is an ``InvalidRequest``, of which ``trimtab`` makes one line, before anything is loaded or computed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.decode.errors import InvalidRequest

__all__ = ["InputFile", "Once", "OutputFile", "OutputFolder", "once", "writable_file", "writable_folder", "write_text"]


class Once(argparse.Action):
    """Stores a value, and refuses a second one: which of the two is meant?"""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        given: set[str] = vars(namespace).setdefault("given", set())
        if option is not None and self.dest in given:
            raise InvalidRequest.of(option, values, "one value: it is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, self.read(option or self.dest, values))

    def read(self, option: str, value: Any) -> Any:
        """What is stored of a value that was given."""
        return value


def once(parser: argparse.ArgumentParser) -> None:
    """Make options of ``parser`` that store a value, and are added from now on, refuse a second one."""
    parser.register("action", None, Once)
    parser.register("action", "store", Once)


class OutputFile(Once):
    """A file to be written in the end. Its folder is made then, if need be."""

    def read(self, option: str, value: Any) -> Path:
        return writable_file(Path(value), option)


class OutputFolder(Once):
    """A folder to be written into; it is made if need be."""

    def read(self, option: str, value: Any) -> Path:
        return writable_folder(Path(value), option)


class InputFile(Once):
    """A file, or several with ``nargs``, to be read."""

    def read(self, option: str, value: Any) -> Path | list[Path]:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [_readable(Path(one), option) for one in value]
        return _readable(Path(value), option)


def writable_file(path: Path, option: str) -> Path:
    """``path``, if a file can be written there.

    Raises:
        InvalidRequest: it is a folder, or may not be written, or its folder can't be made.
    """
    if path.is_dir():
        raise InvalidRequest.of(option, str(path), "a file; this is a folder")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise InvalidRequest.of(option, str(path), "a file that may be written")
    else:
        _makeable(path.parent, path, option)
    return path


def writable_folder(path: Path, option: str) -> Path:
    """``path``, if files can be written into a folder there.

    Raises:
        InvalidRequest: it is a file, or may not be written into, or can't be made.
    """
    _makeable(path, path, option)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file, and its folder before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _makeable(folder: Path, path: Path, option: str) -> None:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InvalidRequest.of(option, str(path), f"a path inside of folders; {str(there)!r} is none")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidRequest.of(option, str(path), f"a path that may be written; {str(there)!r} may not")


def _readable(path: Path, option: str) -> Path:
    if not path.is_file() or not os.access(path, os.R_OK):
        raise InvalidRequest.of(option, str(path), "a file that can be read")
    return path
