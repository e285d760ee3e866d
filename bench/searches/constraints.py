"""The checkable instructions of IFEval as constraints of the project's own rewards.

Rows name their constraints as the data set does (Zhou et al., arXiv:2311.07911); here each becomes a rule of
``trimtab.decode.rewards.constraints``. The public checkers only score (``ifeval.py``); a search sees these rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.rewards.constraints import Constraints

__all__ = ["constraints_of", "reward_for"]

Rule = dict[str, Any]

_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")  # the only ones the data set asks for
_UNITS = {
    "length_constraints:number_words": ("words", "num_words"),
    "length_constraints:number_sentences": ("sentences", "num_sentences"),
}


def constraints_of(row: Mapping[str, Any]) -> list[Rule]:
    """The rules of a row with ``instruction_id_list`` and ``kwargs``, in order.

    Raises:
        InvalidRequest: the row lacks them, or names a constraint that isn't known.
    """
    try:
        names, arguments = row["instruction_id_list"], row["kwargs"]
        return [_rule(name, own or {}) for name, own in zip(names, arguments, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        accepted = f"a row with instruction_id_list and kwargs of IFEval ({error!r})"
        raise InvalidRequest.of("data", sorted(row), accepted) from error


def reward_for(rows: Iterable[Mapping[str, Any]], strict: float = 0.5) -> Constraints:
    """One reward that knows the rules of every row's prompt."""
    return Constraints(by_prompt={row["prompt"]: constraints_of(row) for row in rows}, strict=strict)


def _rule(name: str, own: Mapping[str, Any]) -> Rule:
    if name in _UNITS:
        kind, key = _UNITS[name]
        return {"kind": kind, **_bounds(own["relation"], own[key])}
    match name.partition(":")[2]:
        case "existence":
            return {"kind": "keywords", "keywords": own["keywords"]}
        case "forbidden_words":
            return {"kind": "banned", "keywords": own["forbidden_words"]}
        case "frequency":
            return {"kind": "keyword", "keyword": own["keyword"], **_bounds(own["relation"], own["frequency"])}
        case "letter_frequency":
            return {"kind": "letter", "letter": own["letter"], **_bounds(own["let_relation"], own["let_frequency"])}
        case "response_language":
            return {"kind": "language", "code": own["language"]}
        case "number_paragraphs":
            return {"kind": "paragraphs", "exactly": own["num_paragraphs"], "divider": "***"}
        case "nth_paragraph_first_word":
            rule: Rule = {"kind": "paragraph_start", "number": own["nth_paragraph"], "word": own["first_word"]}
            return {**rule, "paragraphs": own["num_paragraphs"]}
        case "number_placeholders":
            return {"kind": "placeholders", "at_least": own["num_placeholders"]}
        case "postscript":
            return {"kind": "postscript", "marker": own["postscript_marker"]}
        case "number_bullet_lists":
            return {"kind": "bullets", "exactly": own["num_bullets"]}
        case "constrained_response":
            return {"kind": "options", "phrases": _CHOICES}
        case "number_highlighted_sections":
            return {"kind": "highlights", "at_least": own["num_highlights"]}
        case "multiple_sections":
            return {"kind": "sections", "name": own["section_spliter"], "at_least": own["num_sections"]}
        case "json_format":
            return {"kind": "json", "nan": True}
        case "title":
            return {"kind": "title"}
        case "two_responses":
            return {"kind": "two_answers"}
        case "repeat_prompt":
            return {"kind": "start", "phrase": own["prompt_to_repeat"]}
        case "end_checker":
            return {"kind": "end", "phrase": own["end_phrase"]}
        case "quotation":
            return {"kind": "quotation"}
        case "capital_word_frequency":
            return {"kind": "capital_words", **_bounds(own["capital_relation"], own["capital_frequency"])}
        case "english_capital":
            return {"kind": "case", "style": "upper", "language": "en"}
        case "english_lowercase":
            return {"kind": "case", "style": "lower", "language": "en"}
        case "no_comma":
            return {"kind": "commas", "exactly": 0}
    raise ValueError(f"unknown constraint {name!r}")


def _bounds(relation: str, number: int) -> dict[str, int]:
    return {"at_least": number} if relation == "at least" else {"at_most": number - 1}
