"""Progress bars of transformers: for people who wait for a download, and for nobody else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["quiet"]


@contextmanager
def quiet(source: str) -> Iterator[None]:
    """No bars while a model is read from a folder, which takes seconds, or where they would be written to a log."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled() or (sys.stderr.isatty() and not Path(source).is_dir()):
        yield
        return
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
