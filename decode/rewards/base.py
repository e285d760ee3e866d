"""What a reward is: it takes answers, or beginnings of answers, and says how good they are.

Two kinds of place where one runs. A *local* reward is a plain function of the samples, called in a thread or a process
of its own, so that decoding never waits for it. An *engine* reward asks the engine's models: it awaits the ops of
``trimtab.decode.ops``, which the scheduler runs in the same batches as everybody's tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from trimtab.decode.frozen import FrozenDict, freeze_fields
from trimtab.decode.request.info import RewardInfo
from trimtab.decode.request.prompt import ChatMessage, Prompt, beginning
from trimtab.decode.request.result import Token

if TYPE_CHECKING:
    from trimtab.decode.config import ModelConfig
    from trimtab.decode.ops import Context
    from trimtab.decode.rewards.calibration import Reference

__all__ = [
    "EngineReward",
    "Kind",
    "LocalReward",
    "PairwiseReward",
    "Reward",
    "RunsOn",
    "Sample",
    "distinct_prompts",
    "prompt_key",
    "spoken",
    "turns",
    "well_formed",
    "whole",
]

Kind = Literal["sequence", "prefix", "token"]
RunsOn = Literal["engine", "thread", "process"]

NO_MODELS: Mapping[str, ModelConfig] = FrozenDict()


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to be rated.

    Attributes:
        prompt: as in the request.
        text: the answer, or its beginning: what was written. Where the prompt is a chat that ends with the assistant's
            own message, it goes on with that; ``whole`` puts the two together, and a ``LocalReward`` gets them so.
        finished: whether the answer ends here. A beginning is rated by what it may still become where only the end
            can decide (a closing phrase, complete JSON), and as it stands otherwise.
        tokens: of the answer, with authors and log-probabilities where they are known; may be empty.
        references: answers to compare with.
        prompts: for each author of ``tokens`` the token ids after which it wrote them. Without an entry the figures of
            its tokens are not what it says itself: those of a mixture, or of tokens taken over from another prompt.
    """

    prompt: Prompt
    text: str
    finished: bool = True
    tokens: tuple[Token, ...] = ()
    references: tuple[str, ...] = ()
    prompts: Mapping[str, tuple[int, ...]] = field(default_factory=FrozenDict, repr=False, compare=False)

    def __post_init__(self) -> None:
        freeze_fields(self, "prompts")

    @property
    def instruction(self) -> str:
        """What was asked: a text prompt, or the last message of the user.

        Raises:
            ValueError: the prompt is token ids, or has no message of the user.
        """
        if isinstance(self.prompt, str):
            return self.prompt
        for turn in reversed(self.prompt):
            if isinstance(turn, ChatMessage) and turn.role == "user":
                return turn.content
            if isinstance(turn, Mapping) and turn.get("role") == "user":
                return cast("str", turn["content"])
        raise ValueError("this reward reads the prompt: accepted: a text, or messages with one of the user")


def distinct_prompts(samples: Sequence[Sample]) -> tuple[list[Hashable], dict[Hashable, Sample]]:
    """Per sample what tells its prompt from another one, and for each prompt the first sample that has it."""
    keys = [prompt_key(sample.prompt) for sample in samples]
    first: dict[Hashable, Sample] = {}
    for key, sample in zip(keys, samples, strict=True):
        first.setdefault(key, sample)
    return keys, first


def prompt_key(prompt: Prompt) -> Hashable:
    """A prompt by what it says: messages in either form are equal, and a text never equals a list."""
    if isinstance(prompt, str):
        return prompt
    return tuple(ChatMessage(t["role"], t["content"]) if isinstance(t, Mapping) else t for t in prompt)


def whole(sample: Sample) -> Sample:
    """The sample with all that the assistant says as its text, also what the prompt's last message begins it with."""
    begun = beginning(sample.prompt)
    if not begun:
        return sample
    return replace(sample, prompt=tuple(turns(sample.prompt)[:-1]), text=begun + sample.text)


