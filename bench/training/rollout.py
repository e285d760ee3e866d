"""A target's own answers with its next-token probabilities: what a draft is distilled on.

The draft must agree with the target where the target goes, so it learns from texts that the target wrote. The target's
forward passes that write an answer already hold its distribution at every position; recording it there saves a second
pass over the text, which would cost four times what the draft's own training step costs.

Of a distribution every id with probability above ``FLOOR`` is kept, a few dozen on the average. What is left out is
known (1 - the sum), so every figure that is computed from it has a known error.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.engine.storage import Storage
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.models.load import LoadedModel

__all__ = ["FLOOR", "Ask", "Rollout", "Trace"]

FLOOR = 2e-4
_PAGE_TOKENS = 512
_PREFILL_TOKENS = 512  # of prompts, in one pass


@dataclass(frozen=True, slots=True)
class Ask:
    """One answer to write.

    Attributes:
        index: of the answer in its data set; its random numbers depend on this and the seed only.
        prompt: token ids.
        temperature: 0 is greedy.
        source: what kind of prompt it is.
    """

    index: int
    prompt: tuple[int, ...]
    temperature: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """One answer, with what the target thought at each of its tokens.

    Attributes:
        ask: what was asked.
        tokens: int32 [L], prompt and answer; the answer's last token is an end-of-sequence id if it ended by itself.
        starts: int64 [A + 1] for the A answer tokens: that of token i has entries ``starts[i]`` to ``starts[i + 1]``.
        ids: int32, token ids with probability above ``FLOOR``, ascending in each row.
        log_probs: float16, their natural log probabilities at temperature 1.
    """

    ask: Ask
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    ids: NDArray[np.int32]
    log_probs: NDArray[np.float16]


@dataclass(slots=True)
class _Slot:
    ask: Ask
    pages: list[int]
    uniforms: NDArray[np.float64]
    tokens: list[int]
    written: int = 0  # tokens whose keys and values are cached
    ids: list[NDArray[np.int32]] = field(default_factory=list)
    log_probs: list[NDArray[np.float16]] = field(default_factory=list)


class Rollout:
    """Writes answers, many at a time, each in a slot of the cache that the next takes over.

    Args:
        model: the target.
        slots: answers at a time.
        max_new_tokens: length limit of an answer.
        max_prompt_tokens: longest prompt.
        seed: of all sampling.
        stop_ids: ids that end an answer, beside the model's own end-of-sequence ids.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        slots: int = 64,
        max_new_tokens: int = 192,
        max_prompt_tokens: int = 1024,
        seed: int = 0,
        stop_ids: Iterable[int] = (),
    ) -> None:
        for name, value in (("slots", slots), ("max_new_tokens", max_new_tokens)):
            if value < 1:
                raise InvalidRequest.of(name, value, "1 or more")
        self.model, self.slots, self.seed = model, slots, seed
        self.max_new_tokens, self.max_prompt_tokens = max_new_tokens, max_prompt_tokens
        self.stop_ids = frozenset(stop_ids) | frozenset(model.vocabulary.eos_token_ids)
        longest = min(model.context, max_prompt_tokens + max_new_tokens)
        self._pages = -(-longest // _PAGE_TOKENS)
        self.storage: Storage = model.storage(self._pages * slots, _PAGE_TOKENS)

    def run(self, asks: Iterable[Ask]) -> Iterator[Trace]:
        """The answers, in the order in which they end.

        Raises:
            InvalidRequest: a prompt is empty or longer than ``max_prompt_tokens``; names its index.
        """
        waiting = deque(asks)
        for ask in waiting:
            if not 0 < len(ask.prompt) <= self.max_prompt_tokens:
                accepted = f"1 to {self.max_prompt_tokens} tokens"
                raise InvalidRequest.of(f"prompt[{ask.index}]", len(ask.prompt), accepted)
        # The first pages of all slots lie side by side, and so on: attention takes neighbours in one call.
        free = [[page * self.slots + slot for page in range(self._pages)] for slot in range(self.slots)]
        free.reverse()
        running: list[_Slot] = []
        while waiting or running:
            new = 0
            while waiting and free and (not new or new + len(waiting[0].prompt) <= _PREFILL_TOKENS):
                ask = waiting.popleft()
                uniforms = np.random.default_rng((self.seed, ask.index)).random(self.max_new_tokens)
                running.append(_Slot(ask, free.pop(), uniforms, list(ask.prompt)))
                new += len(ask.prompt)
            self._advance(running)
            left: list[_Slot] = []
            for slot in running:
                count = len(slot.tokens) - len(slot.ask.prompt)
                if slot.tokens[-1] in self.stop_ids or count == self.max_new_tokens:
                    free.append(slot.pages)
                    yield _trace(slot)
                else:
                    left.append(slot)
            running = left

    def _advance(self, running: Sequence[_Slot]) -> None:
        """One forward pass and one token for every slot."""
        spans = [Span(slot.tokens[slot.written :], slot.written, slot.pages, 1) for slot in running]
        batch = RaggedBatch.pack(spans, _PAGE_TOKENS)
        with torch.inference_mode():
            tokens, positions, rows = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.rows))
            logits = self.model.forward(tokens, positions, self.storage.begin(batch), rows).float()
            drawn = self._draw(running, logits)
            log_probs = logits.sub_(logits.logsumexp(-1, keepdim=True))
            row, column = (log_probs > np.log(FLOOR)).nonzero(as_tuple=True)
            values = log_probs[row, column].to(torch.float16).numpy()
        bounds = np.searchsorted(row.numpy(), np.arange(len(running) + 1))
        ids = column.numpy().astype(np.int32)
        for i, slot in enumerate(running):
            slot.written = len(slot.tokens)
            slot.tokens.append(drawn[i])
            slot.ids.append(ids[bounds[i] : bounds[i + 1]])
            slot.log_probs.append(values[bounds[i] : bounds[i + 1]])

    def _draw(self, running: Sequence[_Slot], logits: Tensor) -> list[int]:
        """A token for every row: the first whose cumulated probability passes the slot's uniform number."""
        drawn: list[int] = logits.argmax(-1).tolist()
        sampled = [i for i, slot in enumerate(running) if slot.ask.temperature > 0]
        if sampled:
            temperatures = torch.tensor([[running[i].ask.temperature] for i in sampled])
            mass = torch.softmax(logits[sampled] / temperatures, -1).cumsum(-1)
            points = [running[i].uniforms[_count(running[i])] for i in sampled]
            at = torch.searchsorted(mass, torch.tensor(points, dtype=torch.float32)[:, None] * mass[:, -1:])
            for i, token in zip(sampled, at.clamp_(max=logits.shape[-1] - 1).flatten().tolist(), strict=True):
                drawn[i] = token
        return drawn


def _count(slot: _Slot) -> int:
    return len(slot.tokens) - len(slot.ask.prompt)


def _trace(slot: _Slot) -> Trace:
    starts = np.zeros(len(slot.ids) + 1, np.int64)
    np.cumsum([len(ids) for ids in slot.ids], out=starts[1:])
    tokens = np.asarray(slot.tokens, np.int32)
    return Trace(slot.ask, tokens, starts, np.concatenate(slot.ids), np.concatenate(slot.log_probs))
