"""One model as the engine runs it: its weights, its pages, and the sequences that live on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from trimtab.decode.engine.pages import Pages
from trimtab.decode.engine.storage import Step, Storage
from trimtab.decode.models.load import LoadedModel
from trimtab.decode.text.templates import PromptTemplate

__all__ = ["LiveSequence", "ModelInstance"]


class ModelInstance:
    """Weights (later also an adapter or steering) with a page pool of their own (law 4).

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
    """Tokens of one branch under one model, and the table of what is cached of them."""

    __slots__ = ("closed", "instance", "owner", "table", "tokens")

    def __init__(self, instance: ModelInstance, tokens: Sequence[int], owner: dict[LiveSequence, None]) -> None:
        if outside := instance.unknown(tokens):
            raise ValueError(outside)
        self.instance = instance
        self.tokens = list(tokens)
        self.table = instance.pages.open()
        self.owner = owner  # the open sequences of one request, in order of opening
        self.closed = False
        owner[self] = None

    @property
    def model(self) -> str:
        return self.instance.name

    def fork(self) -> LiveSequence:
        twin = LiveSequence.__new__(LiveSequence)
        twin.instance, twin.tokens, twin.owner, twin.closed = self.instance, list(self.tokens), self.owner, False
        twin.table = self.instance.pages.fork(self.table)
        self.owner[twin] = None
        return twin

    def rewind(self, length: int) -> None:
        if not 0 <= length <= len(self.tokens):
            raise ValueError(f"cannot rewind {len(self.tokens)} tokens to {length}")
        del self.tokens[length:]
        if self.table.length > length:
            self.instance.pages.truncate(self.table, length)

    def evict(self) -> None:
        """Give the pages back but stay alive: the next forward pass recomputes what it needs (law 4)."""
        pages = self.instance.pages
        pages.close(self.table, self.tokens)
        self.table = pages.open()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.instance.pages.close(self.table, self.tokens)
            self.owner.pop(self, None)
