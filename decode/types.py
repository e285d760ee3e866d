"""Plain data of a request and of its answer. Nothing here imports torch or the engine.

Field names are the proto's (``server/proto/trimtab/v1/decoding.proto``), so that an error names the same path in the
library and over gRPC. All logarithms are natural, all times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

__all__ = [
    "Autoregressive",
    "Base",
    "Branching",
    "Candidate",
    "ChatMessage",
    "Chunk",
    "Completed",
    "Draw",
    "Entropy",
    "Event",
    "FinishReason",
    "Limits",
    "ModelInfo",
    "ModelUsage",
    "Nudged",
    "Policy",
    "Progress",
    "Prompt",
    "Request",
    "Result",
    "Sampling",
    "Search",
    "Single",
    "Started",
    "Stopping",
    "Token",
    "TokenDraw",
    "TopLogprob",
    "TopProb",
    "Trigger",
    "Usage",
]

# ---------------------------------------------------------------------------------------------------------- request


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


# Text is given to the model as it is; chat messages go through the model's template; integers are token ids.
Prompt = str | Sequence[int] | Sequence[ChatMessage] | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn from a distribution. ``None`` takes the model's own default.

    Attributes:
        temperature: in [0, 10]; 0 is greedy. Without a default in the model's generation config it is 1.
        top_k: keep the k most likely tokens, >= 1.
        top_p: keep the smallest set of mass >= top_p, in (0, 1].
        min_p: keep tokens of at least min_p times the top probability, in [0, 1).
        repetition_penalty: in (0, 10]; divides positive and multiplies negative logits of tokens already present.
        logit_bias: token id -> finite number added to its logit; -inf bans it.
        seed: unsigned 32 bits; None draws one, which the answer reports.

    Filters apply in the order of Hugging Face transformers: penalty, bias, temperature, top-k, top-p, min-p.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When an answer ends. Counts are tokens written, whoever wrote them."""

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    time_budget: float | None = None  # seconds from admission; the answer so far is returned


@dataclass(frozen=True, slots=True)
class Entropy:
    """Fires where the base's entropy (nats) is above a bound."""

    above: float


@dataclass(frozen=True, slots=True)
class TopProb:
    """Fires where the base's top probability is below a bound (the rule of the nudging paper, with 0.3 or 0.4)."""

    below: float


@dataclass(frozen=True, slots=True)
class Branching:
    """Fires where the base's branching factor exp(entropy) is above a bound."""

    above: float


Trigger = Entropy | TopProb | Branching


@dataclass(frozen=True, slots=True)
class Base:
    """Each token comes from the requested model alone."""


@dataclass(frozen=True, slots=True)
class Nudged:
    """A small aligned model writes where the base is unsure (Fei et al., "Nudging", ACL 2025).

    Attributes:
        nudger: name of the aligned model. Its vocabulary may differ from the base's.
        when: the trigger, read from the base's distribution at temperature 1; None takes the measured default.
        max_span_tokens: hand back to the base for at least one token after this many nudger tokens in a row; None
            lets the nudger write for as long as the base stays unsure.
    """

    nudger: str
    when: Trigger | None = None
    max_span_tokens: int | None = None


Policy = Base | Nudged


@dataclass(frozen=True, slots=True)
class Autoregressive:
    """One token per forward pass of the model."""


Draw = Autoregressive


@dataclass(frozen=True, slots=True)
class Single:
    """One candidate, which is the answer."""


