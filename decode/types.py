"""Plain data of a request and of its answer. Nothing here imports torch or the engine.

Field names are the proto's (``server/proto/trimtab/v1/decoding.proto``), so that an error names the same path in the
library and over gRPC. All logarithms are natural, all times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from trimtab.decode.frozen import FrozenDict, freeze_fields

__all__ = [
    "MIN_HELD_TOKENS",
    "Acceptance",
    "AnyObjective",
    "Autoregressive",
    "Base",
    "BestOfN",
    "Branching",
    "Candidate",
    "ChatMessage",
    "Choose",
    "Chunk",
    "Combine",
    "Completed",
    "Confidence",
    "Draw",
    "Entropy",
    "Event",
    "Evolution",
    "FinishReason",
    "Fixed",
    "Length",
    "Limits",
    "Logprob",
    "Mixture",
    "ModelInfo",
    "ModelUsage",
    "Nudged",
    "Objective",
    "Policy",
    "Progress",
    "Prompt",
    "PromptLookup",
    "Refine",
    "RejectSegments",
    "Request",
    "Result",
    "RewardInfo",
    "RewardTerm",
    "Sampling",
    "Scored",
    "Search",
    "Segments",
    "Single",
    "Speculative",
    "Started",
    "Stopping",
    "Token",
    "TokenDraw",
    "TokenReward",
    "TopLogprob",
    "TopProb",
    "Trigger",
    "Usage",
    "Weighted",
]

# ---------------------------------------------------------------------------------------------------------- request


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn of a chat; ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


# Text and token ids are given to every model that works on the answer as they are; chat messages go through the
# template of each. Of a chat that ends with a message of the assistant's, the answer is how that goes on.
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
    logit_bias: Mapping[int, float] = field(default_factory=FrozenDict)
    seed: int | None = None

    def __post_init__(self) -> None:
        freeze_fields(self, "logit_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When an answer ends. Counts are tokens written, whoever wrote them.

    Attributes:
        max_new_tokens: most tokens of an answer.
        min_new_tokens: before so many no token ends the answer, and a stop string is ordinary text.
        stop: texts that end the answer. One that is the name of a special token (``<|im_end|>``) of a model that writes
            stands for that token, too, which has no text in an answer. One that holds such a name beside other text
            can't match and is refused.
        stop_token_ids: ids that end the answer, of the requested model and of models that share its ids.
        eos_token_ids: the requested model's own ends in place of those it comes with; empty leaves it these. Other
            models that write keep theirs.
        ignore_eos: no model's own end ends the answer.
        include_stop: whether the text keeps the stop string. A special token has no text in any case.
        time_budget: seconds from admission; then the answer so far is returned.
    """

    max_new_tokens: int = 256
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    time_budget: float | None = None
    eos_token_ids: tuple[int, ...] = ()


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


@dataclass(frozen=True, slots=True)
class Weighted:
    """A model of a mixture and its weight, which may be negative."""

    model: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Mixture:
    """The log-linear mixture ln p = ln p_base + sum of weight x ln p_expert, normalised.

    Proxy tuning (Liu et al., 2024): a small tuned model with weight 1 and its untuned twin with -1. Contrastive
    decoding (Li et al., 2023): a small model with a negative weight, and ``plausibility``. Autoregressive reward models
    (GenARM; Xu et al., 2025): one or several with weights 1 / beta. All models share one vocabulary.

    Attributes:
        experts: one or several models.
        plausibility: in [0, 1): only tokens with p_base >= plausibility x max p_base can be drawn; None keeps all.
            Where bans leave none of these, all others can.
    """

    experts: tuple[Weighted, ...]
    plausibility: float | None = None


@dataclass(frozen=True, slots=True)
class TokenReward:
    """Each token is chosen among the base's most likely ones by ln p + weight x reward (ARGS; Khanov et al., 2024).

    Attributes:
        reward: name of a prefix or token reward; it rates the answer with each token appended.
        weight: of the reward against ln p.
        width: tokens rated per position, in [2, 64].
    """

    reward: str
    weight: float = 1.0
    width: int = 10


Policy = Base | Nudged | Mixture | TokenReward


