r"""What a finished text comes to, in a form that texts of one conclusion share.

The built-in rules of majority votes; they need no library, and read a text in time proportional to its length. Where an
answer says where its conclusion is (``\boxed{...}``, "#### 42", "The answer is ..."), that place alone is read, the
last of several; otherwise the last number of the text, a choice in parentheses, or all of its words.
"""

from __future__ import annotations

import re

from trimtab.decode.methods.searches.numerals import Numeral, numerals, plain

__all__ = ["auto", "letter", "number", "words"]

_WORD = re.compile(r"\w+")
_MARKED = re.compile(
    r"""
      \#{4} [ ]?
    | \b (?: answers? | (?:correct|right|best)\s(?:option|choice) ) \b [^.\n=:#]{0,60}? (?: \b(?:is|are|be)\b | [:=] )
      [\s:*]*+ (?: \b(?:is|be)\b [\s:*]*+ )?+
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BRACE = re.compile(r"\\[{}]|\\(?:boxed|fbox)\s*+\{|[{}]")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|[\"'”’)*]+(?:\s|$))|\n")
_CLAUSE_END = re.compile(r"[,;]\s(?!\s*[-\d$\\+.(])|\b(?:because|since|as|so|which)\b", re.IGNORECASE)
_EQUALS = re.compile(r"(?<![<>=!:])=(?!=)|\\(?:approx|equiv)\b|≈")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s?\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:left|right|displaystyle|quad|qquad|[,;:! ])|[\s$]|\\[()\[\]]|~")
_CHOICE = re.compile(r"\W*+(?:(?:option|choice|answer)\W++)?+([A-Z])(?:\W*+$|[).:]|,?\s+$)")
_NAMED = re.compile(
    r"(?<!\w)\(([A-Za-z])\)|\b(?i:option|choice)\W{1,3}([A-Z])\b|^[^\w\n]*+([A-Z])(?=[^\w\n]*+$|[).:])", re.MULTILINE
)
_IN_PARENTHESES = re.compile(r"(?<!\w)\(([A-Z])\)")
_LETTER = re.compile(r"(?<![\w'’\\])(?:\(([A-Za-z])\)|([A-Z])(?![\w'’]))")
_UNIT = re.compile(r"\s*(?:[^\W\d_]{2,}[\w\s./²³°-]*|[°%]\s*\w?)?\.?\s*")


def auto(text: str) -> str:
    """A choice, a number, a formula or words: whatever the text concludes with; empty where it says nothing."""
    text = plain(text)
    boxed = _boxed(text)
    if boxed is not None:
        return _formula(boxed)
    marked = _marked(text)
    if marked is not None:
        return _clause(marked)
    if choice := _choice(text):
        return choice
    found = numerals(text)
    if not found:
        named = _IN_PARENTHESES.findall(text)
        return named[-1] if named else words(text)
    return _equation(text, found[-1]) or found[-1].value


def letter(text: str) -> str:
    """The choice that the text names, as a capital letter; empty where it names none.

    From where the answer is marked, if it is; else the last letter in parentheses, after "option" or "choice", or alone
    on a line or at its beginning ("B. because ..."). An article ("a", "A dog") or "I" in a sentence is none.
    """
    text = plain(text)
    place = _boxed(text)
    if place is None:
        place = _marked(text)
    if place is not None:
        place = _unwrapped(place).strip()
        if choice := _choice(place):
            return choice
        if named := _IN_PARENTHESES.findall(place):
            return str(named[-1])
        stand = [match for match in _LETTER.finditer(place) if not _is_word(match, place)]
        if stand:
            return (stand[0][1] or stand[0][2]).upper()
    return _last_choice(text)


def number(text: str) -> str:
    """The last number of where the answer is marked, or of the text; empty where there is none."""
    text = plain(text)
    for place in (_boxed(text), _marked(text), text):
        if place is not None and (found := numerals(_unwrapped(_right_side(place)))):
            return found[-1].value
    return ""


def words(text: str) -> str:
    """The words in lower case, without punctuation: "Yes!" and "yes" agree."""
    return " ".join(_WORD.findall(text.casefold()))


# ----------------------------------------------------------------------------------------------- where the answer is


def _boxed(text: str) -> str | None:
    """What is in the last box that is closed; of nested ones the outermost."""
    found: tuple[int, int] | None = None
    starts: list[int | None] = []  # of what is open: None for a brace that is no box
    for match in _BRACE.finditer(text):
        if match.group() == "}":
            start = starts.pop() if starts else None
            found = found if start is None else (start, match.start())
        elif not match.group().startswith(("\\{", "\\}")):
            starts.append(match.end() if len(match.group()) > 1 else None)
    return text[slice(*found)] if found else None


def _marked(text: str) -> str | None:
    """The sentence after the last mark of an answer that has one."""
    for match in reversed(list(_MARKED.finditer(text))):
        end = _SENTENCE_END.search(text, match.end())
        if said := text[match.end() : end.start() if end else len(text)].strip():
            return said
    return None


# ------------------------------------------------------------------------------------------------------ what it says


def _formula(text: str) -> str:
    """A formula in its one form, or the number that it is."""
    text = _right_side(_unwrapped(text)).strip().strip("$").strip()
    if choice := _choice(text):
        return choice
    found = numerals(text)
    if len(found) == 1 and _alone(found[0], text):
        return found[0].value
    if not re.search(r"[\\^_+*/=<>(){}\[\]|\d]", text):
        return words(text)
    return re.sub(r"\\[dt]frac", r"\\frac", _SPACING.sub("", text)).rstrip(".")


def _clause(text: str) -> str:
    """What a clause says that gives an answer: a choice, a number, a formula, or its words."""
    if choice := _choice(text):
        return choice
    if end := _CLAUSE_END.search(text):
        text = text[: end.start()] or text
        if choice := _choice(text):
            return choice
    right = _right_side(text)
    if re.search(r"\\|\^", right):
        return _formula(right)
    found = numerals(right)
    return found[0].value if len(found) == 1 else words(right) or words(text)


def _equation(text: str, last: Numeral) -> str | None:
    """The right side of the equation that the text's last number is in, where it is more than a number."""
    equals = [match.end() for match in _EQUALS.finditer(text)]
    if not equals or last.start < equals[-1]:
        return None
    end = _SENTENCE_END.search(text, equals[-1])
    right = text[equals[-1] : end.start() if end else len(text)]
    return _formula(right) if last.start < equals[-1] + len(right) and re.search(r"\\[a-z]|\^", right) else None


def _alone(found: Numeral, text: str) -> bool:
    """Whether there is nothing beside a number but its unit."""
    return not text[: found.start].strip("$€£¥ ") and _UNIT.fullmatch(text, found.end) is not None


def _right_side(text: str) -> str:
    """What stands after the last sign of equality."""
    *_, last = (0, *(match.end() for match in _EQUALS.finditer(text)))
    return text[last:]


def _unwrapped(text: str) -> str:
    return _WRAPPER.sub(r" \1", text).strip()


# --------------------------------------------------------------------------------------------------------- choices


def _choice(text: str) -> str | None:
    """A text that begins with, or is, one choice: "B", "(B)", "B) Paris", "option B"."""
    match = _CHOICE.match(_unwrapped(text))
    return match[1] if match else None


def _last_choice(text: str) -> str:
    found = _NAMED.findall(text)
    return "".join(found[-1]).upper() if found else ""


def _is_word(match: re.Match[str], text: str) -> bool:
    """Whether a capital is an article or a pronoun: "A dog", "I think"."""
    return match[2] in ("A", "I") and re.match(r"\s+[a-z]", text[match.end() :]) is not None
