"""A reward measured by what a base model reaches on the same prompt.

Raw rewards have no common zero or unit. Answers drawn from a base model to the same prompt give both: their quantiles
say where an answer would stand among them (InfAlign; Balashankar et al., 2024), and one of them says where "good
enough" begins (``Combine.LOG_SIGMOID``).
"""

from __future__ import annotations

import bisect
import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol, Self
from weakref import WeakKeyDictionary

from trimtab.decode.ops import (
    Context,
    Extend,
    Seq,
    gather,
)
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.rewards.base import EngineReward, Reward, Sample, prompt_key
from trimtab.decode.rewards.evaluation import evaluate
from trimtab.decode.rewards.options import OptionError, choice, number, text, whole
from trimtab.decode.text.view import VocabularyView
from trimtab.kernels.types import Pick

if TYPE_CHECKING:
    from trimtab.decode.rewards.registry import Site
    from trimtab.kernels.types import Key

__all__ = ["Calibrated", "DrawnReference", "FixedReference", "Reference", "calibrated", "drawn_answers", "reference"]

_QUESTIONS_KEPT = 256
_HALF_OF_NORMAL = 1.349  # interquartile range of the standard normal distribution


class Reference(Protocol):
    """Where zero and one lie for a reward."""

    async def places(
        self, context: Context, reward: Reward, samples: Sequence[Sample]
    ) -> Sequence[tuple[float, float]]:
        """(zero, unit) per sample; units are > 0."""
        ...


@dataclass(frozen=True, slots=True)
class FixedReference:
    """The same zero and unit for every prompt."""

    center: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        number("center", self.center)
        number("scale", self.scale, above=0)

    async def places(
        self, context: Context, reward: Reward, samples: Sequence[Sample]
    ) -> Sequence[tuple[float, float]]:
        return [(self.center, self.scale)] * len(samples)


_Question = tuple[str, Hashable, tuple[str, ...]]  # the reward, the prompt and the references


@dataclass(frozen=True, eq=False)
class Drawn:
    """Answers of a base model to each prompt, and what rewards say of them.

    Of each model the last 256 questions are remembered: the reward, the prompt and the references, which are all that a
    rating of these answers depends on. Answers are drawn by a seed and random numbers of their own, so a rating depends
    on no request and shares nothing with its candidates.

    Attributes:
        model: that answers, by its own template.
        samples: answers per prompt.
        max_new_tokens: their length.
        seed: of the draws.
    """

    model: str
    samples: int = 16
    max_new_tokens: int = 128
    seed: int = 0
    # By the vocabulary object, of which each model of each engine has one: a name may mean another model elsewhere.
    _known: WeakKeyDictionary[VocabularyView, OrderedDict[_Question, tuple[float, ...]]] = field(
        default_factory=WeakKeyDictionary, init=False, repr=False
    )

    def __post_init__(self) -> None:
        text("model", self.model, "the name of a model")
        whole("samples", self.samples, 2, 1024)
        whole("max_new_tokens", self.max_new_tokens, 1)
        whole("seed", self.seed, 0, 2**32 - 1)

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...]]:
        return type(self), tuple(getattr(self, one.name) for one in fields(self) if one.init)  # what is known stays

    async def values(self, context: Context, reward: Reward, samples: Sequence[Sample]) -> list[tuple[float, ...]]:
        """Per sample the reward of each drawn answer to its prompt, ascending.

        Raises:
            ValueError: a prompt leaves no room for an answer.
        """
        asked: list[_Question] = [(reward.name, prompt_key(s.prompt), s.references) for s in samples]
        first = dict(zip(reversed(asked), reversed(samples), strict=True))
        known = self._known.setdefault(context.vocabulary(self.model), OrderedDict())
        found = {question: known[question] for question in first if question in known}
        missing = [question for question in first if question not in found]
        fresh = await gather(*(self._rated(context, reward, first[question]) for question in missing))
        found |= dict(zip(missing, fresh, strict=True))
        for question, values in found.items():
            known[question] = values
            known.move_to_end(question)
        while len(known) > _QUESTIONS_KEPT:
            known.popitem(last=False)
        return [found[question] for question in asked]

    async def _rated(self, context: Context, reward: Reward, sample: Sample) -> tuple[float, ...]:
        texts = await drawn_answers(context, self.model, sample.prompt, self.samples, self.max_new_tokens, self.seed)
        answers = [Sample(sample.prompt, said, references=sample.references) for said in texts]
        return tuple(sorted(await evaluate(context, reward, answers)))


@dataclass(frozen=True, eq=False)
class DrawnReference(Drawn):
    """Zero is a quantile of the base model's rewards on the prompt, the unit their spread.

    Attributes:
        quantile: in [0, 1].
    """

    quantile: float = 0.85

    def __post_init__(self) -> None:
        super().__post_init__()
        number("quantile", self.quantile, 0, 1)

    async def places(
        self, context: Context, reward: Reward, samples: Sequence[Sample]
    ) -> Sequence[tuple[float, float]]:
        return [(_quantile(v, self.quantile), _spread(v)) for v in await self.values(context, reward, samples)]


