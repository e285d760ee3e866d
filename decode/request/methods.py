"""The three axes: policies, draws and searches."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trimtab.decode.request.objective import AnyObjective

__all__ = [
    "MIN_HELD_TOKENS",
    "Acceptance",
    "Autoregressive",
    "Base",
    "BestOfN",
    "Branching",
    "Choose",
    "Confidence",
    "Draw",
    "Entropy",
    "Evolution",
    "Fixed",
    "Length",
    "Logprob",
    "Mixture",
    "Nudged",
    "Policy",
    "PromptLookup",
    "Refine",
    "RejectSegments",
    "Search",
    "Segments",
    "Single",
    "Speculative",
    "TokenReward",
    "TopProb",
    "Trigger",
    "Weighted",
]


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
            (extra ``math``); or an extractor that a package adds (see ``trimtab.decode.methods.searches.extractors``).
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
