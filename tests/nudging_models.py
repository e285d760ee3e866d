"""Table models without torch, and a driver that answers their ops: methods run in milliseconds.

A table's logits depend on the last few tokens only, through a seeded hash, so a wrong token anywhere in what a model
has read changes what it says next.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import transformers as hf
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trimtab.decode.methods.build import Prepared, write
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.ops import Extend, Read
from trimtab.decode.request.events import Chunk
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Candidate, TopLogprob
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.decode.text.vocabulary import Vocabulary
from trimtab.kernels.types import Filters, Key, Pick

Logits = NDArray[np.float64]

# ------------------------------------------------------------------------------------------------------- vocabularies

# Two families: what one spells with one token the other spells with several, also across the parts of a character.
_MERGES = {
    "base": "h e,t he,Ġ the,Ġ a,i n,in g,s ing,Ġ sing,o n,Ġ on,Ċ Ċ,u e,Q ue,Ġ Ġ,ã ģ,Ġthe n,. .",
    "nudger": "t h,th e,Ġ the,i n,Ġ in,s in,Ġ sin,Ġ o,a n,Ġ an,an d,. Ċ,Ġ Ċ,Ã ©,ð Ł",
}
SPECIAL = ("<bos>", "<eos>", "<turn>")


@functools.cache
def tokenizer(kind: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: all bytes, about twenty merges, three special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=kind == "nudger")
    merges = [(left, right) for left, right in (merge.split(" ") for merge in _MERGES[kind].split(","))]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *dict.fromkeys(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")


@functools.cache
def vocabulary(kind: str) -> Vocabulary:
    return Vocabulary(tokenizer(kind), name=kind)


def special(kind: str, name: str) -> int:
    found = tokenizer(kind).convert_tokens_to_ids(name)
    assert isinstance(found, int)
    return found


def token(kind: str, piece: bytes | str) -> int:
    """The token of that piece, or the special token of that name."""
    if isinstance(piece, str) and piece in SPECIAL:
        return special(kind, piece)
    raw = piece.encode() if isinstance(piece, str) else piece
    found = _by_piece(kind).get(raw)
    assert found is not None, f"{raw!r} is no token of {kind}"
    return found


@functools.cache
def _by_piece(kind: str) -> dict[bytes, int]:
    own = vocabulary(kind)
    return {own.piece(i): i for i in range(own.size) if i not in own.special_ids}


# -------------------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Model:
    """A vocabulary and the logits after any sequence of tokens.

    Attributes:
        logits: tokens -> float64 [V].
        limit: longest sequence.
    """

    vocabulary: Vocabulary
    logits: Callable[[Sequence[int]], Logits]
    limit: int = 4096


def statistics(logits: Logits) -> tuple[Logits, float, float, int]:
    """ln p of every token, entropy, top probability, argmax."""
    top = logits.max()
    logp = logits - (top + np.log(np.exp(logits - top).sum()))
    p = np.exp(logp)
    return logp, float(-(p * np.where(p > 0, logp, 0)).sum()), float(p.max()), int(logits.argmax())


def draw(logits: Logits, pick: Pick, seen: Sequence[int]) -> int:
    """A token by inverse transform, from one random number of (key, position); the plainest sampler there is."""
    z, filters = logits.copy(), pick.filters
    if filters.repetition_penalty != 1.0:
        for i in set(seen):
            z[i] = z[i] / filters.repetition_penalty if z[i] > 0 else z[i] * filters.repetition_penalty
    for i, bias in filters.bias.items():
        z[i] += bias
    z[list(pick.banned)] = -np.inf
    if filters.temperature == 0:
        return int(z.argmax())
    p = np.exp((z - z.max()) / filters.temperature)
    cumulative = np.cumsum(p / p.sum())
    u = random.Random(f"{pick.key.bits}/{pick.position}").random()
    return min(int(np.searchsorted(cumulative, u, side="right")), len(p) - 1)


def read(model: Model, tokens: Sequence[int], pick: Pick | None, top: int = 0) -> Read:
    if pick is None:  # nudging has no use for these: whoever uses one gets caught
        return Read(-1, np.nan, np.nan, np.nan, -1)
    logits = model.logits(tokens)
    logp, entropy, top_prob, argmax = statistics(logits)
    chosen = draw(logits, pick, tokens)
    best = tuple(
        TopLogprob(int(i), model.vocabulary.piece(int(i)), float(logp[i]))
        for i in sorted(range(len(logp)), key=lambda i: (-logp[i], i))[:top]
    )
    return Read(chosen, float(logp[chosen]), entropy, top_prob, argmax, best)


def table(
    kind: str,
    seed: int,
    support: Iterable[bytes | str],
    *,
    order: int = 3,
    rare: Iterable[bytes | str] = (),
    **limits: int,
) -> Model:
    """Random logits over ``support``: sure after some contexts, unsure after others. ``rare`` tokens are unlikelier."""
    own = vocabulary(kind)
    ids = np.array([token(kind, piece) for piece in support])
    seldom = np.isin(ids, [token(kind, piece) for piece in rare])
    found: dict[tuple[int, ...], Logits] = {}

    def logits(tokens: Sequence[int]) -> Logits:
        context = tuple(tokens[-order:])
        if context not in found:
            generator = np.random.default_rng((seed, len(context), *context))
            row = np.full(own.size, -40.0)
            row[ids] = generator.choice((0.5, 2.0, 6.0)) * generator.standard_normal(len(ids)) - 2.5 * seldom
            found[context] = row
        return found[context]

    return Model(own, logits, **limits)


def scripted(
    kind: str, prompt: Sequence[int], says: Callable[[bytes], tuple[bytes | str | int, float]], **limits: int
) -> Model:
    """A model that says one token after some bytes: ``says(bytes so far)`` -> (piece or id, its probability).

    The rest of the mass is spread evenly, falling a little with the id. The bytes are what the model has read after its
    prompt, special tokens by their names.
    """
    own = vocabulary(kind)
    falling = -1e-3 * np.arange(own.size)

    def logits(tokens: Sequence[int]) -> Logits:
        said, probability = says(own.decode_bytes(tokens[len(prompt) :]))
        row = np.full(own.size, np.log((1 - probability) / (own.size - 1))) + falling
        row[said if isinstance(said, int) else token(kind, said)] = np.log(probability)
        return row

    return Model(own, logits, **limits)


# -------------------------------------------------------------------------------------------------------------- driver


class TableSeq:
    """A sequence that counts what a cache would have to compute."""

    def __init__(self, model: str, tokens: Sequence[int]) -> None:
        self.model, self.tokens, self.computed = model, list(tokens), 0

    def fork(self) -> TableSeq:
        twin = TableSeq(self.model, self.tokens)
        twin.computed = self.computed
        return twin

    def rewind(self, length: int) -> None:
        assert 0 <= length <= len(self.tokens), f"rewind {len(self.tokens)} tokens to {length}"
        del self.tokens[length:]
        self.computed = min(self.computed, length)

    def close(self) -> None:
        pass


@dataclass
class Work:
    """What a model did in each forward pass: tokens read, those of them read before, and places read at."""

    read: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    reads: list[int] = field(default_factory=list)

    @property
    def passes(self) -> int:
        return len(self.read)


@dataclass
class Tables:
    """The ``Context`` of methods that run on tables."""

    models: Mapping[str, Model]
    out_of_time: Callable[[], bool] = lambda: False
    work: dict[str, Work] = field(default_factory=dict)
    sequences: list[TableSeq] = field(default_factory=list)

    def open(self, model: str, tokens: Sequence[int]) -> TableSeq:
        self.sequences.append(TableSeq(model, tokens))
        return self.sequences[-1]

    def vocabulary(self, model: str) -> Vocabulary:
        return self.models[model].vocabulary

    def limit(self, model: str) -> int:
        return self.models[model].limit

    def answer(self, op: Extend) -> list[Read]:
        seq, model = op.seq, self.models[op.seq.model]
        assert isinstance(seq, TableSeq)
        seq.tokens.extend(op.tokens)
        total, wanted = len(seq.tokens), len(op.picks)
        assert 1 <= wanted <= total <= model.limit, (wanted, total, model.limit)
        work = self.work.setdefault(seq.model, Work())
        work.read.append(total - min(seq.computed, total - wanted))
        work.again.append(max(0, seq.computed - (total - wanted)))
        work.reads.append(wanted)
        seq.computed = total
        return [read(model, seq.tokens[: total - wanted + 1 + i], pick, op.top) for i, pick in enumerate(op.picks)]

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a method to its end."""
        value: Any = None
        try:
            while True:
                op = coroutine.send(value)
                assert isinstance(op, Extend), op
                value = self.answer(op)
        except StopIteration as stop:
            return stop.value


