"""What the operations are asked for, as plain data: random keys, filters, how rows are drawn, mixed and verified.

Requests and decoding methods hold these; importing them loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from trimtab.kernels.rng import philox_int, uniform_one

if TYPE_CHECKING:
    import torch

__all__ = ["ROOT_BRANCH", "Blend", "Draft", "Filters", "Key", "Pick", "Stream", "Window"]

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

ROOT_BRANCH = 0

# Last counter word of the hashes. It is 0 for draws, so a hash and a draw never share a block.
_HASH_KEY = 0x6B657931
_HASH_CHILD = 0x63686C64
_HASH_DRAFTING = 0x64726674
_HASH_RESIDUAL = 0x72657364

_LARGEST = np.finfo(np.float32).max
_MAX_WEIGHT = 1.0e6


def _refuse(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(f"{name} = {value!r}: accepted: {accepted}")


def _no_bias() -> Mapping[int, float]:
    return MappingProxyType({})


class Stream(IntEnum):
    """What a random number is for. Two purposes never share bits; the numbers are part of the contract.

    A token is drawn in three steps, tile, column and line (``cpu.races``), or among the tokens of a filtered
    support in one. Draws that must not share bits with these, yet happen at the same position, use a derived key.
    """

    TILE = 0
    COLUMN = 1
    LINE = 2
    TOKEN = 3
    ACCEPT = 4  # whether a drafted token is accepted
    SEARCH = 5  # choices of a search: resampling, tie breaking


@dataclass(frozen=True, slots=True)
class Key:
    """Seed (unsigned 64 bits) and branch (unsigned 64 bits, 0 at the root) of one line of tokens.

    Attributes:
        bits: the 64-bit Philox key of this (seed, branch), a hash of the branch keyed by the seed. Made once here, so
            that a step over many rows hashes nothing.
    """

    seed: int
    branch: int = ROOT_BRANCH
    bits: int = field(init=False, repr=False, compare=False)
    _drafting: Key | None = field(init=False, repr=False, compare=False, default=None)
    _residual: Key | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        seed, branch = _unsigned("seed", self.seed, 64), _unsigned("branch", self.branch, 64)
        object.__setattr__(self, "bits", _hashed(seed, (branch & 0xFFFFFFFF, branch >> 32, 0, _HASH_KEY)))

    def child(self, position: int, k: int) -> Key:
        """The key of the k-th fork or retry at ``position``.

        Its branch is a Philox hash keyed by this one's, so that grandchildren depend on the whole path from the root.
        Two different paths collide with probability 2^-64.

        Raises:
            ValueError: position or k outside 32 bits.
        """
        counter = (_unsigned("position", position, 32), _unsigned("k", k, 32), 0, _HASH_CHILD)
        return Key(self.seed, _hashed(self.branch, counter))

    @property
    def drafting(self) -> Key:
        """The key under which a draft proposes this branch's tokens. Made at its first use and kept.

        What was proposed decides how far a block goes and what is left after a rejection, so the target must draw
        there with bits that the proposal has not seen.
        """
        if self._drafting is None:
            object.__setattr__(self, "_drafting", Key(self.seed, _hashed(self.branch, (0, 0, 0, _HASH_DRAFTING))))
        return cast(Key, self._drafting)

    @property
    def residual(self) -> Key:
        """The key under which this branch's token is drawn after a rejection. Made at its first use and kept."""
        if self._residual is None:
            object.__setattr__(self, "_residual", Key(self.seed, _hashed(self.branch, (0, 0, 0, _HASH_RESIDUAL))))
        return cast(Key, self._residual)

    def uniform(self, position: int, stream: int, index: int = 0) -> float:
        """One number of ``rng.uniform``, bit for bit, for choices that are made one at a time."""
        return uniform_one(self.bits, position, int(stream), index)


def _unsigned(field: str, value: int, bits: int) -> int:
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{field} = {value}: accepted: an unsigned {bits}-bit integer")
    return int(value)


def _hashed(key: int, counter: tuple[int, int, int, int]) -> int:
    """64 bits of Philox."""
    low, high, _, _ = philox_int(key, counter)
    return low | high << 32


