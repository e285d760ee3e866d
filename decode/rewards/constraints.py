"""Rules that an answer should keep, as rewards: one rule each, or a list of them.

The list has what checkable instructions ask for ("at least 300 words", "no commas", "end with ..."), as the benchmark
IFEval collects them (Zhou et al., 2023).
"""

from __future__ import annotations

import inspect
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from trimtab.decode.rewards.base import LocalReward, Sample
from trimtab.decode.rewards.checks import KINDS, Check, apart
from trimtab.decode.rewards.measures import read_part
from trimtab.decode.rewards.options import OptionError, choice, hint, number, table, text

__all__ = ["Constraints", "case", "constraints", "json_format", "keywords", "length", "regex"]


class Constraints(LocalReward):
    """How well an answer keeps a list of rules: a number in [0, 1], 1 where it keeps them all.

    strict x (share of rules kept) + (1 - strict) x (mean credit): of two answers, the one that keeps more rules is
    usually better than the one that is closer to keeping many.

    Of an answer its first ``measures.LONGEST`` characters are read. Where a rule has an expression or a schema of the
    user's, which may take any time over a text, the rules run in a process, which is killed at the time limit.

    Args:
        rules: tables with ``kind`` (a name of ``checks.KINDS``) and its arguments.
        by_prompt: rules for the answers to single prompts, by the text of the prompt, beside ``rules``.
        strict: in [0, 1].

    Raises:
        OptionError: a rule is not accepted.
    """

    kind = "token"

    def __init__(
        self,
        rules: Sequence[Mapping[str, object]] = (),
        by_prompt: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
        strict: float = 0.5,
    ) -> None:
        self.strict = number("strict", strict, 0, 1)
        self._rules, self._own_rules = _plain(rules), {prompt: _plain(own) for prompt, own in (by_prompt or {}).items()}
        self.checks = _checks("constraints", self._rules)
        self.by_prompt = {prompt: _checks("by_prompt", own) for prompt, own in self._own_rules.items()}
        self.reads_prompt = bool(self.by_prompt)
        if any(map(_apart, (*self._rules, *(rule for own in self._own_rules.values() for rule in own)))):
            self.runs_on = "process"
        self.description = f"share of {len(self.checks)} rules that the answer keeps"
        if self.by_prompt:
            self.description = "share of the prompt's rules that the answer keeps"

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        return [_rating(self.credits(sample), self.strict) for sample in samples]

    def work(self, samples: Sequence[Sample]) -> tuple[Callable[..., Sequence[float]], tuple[Any, ...]]:
        if self.runs_on != "process":
            return super().work(samples)
        # A check is no plain data: the process is sent its rules, and of the samples what rules read.
        sent = [(self._sent(sample), read_part(sample.text), sample.finished) for sample in samples]
        return _rate_apart, (self.strict, sent)

    def credits(self, sample: Sample) -> list[float]:
        """The credit of each rule, those for all prompts first."""
        own = self.by_prompt.get(sample.instruction, ()) if self.by_prompt else ()
        text = read_part(sample.text)
        return [check(text, sample.finished) for check in (*self.checks, *own)]

    def _sent(self, sample: Sample) -> bytes:
        own = self._own_rules.get(sample.instruction, ()) if self.by_prompt else ()
        return pickle.dumps((*self._rules, *own))


def _rating(credits: Sequence[float], strict: float) -> float:
    if not credits:
        return 1.0
    kept = sum(credit >= 1 for credit in credits)
    return (strict * kept + (1 - strict) * sum(credits)) / len(credits)


def _rate_apart(strict: float, sent: Sequence[tuple[bytes, str, bool]]) -> list[float]:
    """In a process of its own: ratings of texts, each with its rules."""
    return [_rating([check(text, finished) for check in _made(rules)], strict) for rules, text, finished in sent]


@lru_cache(maxsize=64)
def _made(rules: bytes) -> tuple[Check, ...]:
    return tuple(_checks("constraints", pickle.loads(rules)))


def _apart(rule: Mapping[str, object]) -> bool:
    return apart(str(rule["kind"]), rule)


