"""Rules of IFEval's instructions against its public checkers, on texts where the two could differ.

Which texts keep a rule was computed by the checkers of lm-eval 0.4.13 with nltk 3.10.4 and langdetect 1.0.9 (seed 0),
with sentences and words split by the plain rules that ``bench/nudging/ifeval.py`` gives them.
"""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.bench.searches.constraints import constraints_of
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.constraints import Constraints

# Instruction, its arguments, texts that keep it, texts that don't.
EXPECTED: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["sea", "day"]},
     ["Sea day", "seaside DAYS", "ſea day", "sea\nday"],
     ["sea", "s ea day"]),
    ("keywords:forbidden_words", {"forbidden_words": ["sea", "yes"]},
     ["seaside", "yes_", "_yes", "yés"],
     ["Sea.", "a-yes-b", "ſea", "YES!", "seá"]),
    ("keywords:frequency", {"keyword": "sea", "relation": "at least", "frequency": 2},
     ["seaSEA", "seasea", "ſea sea"],
     ["sea", "s-ea sea"]),
    ("keywords:frequency", {"keyword": "aa", "relation": "less than", "frequency": 2},
     ["aaa", "a a a a"],
     ["aaaa", "Aa aA"]),
    ("keywords:letter_frequency", {"letter": "i", "let_relation": "at least", "let_frequency": 2},
     ["iI", "İi", "I.i"],
     ["ıi", "i"]),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 2},
     ["a-b", "नमस्ते दुनिया", "Ⓐ Ⓑ", "don't", "1 . 2"],
     ["a_b", "क्या", "ab"]),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 2},
     ["क्या", "สวัสดี", "...", "éé"],
     ["a.b"]),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2},
     ["One. Two", "Dr. No", "Why?! No.", "... ...", ".\n.", "a.\xa0b"],
     ['He said "no." Then he left.', "a.b", "One.) Two"]),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 2},
     ['"Go." "No."', "a.  ", "No end"],
     ["One. Two.", ". ."]),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2},
     ["a***b", "a\n***\nb", "***a***b***", "a****b"],
     ["a******b", "a*** ***b", "a\n\nb", "***\na\n***\n \n***\nb"]),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Elm"},
     ["a\n\nelm b", "a\n\n'Elm, b", 'a\n\n"elm"', "a\n\n\nelm", 'a\n\n\'"elm', "a\n\nELM!b"],
     ["a\n\n(elm)", "a\n\nelm-tree", "a\n\n\n\nelm", "a\n \nelm", "a\n\nelm\n\nb", "\n\nelm", 'a\n\n"\'elm']),
    ("detectable_content:number_placeholders", {"num_placeholders": 2},
     ["[][]", "[a]\n[b]"],
     ["[[a]b]", "[a\n][b]", "[[[]", "[a] ]] [", "[a][\n]"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."},
     ["p.s.", "P. S. more", "P.\nS.", "aP.S.b", "P.P.S."],
     ["P .S.", "P.S", "P.  S."]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"},
     ["P.P.S", "p. p. sea", "P.P.P.S", "P.\tP.\nS"],
     ["P.PS", "PP.S"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2},
     ["- \n- two", "* a\n* b", "*\n* b\n- c", "**a\n- b\n- c", "-\n\n\n  -", "---\n- a", "*a* b\n*c",
      "- a\r- b\n- c", "* a\n\n \n\t* b", "\x0b- a\n\xa0- b", "a - b\n- c\n- d"],
     ["• a\n• b", "*"]),
    ("detectable_format:constrained_response", {},
     ["My answer is yes.", "So: My answer is no. Bye"],
     ["My answer is  no.", "my answer is no.", "My answer is maybe", "My\nanswer is yes."]),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2},
     ["*a* *b*", "**a** **b**", "***a***", "*a**b*", "*a*b*c*", "** ** *a* *b*"],
     ["**a**", "* * *a*", "*a\nb* *c*", "****", "***a* b***"]),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2},
     ["SECTION 1 SECTION 2", "SECTION1SECTION2", "SECTION\n1\nSECTION\t2", "SECTION ١ SECTION 2"],
     ["section 1 section 2", "SECTION  1 SECTION 2", "SECTION SECTION 1", "SECTION 1.2"]),
    ("detectable_format:json_format", {},
     ["{}", "{}```", "```json```{}", "```Json\n[1]\n```", "NaN", "[-Infinity]", "\xa0{}\x0b", "1e999"],
     ["```jSON\n[1]\n```", "``` json\n{}", "01", "\ufeff{}", "{}\n{}", "'a'",
      "[١]", '"\t"', "nan", "```json", "````{}"]),
    ("detectable_format:title", {},
     ["<<a>>", "<<>a>>", "<<<a>>>", "a<<b>>c", "<<>><<a>>"],
     ["<<>>", "<<<>>>", "<< >>", "<<a>", "<<a\nb>>", ">><<", "<<\x0b>>"]),
    ("combination:two_responses", {},
     ["a******b", "a*******b", "******a******b", "a******b******"],
     ["a******a", "a************b", "a****** ******b", "a ******a "]),
    ("combination:repeat_prompt", {"prompt_to_repeat": 'Say "it". '},
     ['say "it". It', '  SAY "IT".'],
     ["Say it.", '"Say "it"."', 'Say  "it".']),
    ("startend:end_checker", {"end_phrase": "The end."},
     ["So, the end.", '"The END."', 'The end."\n', 'the end.""'],
     ['The end. "', "The end", "The end.!", "'the end.'"]),
    ("startend:quotation", {},
     ['"a"', ' "a" ', '""', '"a" "b"'],
     ['"', '"a', "“a”"]),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2},
     ["I AM", "I'M", "A-B", "A1 B", "Ⓐ Ⓑ", "É È"],
     ["A_B", "ǅ A", "NASA Esa"]),
    ("change_case:english_capital", {},
     ["THIS IS A TEXT ABOUT THE SEA", "Ⓐ"],
     ["This IS A TEXT ABOUT THE SEA", "DIES IST EIN TEXT ÜBER DAS MEER", "123", "ǅ THIS IS A TEXT ABOUT THE SEA"]),
    ("change_case:english_lowercase", {},
     ["this is a text about the sea", "ⓐ"],
     ["this is a Text about the sea", "dies ist ein text über das meer", "123"]),
    ("language:response_language", {"language": "de"},
     ["Dies ist ein kurzer Text über das Meer.", "123", "...", "http://a.b"],
     ["This is a short text about the sea."]),
    ("punctuation:no_comma", {},
     ["a", "a，b", "a;b"],
     ["a,b"]),
]  # fmt: skip


def test_every_instruction_is_here() -> None:
    assert len({name for name, *_ in EXPECTED}) == 25


@pytest.mark.parametrize(("name", "arguments", "keeps", "breaks"), EXPECTED, ids=[name for name, *_ in EXPECTED])
def test_rules_say_what_the_public_checkers_say(
    name: str, arguments: dict[str, Any], keeps: list[str], breaks: list[str]
) -> None:
    if "language" in name or "english" in name:
        pytest.importorskip("langdetect")
    row = {"prompt": "p", "instruction_id_list": [name], "kwargs": [arguments]}
    rule = Constraints(constraints_of(row))
    for texts, kept in ((keeps, True), (breaks, False)):
        for text in texts:
            (credit,) = rule.credits(Sample("p", text))
            assert (credit == 1) is kept, text