class Reward:
    """What all rewards have. Subclass ``LocalReward`` or ``EngineReward``, not this.

    A rating must be a number in [-1e30, 1e30] and a function of its own sample alone: which others are rated in the
    same call, and in which order, changes nothing.

    Attributes:
        name: under which the engine serves it; set by the engine.
        kind: what can be rated, see ``RewardInfo``.
        description: one line for ``ListRewards``.
        timeout: seconds that one call may take.
        models: models of the engine that it asks.
        brings: models that the engine must load for it, by name.
        needs_reference: whether it needs reference answers.
        reads_prompt: whether it reads what was asked, a text or messages. Token ids say nothing to it where it isn't
            known whose they are.
        reference: where zero lies for ``Combine.LOG_SIGMOID``; None: at zero.
    """

    pairwise: ClassVar[bool] = False
    name: str = ""
    kind: Kind = "sequence"
    description: str = ""
    timeout: float = 30.0
    models: tuple[str, ...] = ()
    brings: Mapping[str, ModelConfig] = NO_MODELS
    needs_reference: bool = False
    reads_prompt: bool = False
    reference: Reference | None = None
    runs_on: RunsOn = "thread"

    @property
    def info(self) -> RewardInfo:
        return RewardInfo(
            name=self.name,
            kind=self.kind,
            description=self.description,
            models=self.models,
            pairwise=self.pairwise,
            needs_reference=self.needs_reference,
        )


class LocalReward(Reward, abc.ABC):
    """A function of the samples; ``runs_on`` is ``thread`` or ``process`` (then the reward must be picklable)."""

    @abc.abstractmethod
    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        """One number per sample, in order; more is better. Called from several threads at once."""

    def work(self, samples: Sequence[Sample]) -> tuple[Callable[..., Sequence[float]], tuple[Any, ...]]:
        """What to call, where the reward runs, to rate samples: a function and its arguments.

        For a process both are pickled; a reward that can't be, or that needs little of its samples, says it here.
        """
        return self.rate, (tuple(samples),)


class EngineReward(Reward, abc.ABC):
    """A reward that asks models of the engine."""

    runs_on: RunsOn = "engine"

    @abc.abstractmethod
    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        """One number per sample, in order; more is better. Awaits nothing but the engine's ops."""


class PairwiseReward(Reward, abc.ABC):
    """A reward that compares two answers; only a tournament can use it."""

    pairwise: ClassVar[bool] = True
    runs_on: RunsOn = "engine"

    @abc.abstractmethod
    async def compare(self, context: Context, pairs: Sequence[tuple[Sample, Sample]]) -> Sequence[float]:
        """The probability, per pair, that its first answer is the better one; p(a, b) = 1 - p(b, a)."""


def turns(prompt: Prompt) -> tuple[ChatMessage, ...]:
    """A prompt as chat messages; a text is one of the user.

    Raises:
        ValueError: the prompt is token ids, which belong to another model's vocabulary.
    """
    if isinstance(prompt, str):
        return (ChatMessage("user", prompt),)
    found: list[Any] = list(prompt)
    if not all(isinstance(turn, ChatMessage | Mapping) for turn in found):
        raise ValueError("this reward reads the prompt: accepted: a text or messages, not token ids")
    return tuple(t if isinstance(t, ChatMessage) else ChatMessage(t["role"], t["content"]) for t in found)


def spoken(prompt: Prompt) -> str:
    """A prompt as one text: of several messages, each begins with its role.

    Raises:
        ValueError: as ``turns``.
    """
    said = turns(prompt)
    return said[0].content if len(said) == 1 else "\n\n".join(f"{t.role.capitalize()}: {t.content}" for t in said)


def well_formed(text: str) -> str:
    """A text that can be encoded: halves of surrogate pairs, which tokenizers refuse, are U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
