"""Checks of a text, each a number in [0, 1]: 1 exactly where the text keeps the rule, less the further it is from it.

Partial credit gives a search a direction where no candidate keeps a rule yet. A beginning of an answer (``finished``
false) is rated by what it may still become where only the end can decide, and as it stands otherwise.

Every function here makes a check from its arguments; ``KINDS`` names them for configuration.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from trimtab.decode.rewards.json_text import json_progress, unfenced
from trimtab.decode.rewards.measures import UNITS, Bounds, paragraphs, words
from trimtab.decode.rewards.options import OptionError, choice, flag, needed, pattern, table, text, texts, whole

__all__ = ["KINDS", "Check"]

Check = Callable[[str, bool], float]


def _count(unit: str, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> Check:
    """So many of a unit of ``measures.UNITS``."""
    measure, bounds = UNITS[choice("unit", unit, tuple(UNITS))], Bounds.of(at_least, at_most, exactly)
    return lambda said, finished: bounds.closeness(measure(said))


def _counting(unit: str) -> Callable[..., Check]:
    def check(at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> Check:
        return _count(unit, at_least, at_most, exactly)

    return check


def _paragraphs(
    at_least: int | None = None, at_most: int | None = None, exactly: int | None = None, divider: str = "\n\n"
) -> Check:
    """So many paragraphs between dividers; every empty one inside the text costs."""
    bounds = Bounds.of(at_least, at_most, exactly)
    if not isinstance(divider, str) or not divider:
        raise OptionError("divider", divider, "a non-empty text")

    def check(said: str, finished: bool) -> float:
        parts = paragraphs(said, divider)
        inner = sum(not part for part in parts[1:-1]) if divider.strip() else 0  # an empty line more is no fault
        return bounds.closeness(sum(map(bool, parts))) / (1 + inner)

    return check


def _paragraph_start(number: int, word: str, paragraphs: int | None = None) -> Check:
    """The ``number``-th paragraph (between empty lines, from 1) begins with ``word``; there are ``paragraphs``."""
    whole("number", number, 1)
    wanted = text("word", word).casefold()
    bounds = Bounds.of(exactly=paragraphs) if paragraphs is not None else Bounds(number)

    def check(said: str, finished: bool) -> float:
        parts = [part.strip() for part in re.split(r"\n\s*\n", said.strip()) if part.strip()]
        if not finished and len(parts) < number:
            return (bounds.closeness(len(parts)) + 1) / 2
        first = words(parts[number - 1])[:1] if len(parts) >= number else []
        return (bounds.closeness(len(parts)) + (bool(first) and first[0].casefold() == wanted)) / 2

    return check


def _sections(name: str, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> Check:
    """So many sections that begin with ``name`` and a number, e.g. "SECTION 1"."""
    begins = re.compile(rf"{re.escape(text('name', name))}\s?\d+")
    bounds = Bounds.of(at_least, at_most, exactly)
    return lambda said, finished: bounds.closeness(len(begins.findall(said)))


def _keyword(
    keyword: str, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None
) -> Check:
    """A word or phrase so many times, whatever its case, also inside longer words."""
    wanted, bounds = text("keyword", keyword).casefold(), Bounds.of(at_least, at_most, exactly)
    return lambda said, finished: bounds.closeness(said.casefold().count(wanted))


def _wanted(keywords: Sequence[str]) -> Check:
    """All of these occur; the share that does."""
    wanted = [word.casefold() for word in texts("keywords", keywords)]

    def check(said: str, finished: bool) -> float:
        folded = said.casefold()
        return sum(word in folded for word in wanted) / len(wanted)

    return check


def _banned(keywords: Sequence[str]) -> Check:
    """None of these occurs as a word of its own."""
    alternatives = "|".join(re.escape(word) for word in texts("keywords", keywords))
    banned = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)
    return lambda said, finished: 1 / (1 + len(banned.findall(said)))


def _letter(letter: str, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> Check:
    """A character so many times, whatever its case."""
    if not isinstance(letter, str) or len(letter) != 1:
        raise OptionError("letter", letter, "one character")
    bounds = Bounds.of(at_least, at_most, exactly)
    return lambda said, finished: bounds.closeness(said.lower().count(letter.lower()))


def _regex(expression: str, wanted: bool = True, whole_text: bool = False) -> Check:
    """A regular expression is found, or, with ``wanted`` false, isn't; with ``whole_text``, it matches everything."""
    compiled = pattern("expression", expression)
    flag("wanted", wanted)
    if flag("whole_text", whole_text):
        return lambda said, finished: float(not finished or (compiled.fullmatch(said) is not None) == wanted)
    return lambda said, finished: float((compiled.search(said) is not None) == wanted)


def _title() -> Check:
    """A title in double angular brackets, <<like this>>."""
    title = re.compile(r"<<[^\n]*[^\s<>][^\n]*>>")
    return lambda said, finished: float(title.search(said) is not None)


def _postscript(marker: str = "P.S.") -> Check:
    """A postscript that begins with ``marker``; its letters may stand apart."""
    spaced = r"\s?".join(re.escape(sign) for sign in text("marker", marker).strip())
    begins = re.compile(spaced, re.IGNORECASE)
    return lambda said, finished: float(not finished or begins.search(said) is not None)