@dataclass(frozen=True)
class Case:
    """A nudged request over two models, "base" and "nudger"."""

    base: Model
    nudger: Model
    policy: Nudged
    base_prompt: tuple[int, ...]
    nudger_prompt: tuple[int, ...]
    stopping: Stopping = field(default_factory=Stopping)
    filters: Filters = field(default_factory=Filters)
    seed: int = 0
    stops: tuple[str, ...] = ()
    same_vocabulary: bool = False
    top: int = 0

    @property
    def models(self) -> dict[str, Model]:
        return {"base": self.base, "nudger": self.nudger}

    @property
    def request(self) -> Request:
        return Request(
            model="base",
            prompt=(ChatMessage("user", "as the plan renders it"),),
            sampling=Sampling(seed=self.seed),
            stopping=self.stopping,
            policy=self.policy,
            top_logprobs=self.top,
        )

    def run(
        self, emit: Callable[[Chunk], None] | None = None, out_of_time: Callable[[], bool] = lambda: False
    ) -> tuple[Candidate, Tables]:
        """Through the composition root, as the engine does it."""
        context = Tables(self.models, out_of_time)
        plan = Prepared(
            self.request,
            {"base": tuple(self.base_prompt), "nudger": tuple(self.nudger_prompt)},
            Drawing(self.filters, self.filters, Key(self.seed)),
            self.stops,
            frozenset({"base", "nudger"} if self.same_vocabulary else {"base"}),
        )
        outcome = context.drive(write(context, plan, emit))
        return outcome.candidates[outcome.selected], context