@dataclass(frozen=True, slots=True)
class Filters:
    """What a request asks of its tokens; made once per request and checked then.

    Attributes:
        temperature: finite, >= 0; 0 takes the largest logit (ties: the lowest id) whatever the other filters say.
        top_k: keep the k largest logits and everything equal to the k-th; 0 keeps all.
        top_p: keep the tokens with less than top_p of the mass strictly above them, in (0, 1]; 1 keeps all. The mass
            is that of what top_k kept. Tokens equal to the last one kept are kept too.
        min_p: keep tokens of at least min_p times the top probability, in [0, 1).
        repetition_penalty: > 0; logits of tokens seen are divided by it if positive, else multiplied.
        bias: token id -> number added to its logit after the penalty; -inf bans it.

    Raises:
        ValueError: a value outside these ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    bias: Mapping[int, float] = field(default_factory=_no_bias)
    bias_ids: Ids = field(init=False, repr=False, compare=False)
    bias_values: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise _refuse("temperature", self.temperature, "a finite number >= 0")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise _refuse("top_k", self.top_k, "an integer >= 1, or 0 for no limit")
        if not 0 < self.top_p <= 1:
            raise _refuse("top_p", self.top_p, "a number in (0, 1]")
        if not 0 <= self.min_p < 1:
            raise _refuse("min_p", self.min_p, "a number in [0, 1)")
        if not (self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty)):
            raise _refuse("repetition_penalty", self.repetition_penalty, "a finite number > 0")
        for token, value in self.bias.items():
            if token < 0:
                raise _refuse("bias", token, "token ids >= 0")
            if math.isnan(value) or value == math.inf:
                raise _refuse(f"bias[{token}]", value, "a finite number, or -inf to ban the token")
        object.__setattr__(self, "bias_ids", np.fromiter(self.bias.keys(), np.int64, len(self.bias)))
        values = np.fromiter(self.bias.values(), np.float64, len(self.bias))
        values = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
        object.__setattr__(self, "bias_values", values.astype(np.float32))


_NO_FILTERS = Filters()


class Pick(NamedTuple):
    """How one row's token is picked. The defaults are greedy and cost nothing to make.

    Attributes:
        filters: those of the request.
        key: seed and branch; made once per branch.
        position: position of the token in its sequence, below 2^32.
        seen: ids already in the sequence, for the repetition penalty; duplicates do not count twice. The engine fills
            them in where a penalty asks for them. Verification asks again what a token was drawn from, ticks later, so
            a live list has no place here.
        banned: ids that cannot be picked at this step, e.g. EOS before the shortest length.
    """

    filters: Filters = _NO_FILTERS
    key: Key = Key(0)
    position: int = 0
    seen: tuple[int, ...] | Ids = ()
    banned: tuple[int, ...] | Ids = ()

    @property
    def edits(self) -> bool:
        """Whether logits are changed before the temperature."""
        filters = self.filters
        penalised = filters.repetition_penalty != 1.0 and len(self.seen) > 0
        return penalised or bool(filters.bias) or len(self.banned) > 0

    def restricts(self, vocabulary: int) -> bool:
        """Whether top-k, top-p or min-p leave tokens out."""
        filters = self.filters
        return filters.top_p < 1 or filters.min_p > 0 or 0 < filters.top_k < vocabulary


@dataclass(frozen=True, slots=True)
class Blend:
    """How one row's models are mixed; made once per request and checked then. See ``decode``'s ``Mixture``.

    Attributes:
        weights: one per model, the base's first. The base's is >= 0, others may be negative.
        plausibility: in [0, 1): only tokens with p_base >= plausibility * max p_base stay (contrastive decoding; Li
            et al., 2023, section 3.1).

    Raises:
        ValueError: a number outside these ranges.
    """

    weights: tuple[float, ...]
    plausibility: float = 0.0

    def __post_init__(self) -> None:
        if not self.weights:
            raise _refuse("weights", self.weights, "one number per model, the base's first")
        for i, weight in enumerate(self.weights):
            if not abs(weight) <= _MAX_WEIGHT or (i == 0 and weight < 0):
                low = "0" if i == 0 else f"{-_MAX_WEIGHT:g}"
                raise _refuse(f"weights[{i}]", weight, f"a number in [{low}, {_MAX_WEIGHT:g}]")
        if not 0 <= self.plausibility < 1:
            raise _refuse("plausibility", self.plausibility, "a number in [0, 1)")


class Draft(NamedTuple):
    """How the tokens of a window were drawn.

    Attributes:
        logits: [K, Vd], float32, bfloat16 or float16: the raw logits that each was drawn from; NaN and +inf count as
            -inf. None: each was certain, q = 1 (copied from the text, say).
        rows: K, the filters and so on under which each was drawn, in the draft's own ids; not read where logits is
            None. Keys and positions are not read.
        ids: int64 [Vd], distinct: id in the target's vocabulary of every column of logits. None: column = id. Tokens
            that are not among them have q = 0. On the CPU, where it is checked; on another device its kernels take it
            as it is.
        top_probs: K, the largest probability of each raw row, ``Stats.top_prob`` of drawing it: with it the CPU need
            not sum rows at temperature 1 again.
    """

    logits: torch.Tensor | None
    rows: Sequence[Pick]
    ids: torch.Tensor | None = None
    top_probs: Sequence[float] | None = None


class Window(NamedTuple):
    """The part of one request in a ragged batch.

    Attributes:
        tokens: K >= 0 drafted ids of the target's vocabulary.
        rows: K + 1: how the target draws at each position.
        draft: how the tokens were drawn; None: coupled.
    """

    tokens: Sequence[int]
    rows: Sequence[Pick]
    draft: Draft | None
