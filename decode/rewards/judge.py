"""A language model as a judge: the probabilities of its verdict's words, not a text that has to be parsed.

A template with slots becomes the message of a user; the judge's probability of each allowed verdict right after it is
read, and normalised over the verdicts. So a rating is a smooth number after one forward pass.

The reply is heard as the longest verdict that it begins with: where "10" is spelled "1", "0", what goes on to a 10 is
no 1. So the same replies give the same rating whether a vocabulary has a token for 10 or not. Words are taken as they
are written: "yes" is another word than "Yes", and what a reply says after its verdict counts nothing.
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from trimtab.decode.ops import Context, Extend, Given, Seq, gather
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.rewards.base import EngineReward, PairwiseReward, Sample, spoken, whole
from trimtab.decode.rewards.options import OptionError, number, table, text, texts

if TYPE_CHECKING:
    from trimtab.decode.rewards.registry import Site

__all__ = ["Judge", "PairwiseJudge", "judge", "pairwise_judge", "verdict_probabilities"]

RUBRIC = "The answer does what the request asks for; it is correct, clear and to the point."

TEMPLATE = """\
Request:
{prompt}

Answer:
{answer}

Criterion: {rubric}

Does the answer meet the criterion? Reply with one word, {verdicts}."""

PAIRWISE_TEMPLATE = """\
Request:
{prompt}

Answer A:
{answer_a}

Answer B:
{answer_b}

Criterion: {rubric}