def _plain(value: Any) -> Any:
    """Tables and lists of whatever class as those that can be sent to a process."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(inner) for inner in value]
    return value


def constraints(
    constraints: Sequence[Mapping[str, object]] = (), path: str | None = None, strict: float = 0.5
) -> Constraints:
    """The type ``constraints``: rules for every prompt, and with ``path`` rules for single prompts.

    Args:
        constraints: tables with ``kind`` and its arguments.
        path: JSONL of rows ``{"prompt": ..., "constraints": [...]}``.
        strict: see ``Constraints``.
    """
    if not constraints and path is None:
        raise OptionError("constraints", constraints, "at least one table with a kind, or a path")
    return Constraints(constraints, None if path is None else _rows(path), strict)


def length(
    at_least: int | None = None, at_most: int | None = None, exactly: int | None = None, unit: str = "words"
) -> Constraints:
    """The type ``length``: how close the number of words (or of another unit) is to what is wanted."""
    units = ("characters", "words", "sentences", "quoted_sentences", "paragraphs", "lines")
    rule = {"kind": choice("unit", unit, units), "at_least": at_least, "at_most": at_most, "exactly": exactly}
    return _one(f"number of {unit}", {key: value for key, value in rule.items() if value is not None})


def keywords(
    wanted: Sequence[str] = (), banned: Sequence[str] = (), counts: Mapping[str, Mapping[str, int]] | None = None
) -> Constraints:
    """The type ``keywords``: words wanted and banned, and ``counts``: word -> table with at_least, at_most, exactly."""
    rules: list[Mapping[str, object]] = []
    rules += [{"kind": "keywords", "keywords": wanted}] if wanted else []
    rules += [{"kind": "banned", "keywords": banned}] if banned else []
    for word, bounds in (counts or {}).items():
        rules.append({"kind": "keyword", "keyword": word, **table(f"counts.{word}", bounds, "a table with at_least")})
    if not rules:
        raise OptionError("wanted", wanted, "a list of words here, as banned or in counts")
    return _one("keywords", *rules)


def regex(expression: str, wanted: bool = True, whole_text: bool = False) -> Constraints:
    """The type ``regex``: whether a regular expression is found, or isn't."""
    return _one(
        f"regular expression {expression!r}",
        {"kind": "regex", "expression": expression, "wanted": wanted, "whole_text": whole_text},
    )


def json_format(schema: Mapping[str, Any] | None = None, path: str | None = None, nan: bool = False) -> Constraints:
    """The type ``json``: whether the answer is JSON, and fits a schema (a table, or a file at ``path``)."""
    if path is not None:
        if schema is not None:
            raise OptionError("path", path, "no schema beside it")
        try:
            schema = json.loads(Path(text("path", path)).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OptionError("path", path, f"a readable JSON schema ({error})") from error
    return _one("JSON", {"kind": "json", "nan": nan, **({} if schema is None else {"schema": schema})})


def case(style: str = "upper") -> Constraints:
    """The type ``case``: share of letters that are upper or lower case."""
    return _one(f"{style} case", {"kind": "case", "style": style})


def _one(description: str, *rules: Mapping[str, object]) -> Constraints:
    try:
        made = Constraints(rules, strict=0.0)
    except OptionError as error:  # the table's own keys, not those of a list
        raise OptionError(error.key.rpartition("].")[2] or error.key, error.value, error.accepted) from None
    made.description = description
    return made


def _checks(key: str, rules: object) -> list[Check]:
    if isinstance(rules, str | Mapping) or not isinstance(rules, Sequence):
        raise OptionError(key, rules, "a list of tables with a kind and its arguments")
    return [_check(f"{key}[{i}]", rule) for i, rule in enumerate(rules)]


def _check(path: str, rule: object) -> Check:
    arguments = dict(table(path, rule, "a table with a kind and its arguments"))
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise OptionError(f"{path}.kind", kind, f"one of {', '.join(KINDS)}{hint(kind, KINDS)}")
    parameters = inspect.signature(KINDS[kind]).parameters
    for name, value in arguments.items():
        if name not in parameters:
            accepted = f"one of {', '.join(parameters)}" if parameters else f"no arguments for {kind!r}"
            raise OptionError(f"{path}.{name}", value, accepted + hint(name, parameters))
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise OptionError(f"{path}.{name}", None, f"a value: the kind {kind!r} needs it")
    try:
        return KINDS[kind](**arguments)
    except OptionError as error:
        raise OptionError(f"{path}.{error.key}", error.value, error.accepted) from None


def _rows(path: str) -> dict[str, Sequence[Mapping[str, object]]]:
    accepted = 'JSONL of rows {"prompt": text, "constraints": [...]}'
    try:
        lines = Path(text("path", path)).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError("path", path, f"{accepted} ({error})") from error
    found: dict[str, Sequence[Mapping[str, object]]] = {}
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found[row["prompt"]] = row["constraints"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"path:{line_number}", line[:80], accepted) from error
    return found
