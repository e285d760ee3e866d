"""What an answer would be after a few more tokens: as it then is, and at the price of those tokens alone."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.methods.answer import Answer, Preview
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import FinishReason, Token
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Filters, Key

PIECES = [b"a", b"b", b"ab", b"aba", b"\xc3\xa9", b"\xc3", b"\xa9", b"\xff", b" ", b"<pad>", b"<eos>"]
EOS, PAD, HALT = 10, 9, 8


def vocabulary(model: str) -> Any:
    return SimpleNamespace(eos_token_ids=(EOS,), special_ids=frozenset((EOS, PAD)), piece=PIECES.__getitem__)


def new_answer(stopping: Stopping) -> Answer:
    context: Any = SimpleNamespace(vocabulary=vocabulary, out_of_time=lambda: False)
    request = Request(model="base", prompt="p", stopping=stopping)
    return Answer(context, request, Drawing(Filters(), Filters(), Key(0)), emit=lambda chunk: None)


def tokens_of(ids: list[int]) -> list[Token]:
    return [Token(i, PIECES[i], "base") for i in ids]


def state(answer: Answer | Preview) -> tuple[Any, ...]:
    return answer.text, tuple(answer.tokens), answer.done, answer.finish_reason, answer.stop_match


IDS = st.lists(st.integers(0, EOS), max_size=12)
STOPPINGS = st.builds(
    Stopping,
    max_new_tokens=st.integers(1, 20),
    min_new_tokens=st.integers(0, 1),
    stop=st.lists(st.sampled_from(["aba", "bb", "é", "b a", "\ufffd"]), max_size=2, unique=True).map(tuple),
    stop_token_ids=st.sampled_from([(), (HALT,)]),
    include_stop=st.booleans(),
    ignore_eos=st.booleans(),
)


@settings(max_examples=100)
@given(STOPPINGS, IDS, st.lists(IDS, min_size=1, max_size=3), IDS)
def test_a_preview_is_what_the_answer_then_is(
    stopping: Stopping, written: list[int], tried: list[list[int]], later: list[int]
) -> None:
    answer = new_answer(stopping)
    for token in tokens_of(written):
        answer.write([token])
    before = state(answer)
    previews = [answer.preview(tokens_of(ids)) for ids in tried]
    assert state(answer) == before
    forks = [answer.fork(Key(1)) for _ in tried]
    for fork, ids in zip(forks, tried, strict=True):
        fork.write(tokens_of(ids))
    expected = [state(fork) for fork in forks]
    assert list(map(state, previews)) == expected
    answer.write(tokens_of(later))  # and stays that, wherever the answer goes
    assert list(map(state, previews)) == expected
    answer.adopt(new_answer(stopping))
    assert list(map(state, previews)) == expected


def test_the_answer_after_a_preview_is_as_without_one() -> None:
    stopping = Stopping(max_new_tokens=50, stop=("abab",))
    one, other = new_answer(stopping), new_answer(stopping)
    for token in tokens_of([0, 1, 5, 6, 0, 4, 1, 3, 1, 0]):
        one.preview([token])
        one.write([token])
        one.preview(tokens_of([1, 0, 1]))
        other.write([token])
        assert state(one) == state(other)
    assert one.finish_reason is FinishReason.STOP


def test_a_preview_costs_its_own_tokens() -> None:
    """A longer answer makes it no dearer; copies of what is written would."""
    price = {}
    for length in (200, 100_000):
        answer = new_answer(Stopping(max_new_tokens=10**6))
        for token in tokens_of([0]) * length:
            answer.write([token])
        tried = tokens_of([1])
        answer.preview(tried)
        times = []
        for _ in range(40):
            began = time.thread_time_ns()
            for _ in range(4):
                answer.preview(tried)
            times.append(time.thread_time_ns() - began)
        price[length] = min(times)
    assert price[100_000] < 4 * price[200]
