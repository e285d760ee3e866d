"""What other packages add to this one, by entry points."""

from __future__ import annotations

from importlib import metadata

__all__ = ["installed"]


def installed(group: str) -> dict[str, metadata.EntryPoint]:
    """The entry points of a group that are installed, by name; of several of one name the first on the path."""
    # Not metadata.entry_points(): of two copies of a distribution's metadata (an old build beside an installation) it
    # sees only the first.
    found: dict[str, metadata.EntryPoint] = {}
    for distribution in metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group == group:
                found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))
