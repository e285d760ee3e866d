"""Extractors of conclusions: mathematics by its library, plug-ins, and what is refused."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.errors import InvalidRequest, RewardFailed
from trimtab.decode.methods.searches import extractors, mathematics
from trimtab.decode.methods.searches.extractors import conclude, refusal
from trimtab.decode.ops import Call

math = pytest.mark.skipif(not mathematics.available(), reason="needs the extra 'math'")


def answer(coroutine: Coroutine[Any, Any, Any], run: Callable[[Call], Any] = lambda op: op.function(*op.args)) -> Any:
    """What a coroutine returns whose calls ``run`` answers."""
    op = coroutine.send(None)
    try:
        try:
            found = run(op)
        except Exception as error:
            coroutine.throw(error)
        else:
            coroutine.send(found)
    except StopIteration as done:
        return done.value
    raise AssertionError("more than one call")


def grouped(said: list[str]) -> list[int]:
    """Per answer the first one of its conclusion; -1 for none."""
    return [said.index(what) if what else -1 for what in said]


@math
@pytest.mark.parametrize(
    ("texts", "groups"),
    [
        (["0.75", "3/4", r"$\frac34$", "75%", r"\boxed{\frac{3}{4}}", "75"], [0, 0, 0, 0, 0, 5]),
        ([r"\boxed{2\sqrt{3}}", r"The answer is $\sqrt{12}$.", "$3$"], [0, 0, 2]),
        (["so x = 1/2", "The answer is 0.5. That took 3 steps."], [0, 0]),
        ([r"$(x+1)^2$", r"$x^2 + 2x + 1$", r"$x^2 + 1$"], [0, 0, 2]),
        (["no idea", "", "7"], [-1, -1, 2]),
        (["1/3", "0.3", r"$\frac{2}{6}$"], [0, 1, 0]),
    ],
)
def test_equal_values_are_one_vote(texts: list[str], groups: list[int]) -> None:
    assert grouped(answer(conclude("math", texts))) == groups
    turned = grouped(answer(conclude("math", texts[::-1])))[::-1]
    assert [g == h for g in groups for h in groups] == [a == b for a in turned for b in turned]


@math
def test_a_hostile_line_costs_a_moment_and_no_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a text that takes the library for ever, the others are read; without signals all of it is given up."""
    monkeypatch.setattr(mathematics, "_STEP", 0.3)
    monkeypatch.setattr(mathematics, "_ALL", 4.0)
    texts = ["$" + "{" * 3000 + "$", "3/4", r"$9^{9^{9^9}}$", "0.75", r"$9^{9^{9^8}}$", "\ud800", "\0", "1" * 5000]
    began = time.monotonic()
    said = answer(conclude("math", texts))
    assert time.monotonic() - began < 15
    assert said[1] == said[3]
    assert len({said[0], said[1], said[2]}) == 3


@math
def test_it_runs_in_a_process_of_its_own_and_in_threads() -> None:
    seen: list[Call] = []

    def in_thread(op: Call) -> Any:
        seen.append(op)
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(op.function(*op.args)))
        thread.start()
        thread.join()
        return found[0]

    assert grouped(answer(conclude("math", ["1/2", "0.5"]), in_thread)) == [0, 0]
    assert seen[0].where == "process"


@pytest.mark.parametrize("error", [TimeoutError(), RuntimeError("its process ended")])
def test_what_kills_the_process_leaves_the_built_in_rule(error: Exception) -> None:
    calls: list[str] = []

    def run(op: Call) -> Any:
        calls.append(op.where)
        if len(calls) == 1:
            raise error
        return op.function(*op.args)

    coroutine = conclude("math", ["3/4", "0.75"])
    first = coroutine.send(None)
    assert isinstance(first, Call)
    second = coroutine.throw(error)
    assert isinstance(second, Call)
    assert second.where == "thread"
    with pytest.raises(StopIteration) as done:
        coroutine.send(second.function(*second.args))
    assert done.value.value == ["3/4", "3/4"]


def test_without_the_library_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "available", lambda: False)
    said = refusal("math")
    assert said is not None
    assert "trimtab[math]" in said
    assert "auto" in said
    for name in ("auto", "letter", "number", "text"):
        assert refusal(name) is None


PLUG_IN = """
def first_words(texts):
    return [text.split()[0] if text else "" for text in texts]

def wrong(texts):
    return [1 for _ in texts]

def raises(texts):
    raise ZeroDivisionError("by nothing")
"""


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that adds extractors."""
    (tmp_path / "extractors_for_tests.py").write_text(PLUG_IN)
    info = tmp_path / "extractors_for_tests-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extractors-for-tests\nVersion: 1.0\n")
    names = ("first_words", "wrong", "raises")
    lines = [f"{name} = extractors_for_tests:{name}" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[trimtab.extractors]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    extractors._plugins.cache_clear()
    yield
    extractors._plugins.cache_clear()
    sys.modules.pop("extractors_for_tests", None)


@pytest.mark.usefixtures("plugged")
def test_a_package_adds_one_by_an_entry_point() -> None:
    assert refusal("first_words") is None
    assert "first_words" in extractors.extractors()
    assert answer(conclude("first_words", ["four 4", "", "five", "four"])) == ["four", "", "five", "four"]
    for name, said in (("wrong", "no string"), ("raises", "ZeroDivisionError: by nothing")):
        with pytest.raises(RewardFailed, match=f"'{name}'.*{said}"):
            answer(conclude(name, ["a", "b"]))


def test_an_unknown_one_is_refused_with_the_known() -> None:
    said = refusal("maths")
    assert said == f"one of {', '.join(extractors.extractors())}"
    assert refusal(3) == said
    assert InvalidRequest.of("search.best_of_n.extract", "maths", said)