def _quotation() -> Check:
    """The whole text in double quotes; half for either end."""

    def check(said: str, finished: bool) -> float:
        said = said.strip()
        opened = said.startswith('"') or (not said and not finished)
        return (opened + (not finished or (len(said) > 1 and said.endswith('"')))) / 2

    return check


def _start(phrase: str) -> Check:
    """Begins with a phrase, word for word, whatever the case; the share of it that is there."""
    wanted = text("phrase", phrase).strip().lower()

    def check(said: str, finished: bool) -> float:
        said = said.strip().lower()
        same = next((i for i, (a, b) in enumerate(zip(said, wanted, strict=False)) if a != b), None)
        same = min(len(said), len(wanted)) if same is None else same
        begun = not finished and same == len(said)
        return 1.0 if begun else same / len(wanted)

    return check


def _end(phrase: str) -> Check:
    """Ends with a phrase, whatever the case; up to a half where it occurs elsewhere, the later the more."""
    wanted = text("phrase", phrase).strip().lower()

    def check(said: str, finished: bool) -> float:
        said = said.strip().strip('"').rstrip().lower()
        if not finished or said.endswith((wanted, wanted.strip('"'))):
            return 1.0
        at = said.rfind(wanted)
        return (at + len(wanted)) / len(said) / 2 if at >= 0 else 0.0

    return check


def _options(phrases: Sequence[str]) -> Check:
    """Contains one of the phrases, word for word; else the longest beginning, in words, of one that it contains."""
    allowed = [phrase.split() for phrase in texts("phrases", phrases)]

    def check(said: str, finished: bool) -> float:
        said = " ".join(said.split())
        best = 0.0
        for phrase in allowed:
            there = next(n for n in range(len(phrase), -1, -1) if " ".join(phrase[:n]) in said)
            best = max(best, there / len(phrase))
        return best

    return check


def _two_answers(separator: str = "******") -> Check:
    """Two different answers with the separator between them."""
    divider = text("separator", separator)
    two = Bounds(2, 2)

    def check(said: str, finished: bool) -> float:
        parts = [part.strip() for part in said.split(divider)]
        answers = [part for part in parts if part]
        inner = sum(not part for part in parts[1:-1])
        return two.closeness(len(answers)) / (1 + inner) / (1 + (len(answers) == 2 and answers[0] == answers[1]))

    return check


def _json(schema: dict[str, Any] | None = None) -> Check:
    """One JSON document, perhaps in a code fence, that fits a schema.

    Up to the first fault its share of the text counts, half of that where there is a schema; a document with n faults
    against the schema counts (1 + 1 / (1 + n)) / 2. A beginning that can still become one is not at fault.
    """
    validator = None if schema is None else _validator(schema)

    def check(said: str, finished: bool) -> float:
        if finished:
            said = unfenced(said).strip()
        else:
            bare = said.lstrip()
            if "```json\n".startswith(bare.lower()) or "```\n".startswith(bare):
                return 1.0
            said = unfenced(said).lstrip()
        valid, complete = json_progress(said)
        if not complete:
            if valid == len(said) and not finished:
                return 1.0
            return valid / (len(said) + 1) / (1 if validator is None else 2)
        if validator is None:
            return 1.0
        import json

        faults = sum(1 for _ in validator.iter_errors(json.loads(said)))
        return (1 + 1 / (1 + faults)) / 2

    return check


def _validator(schema: dict[str, Any]) -> Any:
    jsonschema = needed("jsonschema", "rewards")
    kind = jsonschema.validators.validator_for(table("schema", schema, "a JSON schema"))
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise OptionError("schema", schema, f"a JSON schema ({error.message})") from error
    return kind(schema)


def _case(style: str = "upper") -> Check:
    """All letters that have a case are upper or lower; the share that is."""
    upper = choice("style", style, ("upper", "lower")) == "upper"

    def check(said: str, finished: bool) -> float:
        right = sum(map(str.isupper if upper else str.islower, said))
        wrong = sum(map(str.islower if upper else str.isupper, said))
        return right / (right + wrong) if right + wrong else float(not finished)

    return check


def _language(code: str) -> Check:
    """Written in a language (ISO 639-1, as langdetect names them); its probability where another is likelier."""
    known = needed("langdetect.detector_factory", "rewards")
    known.init_factory()
    factory = known._factory
    wanted = choice("code", code, tuple(factory.get_lang_list()))

    def check(said: str, finished: bool) -> float:
        detector = factory.create()
        detector.seed = 0  # it samples
        detector.append(said)
        try:
            found = detector.get_probabilities()
        except known.LangDetectException:  # no letters
            return float(not finished)
        if found and found[0].lang == wanted:
            return 1.0
        return min((language.prob for language in found if language.lang == wanted), default=0.0) / 2

    return check


KINDS: dict[str, Callable[..., Check]] = {
    **{unit: _counting(unit) for unit in UNITS if unit != "paragraphs"},
    "paragraphs": _paragraphs,
    "paragraph_start": _paragraph_start,
    "sections": _sections,
    "keyword": _keyword,
    "keywords": _wanted,
    "banned": _banned,
    "letter": _letter,
    "regex": _regex,
    "title": _title,
    "postscript": _postscript,
    "quotation": _quotation,
    "start": _start,
    "end": _end,
    "options": _options,
    "two_answers": _two_answers,
    "json": _json,
    "case": _case,
    "language": _language,
}
"""Checks by the name that configuration gives them."""