@dataclass(frozen=True, slots=True)
class Autoregressive:
    """One token per forward pass of the model."""


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Drafts by copying what followed the last n-gram of the text where it occurred before (Saxena, 2023).

    Attributes:
        max_ngram: longest n-gram looked for; shorter ones are tried after it.
    """

    max_ngram: int = 3


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always drafts this many tokens, in [1, 32]."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Confidence:
    """Stops drafting after a token whose top probability under the draft was below a bound (the rule of transformers).

    Attributes:
        top_prob_below: in (0, 1).
        max_tokens: in [1, 32].
    """

    top_prob_below: float = 0.4
    max_tokens: int = 16


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Stops drafting where some drafted token is probably rejected (SpecDec++; Huang et al., 2024, theorem 3.1).

    The probability comes from the draft's trained acceptance head.

    Attributes:
        max_tokens: in [1, 32].
        stop: the bound, in (0, 1); None takes the theorem's (c2 + D) / (c1 + c2 + D) from costs measured at the
            current batch.
    """

    max_tokens: int = 16
    stop: float | None = None


Length = Fixed | Confidence | Acceptance


@dataclass(frozen=True, slots=True)
class Speculative:
    """A draft proposes several tokens, which the policy's own distribution accepts or rejects in one forward pass.

    The distribution of the answer does not change (Leviathan et al., 2023; Chen et al., 2023).

    Attributes:
        draft: name of a draft model, or ``PromptLookup``.
        length: when to stop drafting; None takes ``Acceptance`` where the draft has a trained head, else
            ``Confidence``.
        coupled: draw as plain decoding would, token for token, and accept what agrees. Accepts somewhat fewer tokens.
        copying: beside a draft model: copy in its place where the text's last n-gram occurred before and such copies
            have mostly stood. ``length = Fixed(k)`` holds for copies, too; otherwise theirs adapt.
    """

    draft: str | PromptLookup
    length: Length | None = None
    coupled: bool = False
    copying: PromptLookup | None = None


Draw = Autoregressive | Speculative


@dataclass(frozen=True, slots=True)
class RewardTerm:
    """A reward by name, and its weight."""

    reward: str
    weight: float = 1.0


class Combine(StrEnum):
    """How the terms of an objective become one number."""

    SUM = "sum"  # weighted sum
    LOG_SIGMOID = "log_sigmoid"  # weighted sum of ln sigmoid(reward, centred by its calibration): a soft AND
    MIN = "min"  # of weight x reward
    CONSERVATIVE = "conservative"  # weighted mean minus the spread: against over-optimisation


@dataclass(frozen=True, slots=True)
class Objective:
    """What a search maximises. Wherever one is wanted, the name of a reward will do.

    Attributes:
        terms: one or several rewards.
        combine: how they are put together.
        spread: factor of the standard deviation for ``Combine.CONSERVATIVE``.
    """

    terms: tuple[RewardTerm, ...]
    combine: Combine = Combine.SUM
    spread: float = 1.0

    @classmethod
    def of(cls, value: str | Mapping[str, float] | Objective) -> Objective:
        """From the name of a reward, or from names and weights."""
        if isinstance(value, Objective):
            return value
        if isinstance(value, str):
            return cls((RewardTerm(value),))
        return cls(tuple(RewardTerm(name, weight) for name, weight in value.items()))


AnyObjective = str | Mapping[str, float] | Objective


class Choose(StrEnum):
    """How ``BestOfN`` takes one of its candidates."""

    BEST = "best"  # the largest reward
    SOFT = "soft"  # drawn with probability proportional to exp(reward / temperature)
    WORST = "worst"  # the smallest reward, for red-teaming
    MAJORITY = "majority"  # the conclusion given most often
    WEIGHTED = "weighted"  # the conclusion whose answers have the largest sum of rewards
    CONSENSUS = "consensus"  # minimum Bayes risk: the answer most similar to the others
    TOURNAMENT = "tournament"  # most pairwise wins, by a pairwise reward


@dataclass(frozen=True, slots=True)
class Single:
    """One candidate, which is the answer."""


# Tokens that each answer under way has room for before early rejection by memory rates it, and between two ratings.
MIN_HELD_TOKENS = 8


