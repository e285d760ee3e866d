"""One model as the engine runs it: its weights, its pages, and the sequences that live on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from trimtab.decode.engine.memory import memory_limit
from trimtab.decode.engine.pages import Pages
from trimtab.decode.engine.storage import Step, Storage
from trimtab.decode.models.load import LoadedModel
from trimtab.decode.text.templates import PromptTemplate

__all__ = ["LiveSequence", "View", "memory_for_pages", "page_size"]

# On a CPU a sequence that fits one page needs no merging of partial results, so pages are as large as memory allows.
_CPU_PAGES = (512, 256, 128, 64)
_GPU_PAGE = 64


class View:
    """A model view: weights (later also an adapter or steering) with a page pool of its own (law 4).

    Args:
        model: the loaded model.
        pages: number of pages in the pool.
        page_tokens: positions per page.
        template: Jinja template for prompts, in place of the tokenizer's own.
    """

    def __init__(self, model: LoadedModel, pages: int, page_tokens: int, template: str | None) -> None:
        self.model = model
        self.name = model.name
        self.vocabulary = model.vocabulary
        self.template = PromptTemplate(model.vocabulary, template)
        self.pages = Pages(pages, page_tokens)
        self.storage: Storage = model.storage(pages, page_tokens)
        self.context = min(model.context, pages * page_tokens)
        self.forward_passes = 0
        self.width = model.vocab_size
        """Token ids below it are used. Models that share a vocabulary may be padded to unlike widths: an id that one of
        them lacks is nobody's."""

    def release(self) -> None:
        """Free the weights and the pool; nothing can run on them any more."""
        self.model = replace(self.model, forward=_released, forward_hidden=None, acceptance=None)
        self.storage.release()

    def unknown(self, tokens: Sequence[int]) -> str:
        """Which of these token ids are not used, in words; nothing where all are."""
        wrong = next((token for token in tokens if not 0 <= token < self.width), None)
        return "" if wrong is None else f"token {wrong}, where model {self.name!r} has 0 to {self.width - 1}"


def _released(tokens: torch.Tensor, positions: torch.Tensor, step: Step, rows: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("the engine of this model is closed")


class LiveSequence:
    """Tokens of one branch under one view, and the table of what is cached of them."""

    __slots__ = ("closed", "owner", "table", "tokens", "view")

    def __init__(self, view: View, tokens: Sequence[int], owner: dict[LiveSequence, None]) -> None:
        if outside := view.unknown(tokens):
            raise ValueError(outside)
        self.view = view
        self.tokens = list(tokens)
        self.table = view.pages.open()
        self.owner = owner  # the open sequences of one request, in order of opening
        self.closed = False
        owner[self] = None

    @property
    def model(self) -> str:
        return self.view.name

    def fork(self) -> LiveSequence:
        twin = LiveSequence.__new__(LiveSequence)
        twin.view, twin.tokens, twin.owner, twin.closed = self.view, list(self.tokens), self.owner, False
        twin.table = self.view.pages.fork(self.table)
        self.owner[twin] = None
        return twin

    def rewind(self, length: int) -> None:
        if not 0 <= length <= len(self.tokens):
            raise ValueError(f"cannot rewind {len(self.tokens)} tokens to {length}")
        del self.tokens[length:]
        if self.table.length > length:
            self.view.pages.truncate(self.table, length)

    def evict(self) -> None:
        """Give the pages back but stay alive: the next forward pass recomputes what it needs (law 4)."""
        pages = self.view.pages
        pages.close(self.table, self.tokens)
        self.table = pages.open()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.view.pages.close(self.table, self.tokens)
            self.owner.pop(self, None)


def memory_for_pages(device: torch.device) -> int:
    """Bytes that all pages on a device may take together: an eighth of a CPU's memory, most of a GPU's free memory.

    On a CPU memory is taken as pages are first used, and kept: what has been read stays known for as long as there is
    room. A laptop of 8 GB then has 1 GB of pages.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * 0.8)
    return memory_limit() // 8


def page_size(model: LoadedModel, memory: int, rows: int) -> int:
    """Positions per page: on a CPU the largest with which ``rows`` sequences can run side by side."""
    if model.device.type != "cpu":
        return _GPU_PAGE
    fitting = (size for size in _CPU_PAGES if memory // (model.bytes_per_token * size) >= rows)
    return next(fitting, _CPU_PAGES[-1])