Which answer meets the criterion better? Reply with one letter, A or B."""

_SLOTS = ("prompt", "answer", "rubric", "reference", "verdicts")
_PAIRWISE_SLOTS = ("prompt", "answer_a", "answer_b", "rubric", "reference")


class Judge(EngineReward):
    """Rates an answer by the verdict that a model gives on it.

    Args:
        model: the judge.
        rules: criteria, each judged on its own; the rating is the mean over them (AutoRule; Wang and Xiong, 2025).
        verdicts: word -> number; the rating under a rule is the expected number.
        template: with the slots ``{prompt}`` and ``{answer}``, and at will ``{rubric}`` (the rule), ``{reference}``
            (the request's first reference) and ``{verdicts}``.

    Raises:
        OptionError: a slot is missing or unknown, or there are fewer than two verdicts.
    """

    kind = "prefix"
    reads_prompt = True

    def __init__(
        self,
        model: str,
        rules: Sequence[str] = (RUBRIC,),
        verdicts: Mapping[str, float] | None = None,
        template: str = TEMPLATE,
    ) -> None:
        self.model = model
        self.rules = texts("rules", rules)
        self.verdicts = _verdicts({"Yes": 1.0, "No": 0.0} if verdicts is None else verdicts)
        self.template = _checked(template, ("prompt", "answer"), _SLOTS)
        if len(self.rules) > 1 and "rubric" not in _slots(template):
            raise OptionError("template", template, "the slot {rubric}, as there are several rules")
        self.needs_reference = "reference" in _slots(template)
        self.models = (model,)
        self.description = f"judged by {model}"

    async def rate(self, context: Context, samples: Sequence[Sample]) -> Sequence[float]:
        asked = [self._asked(sample, rule) for sample in samples for rule in self.rules]
        verdicts = tuple(self.verdicts)
        found = await gather(*(verdict_probabilities(context, self.model, text, verdicts) for text in asked))
        scores = [sum(p * self.verdicts[v] for p, v in zip(row, verdicts, strict=True)) for row in found]
        n = len(self.rules)
        return [sum(scores[i : i + n]) / n for i in range(0, len(scores), n)]

    def _asked(self, sample: Sample, rule: str) -> str:
        sample = whole(sample)
        return self.template.format(
            prompt=spoken(sample.prompt),
            answer=sample.text,
            rubric=rule,
            reference=sample.references[0] if sample.references else "",
            verdicts=" or ".join(self.verdicts),
        )


class PairwiseJudge(PairwiseReward):
    """Says which of two answers is better, in both orders, and takes the mean: the order itself then counts nothing.

    Args:
        model: the judge.
        rubric: the criterion.
        template: with the slots ``{prompt}``, ``{answer_a}`` and ``{answer_b}``, and at will ``{rubric}`` and
            ``{reference}``; asks for one of the verdicts.
        verdicts: how the judge calls the first and the second answer.

    Raises:
        OptionError: a slot is missing or unknown, or there aren't two different verdicts.
    """

    reads_prompt = True

    def __init__(
        self,
        model: str,
        rubric: str = RUBRIC,
        template: str = PAIRWISE_TEMPLATE,
        verdicts: Sequence[str] = ("A", "B"),
    ) -> None:
        self.model, self.rubric = model, text("rubric", rubric)
        self.template = _checked(template, ("prompt", "answer_a", "answer_b"), _PAIRWISE_SLOTS)
        self.verdicts = tuple(_word("verdicts", word) for word in texts("verdicts", verdicts))
        if len(set(self.verdicts)) != 2 or len(self.verdicts) != 2:
            raise OptionError("verdicts", verdicts, "two different words, for the first answer and for the second")
        self.needs_reference = "reference" in _slots(template)
        self.models = (model,)
        self.description = f"compared by {model}"

    async def compare(self, context: Context, pairs: Sequence[tuple[Sample, Sample]]) -> Sequence[float]:
        asked = [self._asked(*pair) for a, b in pairs for pair in ((a, b), (b, a))]
        found = await gather(*(verdict_probabilities(context, self.model, text, self.verdicts) for text in asked))
        return [(ab[0] + 1.0 - ba[0]) / 2 for ab, ba in zip(found[::2], found[1::2], strict=True)]

    def _asked(self, a: Sample, b: Sample) -> str:
        a, b = whole(a), whole(b)
        return self.template.format(
            prompt=spoken(a.prompt),
            answer_a=a.text,
            answer_b=b.text,
            rubric=self.rubric,
            reference=a.references[0] if a.references else "",
        )


async def verdict_probabilities(context: Context, model: str, asked: str, verdicts: Sequence[str]) -> list[float]:
    """The probabilities, normalised over ``verdicts``, that a model's answer to a message begins with each of them.

    A verdict of several tokens has the probability of all of them, less that of the longer verdicts that they begin.

    Raises:
        ValueError: the message is longer than the model's context, or the model can't tell two verdicts apart: they are
            spelled alike in its vocabulary, or one isn't spelled at all.
    """
    ids = context.render(model, (ChatMessage("user", asked),))
    vocabulary = context.vocabulary(model)
    # After a template that ends inside a line ("Answer:") a word begins with its space.
    space = "" if ids[-1] in vocabulary.special_ids or vocabulary.piece(ids[-1])[-1:].isspace() else " "
    words = [tuple(vocabulary.encode(space + verdict, False, continues=True)) for verdict in verdicts]
    for i, word in enumerate(words):
        if not word or word in words[:i]:
            accepted = f"words that model {model!r} spells, each in tokens of its own"
            raise ValueError(f"verdict {verdicts[i]!r} is spelled {list(word)} in tokens; accepted: {accepted}")
    if len(ids) + max(map(len, words)) > (limit := context.limit(model)):
        raise ValueError(f"the judge's prompt takes {len(ids)} tokens; accepted: less than {limit}")
    root = context.open(model, ids)
    opened = [root]
    try:
        await Extend(root, (), (None,))
        for _ in words[1:]:
            opened.append(root.fork())
        logs = await gather(*(_logprob(seq, word) for seq, word in zip(opened, words, strict=True)))
    finally:
        for seq in opened:
            seq.close()
    top = max(logs)
    weights = [math.exp(log - top) for log in _alone(words, logs)]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _alone(words: Sequence[tuple[int, ...]], logs: Sequence[float]) -> list[float]:
    """ln p of each word where no longer one of them follows: -inf where one always does."""
    found = []
    for word, log in zip(words, logs, strict=True):
        longer = [i for i, other in enumerate(words) if len(other) > len(word) and other[: len(word)] == word]
        # Of those that begin one another the shortest has the mass of all.
        first = [i for i in longer if not any(words[i][: len(words[k])] == words[k] for k in longer if k != i)]
        left = 1.0 - math.fsum(math.exp(logs[i] - log) for i in first)
        found.append(log + math.log(left) if left > 0 else -math.inf)
    return found


async def _logprob(seq: Seq, tokens: Sequence[int]) -> float:
    reads = await Extend(seq, tokens[:-1], [Given(token) for token in tokens])
    return math.fsum(read.logprob for read in reads)


def judge(
    model: str,
    site: Site,
    rubric: str | None = None,
    rules: Sequence[str] | None = None,
    verdicts: Mapping[str, float] | None = None,
    template: str = TEMPLATE,
) -> Judge:
    """The type ``judge``: a rubric, or a list of rules; see ``Judge``."""
    if rubric is not None and rules is not None:
        raise OptionError("rules", rules, "no rubric beside them")
    criteria = rules if rules is not None else (RUBRIC if rubric is None else text("rubric", rubric),)
    return Judge(site.model("model", model), criteria, verdicts, template)


def pairwise_judge(
    model: str,
    site: Site,
    rubric: str = RUBRIC,
    template: str = PAIRWISE_TEMPLATE,
    verdicts: Sequence[str] = ("A", "B"),
) -> PairwiseJudge:
    """The type ``pairwise_judge``; see ``PairwiseJudge``."""
    return PairwiseJudge(site.model("model", model), rubric, template, verdicts)


def _verdicts(verdicts: object) -> dict[str, float]:
    given = table("verdicts", verdicts, "a table of words and their numbers")
    if len(given) < 2:
        raise OptionError("verdicts", verdicts, "at least two words with their numbers")
    return {_word("verdicts", word): number(f"verdicts.{word}", value) for word, value in given.items()}


def _word(key: str, value: object) -> str:
    """A verdict; white space around it would be read as a part of it."""
    word = text(key, value)
    if word != word.strip():
        raise OptionError(key, value, "words without white space around them")
    return word


def _slots(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def _checked(template: object, required: Sequence[str], known: Sequence[str]) -> str:
    """A template with all the slots it needs and no other."""
    written = text("template", template)
    accepted = "a text with the slots " + ", ".join(f"{{{slot}}}" for slot in required)
    optional = ", ".join(f"{{{slot}}}" for slot in known if slot not in required)
    accepted += f", and at will {optional}; write {{{{ and }}}} for braces of its own"
    try:
        found = _slots(written)
    except ValueError as error:
        raise OptionError("template", written, f"{accepted} ({error})") from error
    if wrong := sorted(found - set(known)) or [slot for slot in required if slot not in found]:
        raise OptionError("template", written, f"{accepted}; at fault: {', '.join(f'{{{s}}}' for s in wrong)}")
    return written
