"""What all pictures share: matplotlib, which is optional, two colours, and how a picture is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.decode.errors import TrimtabError

__all__ = ["COLOURS", "figure_module", "save"]

COLOURS = ("#1b6ca8", "#b8bec4")  # ours, and what it is compared with


def figure_module() -> Any:
    """``matplotlib.figure``.

    Raises:
        TrimtabError: matplotlib is not installed.
    """
    try:
        from matplotlib import figure
    except ImportError as error:
        raise TrimtabError("a plot needs matplotlib: pip install 'trimtab[bench]'") from error
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a picture in the format that its ending says; the same figures make the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None} if path.suffix == ".png" else {}
    figure.savefig(path, dpi=150, metadata=metadata)
