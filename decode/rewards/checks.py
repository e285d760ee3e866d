"""Checks of a text, each a number in [0, 1]: 1 exactly where the text keeps the rule, less the further it is from it.

Partial credit gives a search a direction where no candidate keeps a rule yet. A beginning of an answer (``finished``
false) is rated by what it may still become where only the end can decide, and as it stands otherwise.

The kinds that IFEval's instructions ask for keep a rule exactly where its public checkers say so (Zhou et al., 2023;
the files in lm-eval), but for their reading keywords and markers as regular expressions: here they are plain texts. A
check takes time linear in the text and never raises, whatever the text; those with an expression of the user's
(``apart``) can promise neither, and run in a process of their own.

Every function here makes a check from its arguments; ``KINDS`` names them for configuration.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.decode.rewards.json_schema import schema_validator
from trimtab.decode.rewards.json_text import Progress, json_progress, may_open, unfenced, unopened
from trimtab.decode.rewards.measures import UNITS, Bounds, has_title, paragraphs
from trimtab.decode.rewards.options import OptionError, choice, flag, needed, pattern, text, texts, whole

__all__ = ["KINDS", "Check", "apart"]

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
    wanted = text("word", word).lower()
    bounds = Bounds.of(exactly=paragraphs) if paragraphs is not None else Bounds(number)

    def check(said: str, finished: bool) -> float:
        parts = said.split("\n\n")
        count = sum(not part.isspace() for part in parts if part)
        begins = number <= count and _first_word(parts[number - 1]) == wanted
        open_ = not finished and (count < number or (number == len(parts) and _may_begin(parts[-1], wanted)))
        return (bounds.closeness(count) + (open_ or begins)) / 2

    return check


def _first_word(paragraph: str) -> str:
    """In lower case, up to the first punctuation mark; quotes before it are left out."""
    first = next(iter(paragraph.split(None, 1)), "").lstrip("'").lstrip('"')
    word = re.split("[.,?!'\"]", first, maxsplit=1)[0]
    return "".join(map(str.lower, word))  # not word.lower(), to which a sigma at the end is another letter


def _may_begin(paragraph: str, word: str) -> bool:
    """Whether it has nothing but what may become ``word``."""
    begun = paragraph.lstrip()
    return not begun or (not begun[-1].isspace() and word.startswith(begun.lstrip("'").lstrip('"').lower()))


def _sections(name: str, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None) -> Check:
    """So many sections that begin with ``name`` and a number, e.g. "SECTION 1"."""
    begins = re.compile(rf"{re.escape(text('name', name).strip())}\s?\d+")
    bounds = Bounds.of(at_least, at_most, exactly)
    return lambda said, finished: bounds.closeness(len(begins.findall(said)))


def _keyword(
    keyword: str, at_least: int | None = None, at_most: int | None = None, exactly: int | None = None
) -> Check:
    """A word or phrase so many times, whatever its case, also inside longer words."""
    wanted, bounds = _any_case(text("keyword", keyword).strip()), Bounds.of(at_least, at_most, exactly)
    return lambda said, finished: bounds.closeness(len(wanted.findall(said)))


def _wanted(keywords: Sequence[str]) -> Check:
    """All of these occur, whatever their case; the share that does."""
    wanted = [_any_case(word) for word in texts("keywords", keywords)]
    return lambda said, finished: sum(word.search(said) is not None for word in wanted) / len(wanted)


def _any_case(phrase: str) -> re.Pattern[str]:
    return re.compile(re.escape(phrase), re.IGNORECASE)


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
    return lambda said, finished: float(has_title(said))


def _postscript(marker: str = "P.S.") -> Check:
    """A postscript that begins with ``marker``, whatever the case; white space may follow each full stop in it."""
    literal = re.escape(text("marker", marker).strip().lower())
    begins = re.compile(re.sub(r"\\\.(?=.)", r"\\.\\s?", literal))
    return lambda said, finished: float(not finished or begins.search(said.lower()) is not None)


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
    """Ends with a phrase, whatever the case, but for quotation marks after it.

    Up to a half where the phrase occurs elsewhere, the later the more.
    """
    wanted = text("phrase", phrase).strip().lower()
    return lambda said, finished: 1.0 if not finished else _ended(said.strip().strip('"').lower(), (wanted,))


def _ends_with(phrase: str) -> Check:
    """As ``end``; white space may stand before quotation marks, and the phrase's own last ones may be missing."""
    wanted = text("phrase", phrase).strip().lower()
    ends = (wanted, wanted.strip('"'))
    return lambda said, finished: 1.0 if not finished else _ended(said.strip().strip('"').rstrip().lower(), ends)


