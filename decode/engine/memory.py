"""How much memory there is for a process, and giving back what it no longer needs."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

__all__ = ["give_back", "memory_limit"]

_GROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def memory_limit(groups: Path = _GROUPS, mine: Path = _MINE) -> int:
    """Bytes that this process may use: the machine's memory, or less where a container (a control group) has less.

    Args:
        groups: where control groups are mounted, version 2 or version 1.
        mine: lists those of this process.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, ValueError):  # a system that has no control groups, or other ones
        for line in mine.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
            # A group has at most what each of those has that it lies in. In a container the path may be the host's.
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder == root or root in folder.parents:
                    limits += _number(folder / name)
    return min(limits)


def _number(file: Path) -> list[int]:
    """What a file says; nothing where there is none, or no limit."""
    try:
        return [int(file.read_text())]
    except (OSError, ValueError):
        return []


def give_back() -> None:
    """Return freed memory to the operating system; without glibc nothing happens.

    Large tensors are returned as they are freed. What many small ones leave behind glibc keeps for later: after a
    model of 0.5 GB was loaded, 0.2 GB.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
