"""Loading a model from a folder writes no progress bars, and leaves transformers' setting as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.utils import logging

from trimtab.decode.config import ModelConfig
from trimtab.decode.models.load import load


def test_a_folder_is_read_in_silence(tiny_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert logging.is_progress_bar_enabled()
    folder = tiny_folder("llama")
    capfd.readouterr()  # of its making
    load("base", ModelConfig(source=str(folder), dtype="float32"))
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()