Search = Single


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that determines an answer: the prompt and the three axes (policy, draw, search)."""

    model: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    stopping: Stopping = Stopping()
    policy: Policy = Base()
    draw: Draw = Autoregressive()
    search: Search = Single()
    top_logprobs: int = 0  # [0, 20] most likely tokens reported beside each token


# ----------------------------------------------------------------------------------------------------------- answer


class FinishReason(StrEnum):
    EOS = "eos"
    STOP = "stop"  # a stop string or a stop token id
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT_FULL = "context_full"
    TIME_BUDGET = "time_budget"
    REPETITION = "repetition"  # a loop guard of the nudging policy ended the answer


class TokenDraw(StrEnum):
    PLAIN = "plain"
    ACCEPTED = "accepted"
    CORRECTED = "corrected"
    BONUS = "bonus"
    FORCED = "forced"


@dataclass(frozen=True, slots=True)
class TopLogprob:
    id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One written token and how it came about.

    Attributes:
        id: token id in the vocabulary of ``author``.
        piece: the token's raw bytes; one token may be half a character.
        author: name of the model that wrote it.
        draw: how it was drawn.
        logprob: ln p under the author, temperature 1, no penalties, no filters.
        entropy: nats, of the same distribution.
        top_prob: its largest probability.
        top: the most likely tokens, if asked for.
    """

    id: int
    piece: bytes
    author: str
    draw: TokenDraw = TokenDraw.PLAIN
    logprob: float | None = None
    entropy: float | None = None
    top_prob: float | None = None
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One result. ``text`` is the detokenised answer without the EOS token, and without the stop unless asked."""

    index: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    stop_match: str | None = None
    rewards: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def sum_logprob(self) -> float:
        return sum(t.logprob for t in self.tokens if t.logprob is not None)


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """Work of one model for one request: forward passes it took part in, tokens it read and wrote."""

    model: str
    forward_passes: int = 0
    tokens_read: int = 0
    tokens_written: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a request cost. ``generated_tokens`` includes discarded work; ``returned_tokens`` does not."""

    prompt_tokens: int
    cached_prompt_tokens: int = 0
    returned_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    nudged_tokens: int = 0
    models: tuple[ModelUsage, ...] = ()
    queue_time: float = 0.0
    time_to_first_token: float = 0.0
    total_time: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer to a request. ``models`` lists the authors, the requested model first."""

    model: str
    models: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    usage: Usage
    seed: int
    selected: int = 0
    reproducible: bool = True

    @property
    def chosen(self) -> Candidate:
        return self.candidates[self.selected]

    @property
    def text(self) -> str:
        return self.chosen.text

    @property
    def tokens(self) -> tuple[Token, ...]:
        return self.chosen.tokens

    @property
    def finish_reason(self) -> FinishReason:
        return self.chosen.finish_reason

    @property
    def mean_entropy(self) -> float:
        """Mean entropy (nats) over the written tokens of the chosen candidate; 0 if there are none."""
        entropies = [t.entropy for t in self.tokens if t.entropy is not None]
        return sum(entropies) / len(entropies) if entropies else 0.0

    @property
    def branching_factor(self) -> float:
        """exp of the mean entropy over the written tokens (Yang and Holtzman, 2025)."""
        from math import exp

        return exp(self.mean_entropy)


# ----------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a stream: the values the request resolved to."""

    generation_id: str
    models: tuple[str, ...]
    prompt_tokens: int
    seed: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Committed output of one candidate: text that will not be retracted, and the tokens behind it.

    ``text`` may lag behind ``tokens`` while a character or a possible stop string is incomplete; over a whole stream
    the texts concatenate to the answer's text and the tokens to its tokens.
    """

    candidate: int
    text: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Sent by searches that cannot commit text yet."""

    candidates_running: int
    candidates_done: int
    generated_tokens: int
    best_reward: float | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """Last event of a stream: the whole answer."""

    result: Result


Event = Started | Chunk | Progress | Completed


# ------------------------------------------------------------------------------------------------------------- info


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on one request and on the engine's queue."""

    max_new_tokens: int = 4096
    max_n: int = 64
    max_top_logprobs: int = 20
    max_queue: int = 256
    max_stop: int = 8
    max_stop_bytes: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine says of a model it serves."""

    name: str
    role: Literal["base", "aligned", "draft"]
    source: str
    architecture: str
    dtype: str
    device: str
    max_context_tokens: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    nudge_models: tuple[str, ...] = ()
    ready: bool = True