def _ended(said: str, ends: tuple[str, ...]) -> float:
    if said.endswith(ends):
        return 1.0
    at = said.rfind(ends[0])
    return (at + len(ends[0])) / len(said) / 2 if at >= 0 else 0.0


def _options(phrases: Sequence[str]) -> Check:
    """Contains one of the phrases, character for character; else the longest beginning of one, in words."""
    allowed = [_by_words(phrase.strip()) for phrase in texts("phrases", phrases)]
    return lambda said, finished: max(_share_found(beginnings, said) for beginnings in allowed)


def _by_words(phrase: str) -> list[str]:
    """Its beginnings that end with a word, shortest first."""
    return [phrase[: word.end()] for word in re.finditer(r"\S+", phrase)]


def _share_found(beginnings: Sequence[str], said: str) -> float:
    return next((n / len(beginnings) for n in range(len(beginnings), 0, -1) if beginnings[n - 1] in said), 0.0)


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


def _json(schema: dict[str, Any] | None = None, nan: bool = False) -> Check:
    """One JSON document, perhaps in a code fence, that fits a schema; with ``nan``, NaN and Infinity are numbers too.

    Up to the first fault its share of the text counts, half of that where there is a schema; a document with n faults
    against the schema counts (1 + 1 / (1 + n)) / 2, and 1 / 2 where it can't be held against the schema (nested deeper
    than Python reads, say). A beginning that can still become one is not at fault.
    """
    flag("nan", nan)
    validator = None if schema is None else schema_validator(schema)

    def check(said: str, finished: bool) -> float:
        bare = unfenced(said) if finished else unopened(said)
        if not finished and may_open(said.strip()):
            return 1.0
        progress = _json_read(bare, nan, finished)
        if not progress.complete:
            if progress.valid == len(bare) and not finished:
                return 1.0
            return progress.valid / (len(bare) + 1) / (1 if validator is None else 2)
        return 1.0 if validator is None else (1 + _fit(validator, bare[: progress.valid])) / 2

    return check


def _json_read(said: str, nan: bool, finished: bool) -> Progress:
    found = json_progress(said, nan)
    closing = len(said) - len(said.rstrip("`"))
    if finished or found.valid == len(said) or closing > 3:
        return found
    before = json_progress(said.rstrip("`"), nan)  # where a fence is being closed
    return before if before.complete else found


def _fit(validator: Any, document: str) -> float:
    """1 / (1 + faults); 0 where Python can't read the document, or can't hold it against the schema."""
    try:
        return 1 / (1 + sum(1 for _ in validator.iter_errors(json.loads(document))))
    except Exception:  # RecursionError, OverflowError, ...: what an answer says ends no request
        return 0.0


def _case(style: str = "upper", language: str | None = None) -> Check:
    """All letters that have a case are upper or lower; the share that is. With ``language``, half for being in it."""
    upper = choice("style", style, ("upper", "lower")) == "upper"
    written_in = None if language is None else _language(language, "language")

    def check(said: str, finished: bool) -> float:
        small, large = sum(map(str.islower, said)), sum(map(str.isupper, said))
        titled = sum(map(str.istitle, said)) - large  # letters that are both, such as ǅ, are neither
        cased = small + large + titled
        right = (large if upper else small) / cased if cased else float(not finished)
        if written_in is None:
            return right
        # Where there is nothing of the case, the language can't make up for it.
        return (right + (written_in(said, finished) if right else 0.0)) / 2

    return check


_READ_FOR_LANGUAGE = 20_000  # characters; langdetect itself reads 10,000 of what is left without links


def _language(code: str, key: str = "code") -> Check:
    """Written in a language (ISO 639-1, as langdetect names them); its probability where another is likelier.

    A text without letters is in any language, an empty one in none.
    """
    known = needed("langdetect.detector_factory", "rewards")
    known.init_factory()
    factory = known._factory
    wanted = choice(key, code, tuple(factory.get_lang_list()))

    def check(said: str, finished: bool) -> float:
        if not said.strip():
            return float(not finished)
        detector = factory.create()
        detector.seed = 0  # it samples
        detector.append(said[:_READ_FOR_LANGUAGE])
        try:
            found = detector.get_probabilities()
        except known.LangDetectException:  # no letters
            return 1.0
        if found and found[0].lang == wanted:
            return 1.0
        return min((language.prob for language in found if language.lang == wanted), default=0.0) / 2

    return check


def apart(kind: str, arguments: Mapping[str, object]) -> bool:
    """Whether a check may take any time: it runs an expression of the user's, or a schema, which may hold some."""
    return kind == "regex" or (kind == "json" and arguments.get("schema") is not None)


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
    "ends_with": _ends_with,
    "options": _options,
    "two_answers": _two_answers,
    "json": _json,
    "case": _case,
    "language": _language,
}
"""Checks by the name that configuration gives them."""
