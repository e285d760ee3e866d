"""Traces as batches: which ids a draft keeps, and the target's probabilities at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.bench.training.losses import Sparse
from trimtab.bench.training.rollout import Trace
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["Batch", "Corpus", "Example", "choose_ids"]

_WINDOW = 16  # batches among which examples are sorted by length


def choose_ids(traces: Iterable[Trace], vocabulary: Vocabulary, vocab_size: int, count: int) -> Tensor:
    """The ids that a draft keeps.

    Args:
        traces: what it is trained on; ids are ranked by the target's probability, summed over all positions.
        vocabulary: the target's; its end-of-sequence ids and single bytes are always kept: the first, or a draft
            could never end an answer, the others for texts that were not seen here.
        vocab_size: of the target.
        count: how many ids, at most ``vocab_size``.

    Returns:
        int64 [count], ascending.

    Raises:
        InvalidRequest: no traces, or too few or too many ids asked for.
    """
    mass = np.zeros(vocab_size)
    for trace in traces:
        np.add.at(mass, trace.ids, np.exp(trace.log_probs.astype(np.float32)))
    if not mass.any():
        raise InvalidRequest.of("answers", 0, "at least one answer to train on")
    always = {i for i in range(min(vocab_size, vocabulary.size)) if len(vocabulary.piece(i)) == 1}
    always |= set(vocabulary.eos_token_ids)
    if not len(always) <= count <= vocab_size:
        raise InvalidRequest.of("ids", count, f"{len(always)} to {vocab_size}")
    mass[list(always)] = np.inf
    ranked = np.lexsort((np.arange(vocab_size), -mass))
    return torch.from_numpy(np.sort(ranked[:count]).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Example:
    """One trace, in a draft's columns.

    Attributes:
        tokens: int32 [L].
        prompt: length of the prompt; answer token i is predicted at position ``prompt - 1 + i``.
        starts, columns, log_probs, best: as ``Sparse`` has them, of the answer's tokens.
    """

    tokens: NDArray[np.int32]
    prompt: int
    starts: NDArray[np.int64]
    columns: NDArray[np.int32]
    log_probs: NDArray[np.float16]
    best: NDArray[np.int64]
    source: str
    temperature: float

    @classmethod
    def of(cls, trace: Trace, column_of: NDArray[np.int64]) -> Example:
        columns = column_of[trace.ids]
        kept = columns >= 0
        sums = np.concatenate((np.zeros(1, np.int64), np.cumsum(kept)))
        top = np.asarray(
            [
                trace.ids[a + int(np.argmax(trace.log_probs[a:b]))]
                for a, b in zip(trace.starts, trace.starts[1:], strict=False)
            ]
        )
        return cls(
            trace.tokens,
            len(trace.ask.prompt),
            np.asarray(sums[trace.starts], np.int64),
            columns[kept].astype(np.int32),
            trace.log_probs[kept],
            column_of[top],
            trace.ask.source,
            trace.ask.temperature,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side, padded at their ends.

    Attributes:
        tokens: int64 [B, L]; padding is 0, and causal attention keeps it out of what comes before.
        where: int64 [n], positions in ``tokens`` laid flat whose outputs predict answer tokens.
        drawn: int64 [n], the target's ids of these answer tokens.
        sparse: the target's probabilities of these.
    """

    tokens: Tensor
    where: Tensor
    drawn: Tensor
    sparse: Sparse


class Corpus:
    """Examples, and batches of them by number.

    Args:
        traces: the target's answers.
        ids: int64 [Vd], the ids that the draft keeps.
        vocab_size: of the target.
        batch_tokens: tokens in a batch, padding included.
        seed: of the order.
    """

    def __init__(self, traces: Iterable[Trace], ids: Tensor, vocab_size: int, batch_tokens: int, seed: int) -> None:
        column_of = np.full(vocab_size, -1, np.int64)
        column_of[ids.numpy()] = np.arange(len(ids))
        self.examples = [Example.of(trace, column_of) for trace in traces]
        if not self.examples:
            raise InvalidRequest.of("answers", 0, "at least one answer")
        self.batch_tokens, self.seed = batch_tokens, seed
        self._epoch = -1
        self._plan: list[list[int]] = []
        self._first = 0  # number of the plan's first batch

    @property
    def answer_tokens(self) -> int:
        return sum(len(example.best) for example in self.examples)

    def batch(self, number: int) -> Batch:
        """The batch of that number, through as many epochs as it takes; every epoch has an order of its own."""
        if number < self._first:
            self._epoch, self._plan, self._first = -1, [], 0
        while number >= self._first + len(self._plan):
            self._first += len(self._plan)
            self._epoch += 1
            self._plan = self._order(self._epoch)
        return collate([self.examples[i] for i in self._plan[number - self._first]])

    def all(self) -> Iterator[tuple[list[Example], Batch]]:
        """Every example once, in batches, the longest first."""
        for chosen in self._cut(sorted(range(len(self.examples)), key=lambda i: -len(self.examples[i].tokens))):
            examples = [self.examples[i] for i in chosen]
            yield examples, collate(examples)

    def _order(self, epoch: int) -> list[list[int]]:
        draw = np.random.default_rng((self.seed, epoch))
        shuffled = draw.permutation(len(self.examples))
        mean = sum(len(example.tokens) for example in self.examples) / len(self.examples)
        window = max(1, int(_WINDOW * self.batch_tokens / mean))
        batches: list[list[int]] = []
        for begin in range(0, len(shuffled), window):
            part = sorted(shuffled[begin : begin + window].tolist(), key=lambda i: -len(self.examples[i].tokens))
            batches += self._cut(part)
        return [batches[i] for i in draw.permutation(len(batches))]

    def _cut(self, indices: Sequence[int]) -> list[list[int]]:
        """Runs of indices, longest example first, that fill a batch."""
        batches: list[list[int]] = []
        longest = 0
        for index in indices:
            if not batches or (len(batches[-1]) + 1) * longest > self.batch_tokens:
                batches.append([])
                longest = len(self.examples[index].tokens)
            batches[-1].append(index)
        return batches


def collate(examples: Sequence[Example]) -> Batch:
    """Lay examples side by side. The last token of each is predicted but not read."""
    length = max(len(example.tokens) for example in examples) - 1
    tokens = np.zeros((len(examples), length), np.int64)
    where, drawn, sizes = [], [], []
    for row, example in enumerate(examples):
        own = example.tokens[:-1]
        tokens[row, : len(own)] = own
        where.append(row * length + np.arange(example.prompt - 1, len(own)))
        drawn.append(example.tokens[example.prompt :])
        sizes.append(np.diff(example.starts))
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.concatenate(sizes))))
    sparse = Sparse(
        torch.from_numpy(starts),
        torch.from_numpy(np.concatenate([e.columns for e in examples]).astype(np.int64)),
        torch.from_numpy(np.exp(np.concatenate([e.log_probs for e in examples]).astype(np.float32))),
        torch.from_numpy(np.concatenate([e.best for e in examples])),
    )
    flat = np.concatenate(drawn).astype(np.int64)
    return Batch(torch.from_numpy(tokens), torch.from_numpy(np.concatenate(where)), torch.from_numpy(flat), sparse)