class Calibrated(EngineReward):
    """Where an answer's reward stands among a base model's own answers to the prompt: a quantile in [0, 1].

    Args:
        of: the reward that is calibrated.
        drawn: the base model's answers.
        transform: ``none``; ``log`` or ``exp`` of the quantile, which InfAlign derives for the worst and the best of n.
    """

    reads_prompt = True

    def __init__(self, of: Reward, drawn: Drawn, transform: str = "none") -> None:
        self.of, self.drawn = of, drawn
        self.transform = choice("transform", transform, ("none", "log", "exp"))
        if of.pairwise:
            raise OptionError("reward", of.name, "a reward that rates single answers")
        self.kind = "prefix" if of.kind == "token" else of.kind
        self.models = tuple(dict.fromkeys((drawn.model, *of.models)))
        self.needs_reference = of.needs_reference
        self.description = f"{of.name} as a quantile of what {drawn.model} reaches on the prompt"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        values = await evaluate(context, self.of, samples)
        known = await self.drawn.values(context, self.of, samples)
        return [self._transformed(_rank(v, k), len(k)) for v, k in zip(values, known, strict=True)]

    def _transformed(self, rank: float, count: int) -> float:
        match self.transform:
            case "log":
                return math.log((rank * count + 0.5) / (count + 1))  # finite below all of the drawn answers too
            case "exp":
                return math.exp(rank)
            case _:
                return rank


async def drawn_answers(
    context: Context, model: str, prompt: Prompt, count: int, max_new_tokens: int, seed: int
) -> list[str]:
    """Answers of a model to a prompt at temperature 1; the prompt is read once.

    Raises:
        ValueError: the prompt leaves no room for an answer.
    """
    # With torch, which a configuration is read without.
    from trimtab.decode.methods.chance import Line
    from trimtab.kernels.types import Key

    ids = context.render(model, prompt)
    if len(ids) >= (limit := context.limit(model)):
        raise ValueError(f"the prompt takes {len(ids)} tokens of model {model!r}; accepted: less than {limit}")
    room = min(max_new_tokens, limit - len(ids))
    root = context.open(model, ids)
    opened = [root]
    try:
        await Extend(root, (), (None,))
        for _ in range(count - 1):
            opened.append(root.fork())
        key = Key(seed).child(0, Line.CALIBRATION)  # a request may have the same seed
        return await gather(*(_write(context, seq, key.child(0, index), room) for index, seq in enumerate(opened)))
    finally:
        for seq in opened:
            seq.close()


async def _write(context: Context, seq: Seq, key: Key, room: int) -> str:
    from trimtab.kernels.types import Filters

    vocabulary, filters = context.vocabulary(seq.model), Filters(temperature=1.0)
    written: list[bytes] = []
    last: tuple[int, ...] = ()
    for position in range(room):
        (read,) = await Extend(seq, last, (Pick(filters, key, position),))
        if read.token in vocabulary.eos_token_ids:
            break
        written.append(b"" if read.token in vocabulary.special_ids else vocabulary.piece(read.token))
        last = (read.token,)
    seq.close()  # its pages are free for the others
    return b"".join(written).decode(errors="replace")


def calibrated(
    reward: str,
    model: str,
    site: Site,
    samples: int = 16,
    max_new_tokens: int = 128,
    seed: int = 0,
    transform: str = "none",
) -> Calibrated:
    """The type ``calibrated``; see ``Calibrated`` and ``Drawn``."""
    drawn = Drawn(site.model("model", model), samples, max_new_tokens, seed)
    made = Calibrated(site.reward("reward", reward), drawn, transform)
    made.brings = made.of.brings
    return made


def reference(options: Mapping[str, object]) -> Reference:
    """The reference that a table ``reference = {...}`` describes: with ``model`` drawn, otherwise fixed.

    Raises:
        OptionError: an option is unknown or not accepted.
    """
    drawn = "model" in options
    known = ("model", "samples", "max_new_tokens", "seed", "quantile") if drawn else ("center", "scale")
    for key in options:
        if key not in known:
            raise OptionError(key, options[key], f"only {', '.join(known)}")
    return DrawnReference(**options) if drawn else FixedReference(**options)  # type: ignore[arg-type]


def _rank(value: float, ascending: Sequence[float]) -> float:
    """Share of values below ``value``, ties counted half."""
    below, upto = bisect.bisect_left(ascending, value), bisect.bisect_right(ascending, value)
    return (below + upto) / (2 * len(ascending))


def _quantile(ascending: Sequence[float], q: float) -> float:
    """Linear between the two nearest values."""
    at = q * (len(ascending) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (at - low) * (ascending[high] - ascending[low])


def _spread(ascending: Sequence[float]) -> float:
    """A standard deviation from the middle half; 1 where all values are equal."""
    middle = _quantile(ascending, 0.75) - _quantile(ascending, 0.25)
    return middle / _HALF_OF_NORMAL if middle > 0 else 1.0