@dataclass(frozen=True, slots=True)
class BestOfN:
    """Writes n candidates side by side and takes one.

    Attributes:
        n: candidates, in [1, limits.max_n]; more than one needs sampling, since greedy ones are all equal. None, with
            ``max_held_tokens`` only: as many as it has room for, at ``MIN_HELD_TOKENS`` each.
        objective: what is good; not needed by ``MAJORITY`` and ``CONSENSUS``.
        choose: how one is taken.
        temperature: of ``SOFT``, > 0.
        reject_fraction: in (0, 1): at each check this share of the unfinished candidates, the worst by their partial
            answers, is dropped (speculative rejection; Sun et al., 2024). Needs one of the next two, and rewards that
            can rate a beginning.
        check_every_tokens: tokens of each candidate between two checks.
        max_held_tokens: a check comes when the answers under way hold so many tokens together, at least
            ``MIN_HELD_TOKENS`` for each of n, and drops so many that the others have room for as many more: rejection
            by memory pressure, at the same places whatever else runs.
        threshold: candidates below this reward are not acceptable; if none is above, the answer is an abstention.
        extract: what ``MAJORITY`` and ``WEIGHTED`` count. ``auto``: a choice, a number or words, by built-in rules;
            ``letter`` of a choice; ``number``; ``text``: all words; ``math``: values that math-verify calls equal
            (extra ``math``); or an extractor that a package adds (see ``trimtab.decode.searches.extractors``).
    """

    n: int | None = None
    objective: AnyObjective | None = None
    choose: Choose = Choose.BEST
    temperature: float = 1.0
    reject_fraction: float | None = None
    check_every_tokens: int | None = None
    threshold: float | None = None
    max_held_tokens: int | None = None
    extract: str = "auto"

    @property
    def candidates(self) -> int:
        """``n``, or how many candidates there is room for."""
        if self.n is not None:
            return self.n
        return max(1, (self.max_held_tokens or 0) // MIN_HELD_TOKENS)


class Logprob(StrEnum):
    """How the log-probabilities of an answer's tokens become one number."""

    SUM = "sum"  # ln p of the answer, as DeAL has it: longer answers have less
    MEAN = "mean"  # per token: answers of any length on equal terms


@dataclass(frozen=True, slots=True)
class Segments:
    """Look-ahead search over segments (DeAL; Huang et al., 2024); beams or trees over steps (Beeching et al., 2024).

    Each round, every beam is continued ``samples_per_beam`` times by one segment; the continuations are looked ahead,
    rated by reward_weight x reward + logprob_weight x log-probability, and the best ``beams`` go on. More than one
    continuation in all needs sampling, since greedy ones are all equal.

    Attributes:
        objective: what is good; its rewards must be able to rate a beginning.
        beams: kept after each round.
        samples_per_beam: continuations of each.
        max_tokens: a segment ends after so many tokens,
        delimiter: or after this text,
        entropy_above: or before a token of larger entropy (nats) than this, whichever comes first.
        lookahead: tokens written beyond the segment for its rating only.
        reward_weight, logprob_weight: of the two parts of a score.
        diverse: every beam is a tree of its own and keeps its own best continuation (DVTS).
        logprob: which log-probability of the answer so far, without what was looked ahead.
    """

    objective: AnyObjective
    beams: int = 4
    samples_per_beam: int = 4
    max_tokens: int = 32
    delimiter: str | None = None
    entropy_above: float | None = None
    lookahead: int = 0
    reward_weight: float = 1.0
    logprob_weight: float = 0.0
    diverse: bool = False
    logprob: Logprob = Logprob.SUM


@dataclass(frozen=True, slots=True)
class RejectSegments:
    """Draws segment by segment and redraws those whose answer so far is rated too low (CARDS; Li et al., 2024).

    A segment ends before a token whose entropy is above ``entropy_above``. It is accepted with probability
    min(1, exp((reward - bar) / beta)); the bar rises linearly from the prompt's own rating to ``target``. More than one
    try needs sampling, since greedy ones are all equal.

    Attributes:
        objective: what is good; its rewards must be able to rate a beginning.
        target: the reward that a whole answer should have.
        beta: tolerance; 0 accepts exactly what reaches the bar.
        entropy_above: nats.
        min_tokens, max_tokens: bounds on a segment.
        max_tries: draws of one segment; then the best of them is taken.
        start: share of ``target`` in the bar of the first segment, in [0, 1].
        target_tokens: where the bar reaches ``target``; 128 in the published code, whatever the answer's limit. 0: at
            ``stopping.max_new_tokens``.
    """

    objective: AnyObjective
    target: float
    beta: float = 0.7
    entropy_above: float = 3.0
    min_tokens: int = 4
    max_tokens: int = 64
    max_tries: int = 20
    start: float = 0.5
    target_tokens: int = 128


@dataclass(frozen=True, slots=True)
class Evolution:
    """Evolves instructions and answers together (DARWIN; Hung et al., 2024).

    Attributes:
        objective: what is good; its rewards must be able to rate a beginning.
        population: answers written side by side.
        survivors: best ones that replace the others at the end of each period.
        period_tokens: tokens between replacements.
        rounds: of mutating the instruction.
        mutator: model that rewrites the instruction; None takes the requested one.
    """

    objective: AnyObjective
    population: int = 8
    survivors: int = 3
    period_tokens: int = 40
    rounds: int = 2
    mutator: str | None = None


@dataclass(frozen=True, slots=True)
class Refine:
    """Answers, criticises its answer, revises it, and keeps the best under the objective.

    Attributes:
        objective: what is good.
        rounds: of critique and revision.
        critic: model that criticises; None takes the requested one.
    """

    objective: AnyObjective
    rounds: int = 2
    critic: str | None = None


Search = Single | BestOfN | Segments | RejectSegments | Evolution | Refine


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that determines an answer: the prompt and the three axes (policy, draw, search).

    Attributes:
        model: that is asked, by name.
        prompt: see ``Prompt``.
        sampling, stopping, policy, draw, search: as they say.
        references: answers that rewards may compare with.
        top_logprobs: in [0, 20], how many of the most likely tokens are reported beside each token.
        prompt_cache: whether what the engine still holds of earlier requests may be used. Numbers that were computed in
            other batches differ by rounding, and a seeded answer in bfloat16 can differ with them; without the cache a
            prompt is always computed anew. Candidates of one request share their prompt in any case.
    """

    model: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    stopping: Stopping = Stopping()
    policy: Policy = Base()
    draw: Draw = Autoregressive()
    search: Search = Single()
    references: tuple[str, ...] = ()
    top_logprobs: int = 0
    prompt_cache: bool = True


# ----------------------------------------------------------------------------------------------------------- answer


class FinishReason(StrEnum):
    EOS = "eos"
    STOP = "stop"  # a stop string or a stop token id
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT_FULL = "context_full"
    TIME_BUDGET = "time_budget"
    REPETITION = "repetition"  # a loop guard of the nudging policy ended the answer
    PRUNED = "pruned"  # a search dropped the candidate before its end


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

    Its figures are of the distribution that it was drawn from as it is before all that the request asks of draws: at
    temperature 1, without penalty, bias, bans, top-k, top-p and min-p. Whose distribution that is, the policy says:

    * ``Base``, ``TokenReward``: the requested model's; of ``TokenReward`` before rewards count.
    * ``Nudged``: that of the author, base or nudger, after its own prompt and the answer in its own spelling.
    * ``Mixture``: the mixture's, normalised, without the tokens that ``plausibility`` leaves out. It is no single
      model's; the author is the requested model, whose ids and sequence they are.

    Under speculation it is the target's, never the draft's. Of scores it is the model's that was asked.

    Attributes:
        id: token id in the vocabulary of ``author``.
        piece: the token's raw bytes; one token may be half a character.
        author: name of the model that wrote it.
        draw: how it was drawn.
        logprob: ln p of the token.
        entropy: of the distribution, nats.
        top_prob: its largest probability.
        top: its most likely tokens, if asked for.
        reward: of the answer up to this token, under a policy that rates tokens.
    """

    id: int
    piece: bytes
    author: str
    draw: TokenDraw = TokenDraw.PLAIN
    logprob: float | None = None
    entropy: float | None = None
    top_prob: float | None = None
    top: tuple[TopLogprob, ...] = ()
    reward: float | None = None  # of a policy that rates tokens


@dataclass(frozen=True, slots=True)
class Candidate:
    """One result. ``text`` is the detokenised answer without the EOS token, and without the stop unless asked."""

    index: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: FinishReason
    stop_match: str | None = None
    rewards: Mapping[str, float] = field(default_factory=FrozenDict)  # by name, and "objective"

    def __post_init__(self) -> None:
        freeze_fields(self, "rewards")

    @property
    def sum_logprob(self) -> float:
        """Sum of ``Token.logprob`` of all tokens, those that ended the answer included."""
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
    discarded_tokens: int = 0  # drafted and not accepted
    nudged_tokens: int = 0
    reward_calls: int = 0
    models: tuple[ModelUsage, ...] = ()
    queue_time: float = 0.0
    time_to_first_token: float = 0.0
    total_time: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The answer to a request.

    Attributes:
        model: that was asked.
        models: the authors, the requested model first.
        candidates: what the search wrote, pruned ones too.
        usage: what it cost.
        seed: that was used, drawn by the engine if the request names none.
        selected: place of the answer among the candidates.
        reproducible: whether the same request with the same seed gives the same tokens, whatever else runs, *up to
            rounding*: numbers of the same tokens differ in their last bits with the batch they are computed in and with
            what is cached, and where two tokens are nearly level, most of all in bfloat16, the draw can go the other
            way. ``Request.prompt_cache = False`` leaves only the batch.
        abstained: no candidate reached the threshold; the selected one is the best of them.
    """

    model: str
    models: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    usage: Usage
    seed: int
    selected: int = 0
    reproducible: bool = True
    abstained: bool = False

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
        """Mean ``Token.entropy`` (nats) over the tokens of the chosen candidate; 0 if there are none."""
        entropies = [t.entropy for t in self.tokens if t.entropy is not None]
        return sum(entropies) / len(entropies) if entropies else 0.0

    @property
    def exp_mean_entropy(self) -> float:
        """exp of the mean entropy over the chosen candidate's tokens: over how many choices it was spread at a token.

        Not the branching factor of Yang and Holtzman (2025), which is estimated from many samples of one prompt.
        """
        from math import exp

        return exp(self.mean_entropy)


@dataclass(frozen=True, slots=True)
class Scored:
    """The score of a given answer.

    Attributes:
        value: the reward, or the sum of ln p of the tokens.
        token_count: tokens of the answer, where a model scored it; of an empty answer the one that ends it.
        tokens: these, with their log-probabilities.
    """

    value: float
    token_count: int = 0
    tokens: tuple[Token, ...] = ()


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
class RewardInfo:
    """What an engine says of a reward it serves.

    Attributes:
        kind: ``sequence`` rates whole answers only, ``prefix`` also beginnings of answers, ``token`` is a prefix reward
            that is cheap enough to rate every candidate token.
        models: models of the engine that it runs on.
        pairwise: whether it compares two answers instead of rating one.
        needs_reference: whether it wants a reference answer with each prompt.
    """

    name: str
    kind: Literal["sequence", "prefix", "token"]
    description: str = ""
    models: tuple[str, ...] = ()
    pairwise: bool = False
    needs_reference: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What an engine says of a model it serves.

    Attributes:
        name: under which requests ask for it.
        role: what it was configured for.
        source: as configured: a bundled name, a hub id or a folder.
        architecture, dtype, device: as it was loaded.
        max_context_tokens: of prompt and answer together.
        vocab_size: width of its logits.
        eos_token_ids: that end its answers.
        nudge_models, draft_models: models that ``Nudged`` and ``Speculative`` may name for it.
    """

    name: str
    role: Literal["base", "aligned", "draft", "reward"]
    source: str
    architecture: str
    dtype: str
    device: str
    max_context_tokens: int
    vocab_size: int  # token ids in use; of models that share a vocabulary, the narrowest one's
    eos_token_ids: tuple[int, ...]
    nudge_models: tuple[str, ...] = ()
    draft_models: tuple[str, ...] = ()
