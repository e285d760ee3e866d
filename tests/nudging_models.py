"""Vocabularies of words in two families, table models over them, and nudged requests of these models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import transformers as hf
from table_engine import Tables
from table_models import Model, Row
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trimtab.decode.methods.build import Prepared, write
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.request.events import Chunk
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Candidate
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.decode.text.vocabulary import Vocabulary
from trimtab.kernels.types import Filters, Key

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
    found: dict[tuple[int, ...], Row] = {}

    def logits(tokens: Sequence[int]) -> Row:
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

    def logits(tokens: Sequence[int]) -> Row:
        said, probability = says(own.decode_bytes(tokens[len(prompt) :]))
        row = np.full(own.size, np.log((1 - probability) / (own.size - 1))) + falling
        row[said if isinstance(said, int) else token(kind, said)] = np.log(probability)
        return row

    return Model(own, logits, **limits)


# --------------------------------------------------------------------------------------------------------------- cases


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
        context = Tables(self.models, out_of_time=out_of_time, unread=True)
        plan = Prepared(
            self.request,
            {"base": tuple(self.base_prompt), "nudger": tuple(self.nudger_prompt)},
            Drawing(self.filters, self.filters, Key(self.seed)),
            self.stops,
            frozenset({"base", "nudger"} if self.same_vocabulary else {"base"}),
        )
        outcome = context.drive(write(context, plan, emit))
        return outcome.candidates[outcome.selected], context
