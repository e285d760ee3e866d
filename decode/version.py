"""Which trimtab this is."""

from __future__ import annotations

from importlib import metadata

__all__ = ["__version__"]


def _version() -> str:
    try:
        return metadata.version("trimtab")
    except metadata.PackageNotFoundError:  # it runs without being installed
        return "unknown"


__version__ = _version()
