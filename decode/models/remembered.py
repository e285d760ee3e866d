"""What takes long to find out about a model's files, remembered between processes until the files change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile

from trimtab.decode.models.cache import home

__all__ = ["fingerprint", "installed", "recall", "remember"]

_KEPT = 100  # of a kind


def fingerprint(files: Iterable[Path], *besides: object) -> str:
    """Of files by their names, sizes and times, and of what else decides: the versions of libraries, say."""
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    said = json.dumps([*map(str, besides), stats])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def installed(library: str) -> str:
    """The version of a library that is installed, which need not be imported for it."""
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def recall(kind: str, key: str) -> bytes | None:
    """What was remembered under a fingerprint; None if nothing was, or it can't be read.

    Args:
        kind: a folder of its own.
        key: the name of a file there.
    """
    file = _folder(kind) / key
    try:
        found = file.read_bytes()
    except OSError:
        return None
    with suppress(OSError):
        os.utime(file)  # used now
    return found


def remember(kind: str, key: str, data: bytes) -> None:
    """Keep it, and of its kind only what was used last; where the cache can't be written nothing happens."""
    folder = _folder(kind)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as work:
            work.write(data)
        Path(work.name).rename(folder / key)
        last = sorted(folder.iterdir(), key=lambda file: -file.stat().st_mtime_ns)
        for file in last[_KEPT:]:
            file.unlink(missing_ok=True)


def _folder(kind: str) -> Path:
    return home() / kind
