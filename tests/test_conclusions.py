"""What an answer comes to: the built-in rules of votes, against pairs that do and don't agree, and hostile texts."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.methods.searches.conclusions import auto, letter, number, words
from trimtab.decode.methods.searches.numerals import numerals, plain

AGREE = [
    # as answers put it, and what it is
    (r"\boxed{\frac{3}{4}}", "3/4"),
    (r"So \boxed{4}, no: \boxed{\dfrac34}. I used 2 steps.", "0.75"),
    (r"\boxed{\text{(B)}}", "The answer is (B)."),
    (r"\boxed{x = 7}", "7"),
    (r"\boxed{5\text{ cm}}", "The answer is 5 cm."),
    (r"\fbox{12}", "#### 12"),
    (r"\boxed{\{1, 2\}}", r"$\boxed{\{1,2\}}$"),
    (r"\boxed{\left(1, 2\right)}", r"\boxed{(1,2)}"),
    ("so x = 1/2", "0.5"),
    ("The answer is 42. That took 3 steps.", "42"),
    ("The answer is 42, since 6 * 7 = 42.", "Answer: 42"),
    ("**Answer:** 42", "the final answer is: **42**!"),
    ("The answer to question 3 is 42.", "42"),
    ("Answer:\n42", "42"),
    ("The answer is $x = 7$.", "7"),
    ("The answer is (B).", "B"),
    ("The answer is (B) 42 apples.", "(B)"),
    ("Answer: B", "answer is option B because it fits 2 of 3"),
    ("The correct option is C.", "So it must be (C)."),
    ("B) Paris", "The answer is B."),
    ("2023-10-05", "the answer is 2023-10-05."),
    ("So the answer is 1,200.50.", "1200.5"),
    ("First 3, then 4.", "4"),
    ("It costs $-7.00", "-7"),
    ("It costs -$7", "\u22127"),
    ("75%", "3/4"),
    (r"75\%", "75 percent"),
    ("1 1/2", "1.5"),
    (r"1\frac{1}{2}", "1½"),
    ("2.5e-3", "1/400"),
    ("1{,}200", "1200"),
    ("10-3=7", "7"),
    ("Yes!", "yes"),
    ("The answer is no.", "No."),
    ("The  Cat.\n", "the cat"),
    ("-0", "0"),
    ("007", "7"),
    (".5", "0.50"),
    (r"so x = 2\sqrt{3}", r"\boxed{2 \sqrt{3}}"),
]
DIFFER = [
    ("4", "5"),
    ("-4", "4"),
    ("yes", "no"),
    ("1.5", "15"),
    ("2 or 3", "2"),
    ("75%", "75"),
    ("The answer is 2 or 3", "The answer is 3"),
    (r"\boxed{(1,2)}", r"\boxed{2}"),
    (r"\boxed{2x}", "2"),
    (r"\boxed{2^{10}}", "10"),
    (r"so x = 2\sqrt{3}", "3"),
    ("The answer is a dog", "The answer is (A)."),
    ("The answer is A dog", "A"),
    ("2023-10-05", "2023-10-06"),
    ("2023-10-05", "-5"),
    ("at 10:30", "30"),
    ("H2O", "2"),
    ("version 1.2.3", "3"),
    ("range 3-4", "-4"),
    ("9" * 5000, "9" * 5001),
    ("The answer is (B).", "The answer is (C)."),
    ("b", "The answer is (B)."),
]


@pytest.mark.parametrize(("one", "other"), AGREE)
def test_equal_conclusions(one: str, other: str) -> None:
    assert auto(one) == auto(other)
    assert auto(one)


@pytest.mark.parametrize(("one", "other"), DIFFER)
def test_other_conclusions(one: str, other: str) -> None:
    assert auto(one) != auto(other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is (B).", "B"),
        ("(A) is too large. (C) is too small. So (B).", "B"),
        ("b) no, (c)", "C"),
        ("D. Because it is.", "D"),
        ("Reasons first.\nE", "E"),
        ("I pick option F, as 3 > 2.", "F"),
        (r"\boxed{\text{B}}", "B"),
        ("The answer is A dog.", ""),
        ("The answer is I think a cat.", ""),
        ("a dog and I", ""),
        ("42", ""),
        ("The best choice is A.", "A"),
        ("The answer is clearly B, not A.", "B"),
    ],
)
def test_letters(text: str, said: str) -> None:
    assert letter(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("The answer is 42. That took 3 steps.", "42"),
        (r"\boxed{3 + 4 = 7}", "7"),
        ("The answer is that John has 5 apples.", "5"),
        ("The answer is a dog. It is 3 years old.", "3"),
        ("no number", ""),
        ("2023-10-05", ""),
    ],
)
def test_numbers(text: str, said: str) -> None:
    assert number(text) == said


def test_words() -> None:
    assert words("The answer, is: 4!") == words("the answer is 4") == "the answer is 4"
    assert words("...") == ""


@given(st.fractions(max_denominator=1000), st.sampled_from("abcdef"))
def test_every_spelling_of_a_fraction_is_the_fraction(value: Fraction, form: str) -> None:
    """Against ``fractions``: each spelling reads as the number that it spells."""
    sign, top, bottom = "-" if value < 0 else "", abs(value.numerator), value.denominator
    whole, rest = divmod(top, bottom)
    texts = {
        "a": f"{sign}{top}/{bottom}",
        "b": rf"{sign}\frac{{{top}}}{{{bottom}}}",
        "c": rf"$\dfrac{{{sign}{top}}}{{{bottom}}}$",
        "d": f"{sign}{top * 100}/{bottom} %",
        "e": f"{sign}{whole} {rest}/{bottom}",
        "f": rf"it is {sign}{whole:,} \frac{{{rest}}}{{{bottom}}}." if whole < 1000 else f"{sign}{top}/{bottom}",
    }
    assert [found.value for found in numerals(plain(texts[form]))] == [str(value)]


@given(st.integers(-(10**9), 10**9), st.integers(0, 6))
def test_every_decimal_is_its_value(units: int, places: int) -> None:
    value = Fraction(units, 10**places)
    whole, rest = divmod(abs(units), 10**places)
    text = f"{'-' if units < 0 else ''}{whole:,}" + (f".{rest:0{places}}" if places else "")
    assert auto(f"It costs {text} in all.") == auto(text) == str(value)


PIECES = [
    *(
        "\\boxed{",
        "{",
        "}",
        "\\frac{1}",
        "\\frac",
        "answer is ",
        "answer: ",
        "#### ",
        "1,111,",
        "1-",
        "1 ",
        "5 / ",
        "= ",
    ),
    *("\n", " ", ".", "(A) ", "option ", "\\text{", "**", "1½", "½", "$", "-", "%", "\\", "é", "\ud800", "\0", "1e999"),
    *("-1/0 ", "٣", "²", "A", "9"),
]


@pytest.mark.parametrize("piece", PIECES)
def test_time_is_linear(piece: str) -> None:
    """A pattern that looks at what follows from every place would take minutes."""
    text = piece * (10_000 // len(piece))
    began = time.perf_counter()
    for rule in (auto, letter, number, words):
        for hostile in (text, "5" + text + "}"):
            assert isinstance(rule(hostile), str)
    assert time.perf_counter() - began < 3


def test_no_text_is_too_strange() -> None:
    rng = random.Random(1)
    for _ in range(600):
        text = "".join(rng.choices(PIECES, k=rng.randint(0, 12)))
        for rule in (auto, letter, number, words):
            assert isinstance(rule(text), str)
