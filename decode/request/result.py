"""The answer to a request, how it came about, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import exp
from typing import TYPE_CHECKING, Any

from trimtab.decode.frozen import FrozenDict, freeze_fields

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "Candidate",
    "FinishReason",
    "ModelUsage",
    "Result",
    "Scored",
    "Token",
    "TokenDraw",
    "TokenReason",
    "TopLogprob",
    "Usage",
]


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


class TokenReason(StrEnum):
    """Why its author wrote a token, where two models take turns (``Nudged``).

    Where several hold, the base's is the first of ``SURE``, ``WITHIN_WORD``, ``LOOPING``, ``SPAN_SPENT``, ``AGREED``,
    and the nudger's the first of ``NUDGER_ENDS``, ``WITHIN_WORD``, ``BASE_ENDS``, ``UNSURE``, ``LOOPING``.
    """

    SURE = "sure"  # base: the trigger does not fire
    AGREED = "agreed"  # base: it is unsure, but would go on after the nudger's word as the nudger would
    SPAN_SPENT = "span_spent"  # base: it is unsure, but the nudger has written max_span_tokens in a row
    UNSURE = "unsure"  # nudger: the trigger fires
    BASE_ENDS = "base_ends"  # nudger: the base would end the answer here, which it isn't trusted to do alone
    NUDGER_ENDS = "nudger_ends"  # nudger: after a word of its own it ends the answer, without asking the base
    WITHIN_WORD = "within_word"  # either: it goes on with its own word; authors change at words only
    LOOPING = "looping"  # either: the answer repeats itself, so the loop guard passes it to the other model


@dataclass(frozen=True, slots=True)
class TopLogprob:
    id: int
    piece: bytes
    logprob: float


@dataclass(frozen=True, slots=True, repr=False)
class Token:
    """One written token and how it came about.

    Its figures are of the distribution that it was drawn from as it is before all that the request asks of draws: at
    temperature 1, without penalty, bias, bans, top-k, top-p and min-p. Whose distribution that is, the policy says:

    * ``Base``, ``TokenReward``: the requested model's; of ``TokenReward`` before rewards count.
    * ``Nudged``: that of the author, base or nudger, after its own prompt and the answer in its own spelling.
    * ``Mixture``, ``Guided``: the mixture's, normalised, without the tokens that ``plausibility`` leaves out. It is no
      single model's; the author is the requested model, whose ids and sequence they are.

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
        reason: why ``author`` wrote it, under a policy where models take turns.
        base_entropy: nats, of the requested model's distribution at this place, under such a policy: what the trigger
            read. It is taken, as ``entropy`` is, after that model's own prompt and the answer up to here in its own
            spelling; of a token that the requested model wrote it is ``entropy`` itself. None where that model was not
            asked: within the nudger's words, and where the nudger ends the answer after a word of its own.
        base_top_prob: the largest probability of the same distribution, None at the same places.
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
    reason: TokenReason | None = None
    base_entropy: float | None = None
    base_top_prob: float | None = None

    def __repr__(self) -> str:
        known = {"logprob": self.logprob, "entropy": self.entropy, "reward": self.reward}
        figures = "".join(f", {name} {value:.4g}" for name, value in known.items() if value is not None)
        why = "" if self.reason is None else f", {self.reason}"
        return f"Token({_short(self.piece)}, {self.id} by {_cut(self.author)}, {self.draw}{why}{figures})"


@dataclass(frozen=True, slots=True, repr=False)
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

    def __repr__(self) -> str:
        shown = sorted(self.rewards, key=lambda name: name != "objective")[:_REWARDS_SHOWN]
        rewards = "".join(f", {_cut(name)} {value:.4g}" for name, value in self.rewards.items() if name in shown)
        more = len(self.rewards) - len(shown)
        rewards += f", {more} rewards more" if more else ""
        return f"Candidate({self.index}, {_short(self.text)}, {len(self.tokens)} tokens, {self.finish_reason}{rewards})"


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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
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

        return exp(self.mean_entropy)

    def records(self, every: bool = False) -> list[dict[str, Any]]:
        """One plain dict for each token, for tables: its candidate, place, text and figures.

        Args:
            every: of all candidates, not of the chosen one alone.
        """
        answer = answer_of(self)
        return [
            _record(candidate, position)
            for candidate in (self.candidates if every else (answer,) if answer else ())
            for position in range(len(candidate.tokens))
        ]

    def to_pandas(self, every: bool = False) -> DataFrame:
        """``records`` as a data frame, which has all columns even where there is no token.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas (or use records())") from error
        return pandas.DataFrame.from_records(self.records(every), columns=list(_COLUMNS))

    def __repr__(self) -> str:
        if answer_of(self) is None:
            return f"Result(no answer, seed {self.seed})"
        written = Counter(token.author for token in self.tokens)
        by = ", ".join(f"{written[name]} by {name}" for name in self.models if written[name])
        many = f", chosen of {len(self.candidates)}" if len(self.candidates) > 1 else ""
        return f"Result({_short(self.text)}, {by or 'no tokens'}, {self.finish_reason}{many}, seed {self.seed})"

    def _repr_html_(self) -> str:
        """What a notebook shows: who wrote each token, figures, and the other candidates."""
        from trimtab.decode.display.page import fragment

        return fragment(self)


_SHOWN = 60  # characters of a text in a repr
_REWARDS_SHOWN = 4  # in a repr; the objective's is among them


def _short(text: str | bytes) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"


def _cut(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"


_FIGURES = ("author", "id", "logprob", "entropy", "top_prob", "reward", "base_entropy", "base_top_prob")


_COLUMNS = ("candidate", "position", "text", *_FIGURES, "draw", "reason")


def _record(candidate: Candidate, position: int) -> dict[str, Any]:
    token = candidate.tokens[position]
    figures = (getattr(token, name) for name in _FIGURES)
    how = (str(token.draw), None if token.reason is None else str(token.reason))
    values = (candidate.index, position, token.piece.decode(errors="replace"), *figures, *how)
    return dict(zip(_COLUMNS, values, strict=True))


def answer_of(result: Result) -> Candidate | None:
    """The chosen candidate; None where there is none, as in a result that was cut short or put together by hand."""
    return result.candidates[result.selected] if 0 <= result.selected < len(result.candidates) else None


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
