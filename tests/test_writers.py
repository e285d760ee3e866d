"""Writers stop at any token, go on, and fork there, for every policy over every draw."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import search_tables as s
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.methods.policies.cross_vocabulary import CrossVocabularyWriter
from trimtab.decode.request.result import FinishReason
from trimtab.decode.request.sampling import Stopping
from trimtab.kernels.types import Filters, Key

PAIRS = [
    (policy, draw)
    for policy in s.POLICIES
    for draw in s.DRAWS
    if policy != "token_reward" or draw == "plain"
]  # fmt: skip


def case(policy: str, draw: str, seed: int) -> tuple[Any, Any]:
    rng = random.Random(f"{policy}/{draw}/{seed}")
    models = s.families(seed, order=rng.choice((1, 2)))
    stopping = Stopping(
        max_new_tokens=rng.choice((9, 30)),
        min_new_tokens=rng.choice((0, 4)),
        stop=rng.choice(((), ("s the", ". "))),
        ignore_eos=rng.random() < 0.3,
    )
    filters = Filters(
        temperature=rng.choice((0.0, 0.8, 1.2)), top_p=rng.choice((1.0, 0.8)), repetition_penalty=rng.choice((1.0, 1.2))
    )
    plan = s.made(
        models,
        policy=s.POLICIES[policy],
        draw=s.DRAWS[draw],
        stopping=stopping,
        filters=filters,
        seed=seed,
        top_logprobs=rng.choice((0, 2)),
    )
    return s.context_of(models), plan


def summary(writer: Any) -> Any:
    answer = writer.answer
    return [*answer.tokens], answer.text, answer.finish_reason, answer.stop_match


def whole(policy: str, draw: str, seed: int) -> Any:
    """Written in one go."""
    context, plan = case(policy, draw, seed)
    writer = s.writer_of(context, plan)
    context.drive(writer.advance())
    writer.close()
    assert not context.open_sequences
    return summary(writer)


def some(writer: Any, rng: random.Random) -> Any:
    """Until some tokens later, or before a token that a coin refuses."""
    due = len(writer.answer.tokens) + rng.randint(0, 4)
    refused = {rng.randrange(due + 1)}
    start = len(writer.answer.tokens)

    def before(token: Any) -> bool:
        return len(writer.answer.tokens) in refused and len(writer.answer.tokens) > start

    return writer.advance(lambda: len(writer.answer.tokens) >= due, before if rng.random() < 0.5 else None)


@pytest.mark.parametrize(("policy", "draw"), PAIRS)
def test_pieces_are_the_whole(policy: str, draw: str) -> None:
    for seed in range(5):
        context, plan = case(policy, draw, seed)
        writer, rng = s.writer_of(context, plan), random.Random(seed)
        while not writer.answer.done:
            before = len(writer.answer.tokens)
            context.drive(some(writer, rng))
            assert len(writer.answer.tokens) <= before + 4, "overshoots the number of tokens"
        assert summary(writer) == whole(policy, draw, seed)


@pytest.mark.parametrize(("policy", "draw"), PAIRS)
def test_a_fork_with_the_same_numbers_is_the_original(policy: str, draw: str) -> None:
    for seed in range(4):
        context, plan = case(policy, draw, seed)
        writer, rng = s.writer_of(context, plan), random.Random(seed)
        expected = whole(policy, draw, seed)
        forks = []
        while not writer.answer.done:
            context.drive(some(writer, rng))
            forks.append(writer.fork())
        for fork in rng.sample(forks, min(3, len(forks))):
            context.drive(fork.advance())
            assert summary(fork) == expected
        assert summary(writer) == expected
        writer.team.close()
        assert not context.open_sequences


@pytest.mark.parametrize(("policy", "draw"), PAIRS)
def test_a_fork_is_what_a_fresh_writer_makes_of_the_answer(policy: str, draw: str) -> None:
    """Nothing but what is written goes over to random numbers of its own, and no cache is wrong."""
    differs = 0
    for seed in range(5):
        context, plan = case(policy, draw, seed)
        writer, rng = s.writer_of(context, plan), random.Random(seed)
        while not writer.answer.done:
            context.drive(some(writer, rng))
            if rng.random() < 0.6:
                continue
            key = plan.drawing.key.child(len(writer.answer.tokens), 1)
            fork, fresh = writer.fork(key, 3), s.writer_of(context, plan, key)
            fresh.adopt(writer)
            assert fork.answer.index == 3
            for one in (fork, fresh):
                context.drive(one.advance())
                one.close()
            assert summary(fork) == summary(fresh)
            differs += summary(fork)[0] != summary(writer)[0]
        assert summary(writer) == whole(policy, draw, seed)
    assert differs, "other random numbers draw other tokens"


def why(tokens: Any) -> list[tuple[Any, ...]]:
    return [(t.author, t.id, t.reason, t.base_entropy, t.base_top_prob) for t in tokens]


@pytest.mark.parametrize(("policy", "draw"), PAIRS)
def test_where_nothing_is_random_every_fork_is_the_original(policy: str, draw: str) -> None:
    """So what a fork decides anew, it decides by the same rules."""
    for seed in range(12 if policy == "cross vocabulary" else 3):
        context, plan = case(policy, draw, seed)
        plan = replace(plan, drawing=replace(plan.drawing, filters=Filters(), foreign=Filters()))
        writer, rng = s.writer_of(context, plan), random.Random(seed)
        forks = []
        while not writer.answer.done:
            forks.append(writer.fork(Key(seed, len(writer.answer.tokens) + 1)))
            context.drive(some(writer, rng))
        for fork in rng.sample(forks, min(4, len(forks))):
            context.drive(fork.advance())
            found, expected = summary(fork), summary(writer)
            assert why(found[0]) == why(expected[0])
            assert found[1:] == expected[1:]
            fork.close()


def test_where_an_answer_repeats_itself_every_fork_is_the_original() -> None:
    """At each token, with the next one drawn already: the loop guard may have looked since."""
    found = set()
    for seed in (1, 4):
        models = s.families(seed, order=1)
        stopping = Stopping(max_new_tokens=90, ignore_eos=True)
        plan = s.made(models, policy=s.POLICIES["cross vocabulary"], stopping=stopping, filters=Filters(), seed=seed)
        context = s.context_of(models)
        writer, forks = s.writer_of(context, plan), list[Any]()
        while not writer.answer.done:
            answer, size = writer.answer, len(writer.answer.tokens)
            forks.append(writer.fork(Key(seed, size + 1)))
            context.drive(writer.advance(before=lambda _, answer=answer, size=size: len(answer.tokens) > size))
        for fork in forks:
            context.drive(fork.advance())
            assert why(summary(fork)[0]) == why(summary(writer)[0])
            fork.close()
        found |= {(token.author, token.reason) for token in writer.answer.tokens}
    assert {("base", "looping"), ("foreign", "looping")} <= found


@given(st.integers(0, 2**31), st.sampled_from(PAIRS))
@settings(max_examples=60)
def test_random_programs_leave_nothing_open(seed: int, pair: tuple[str, str]) -> None:
    context, plan = case(*pair, seed)
    rng = random.Random(seed)
    root = s.writer_of(context, plan)
    team, writers = root.team, [root]
    for _ in range(rng.randint(1, 25)):
        writer = rng.choice(writers)
        match rng.randrange(6):
            case 0 | 1:
                context.drive(some(writer, rng))
            case 2:
                writers.append(writer.fork(rng.choice((None, Key(seed).child(rng.randrange(9), rng.randrange(9))))))
            case 3 if len(writers) > 1:
                writer.close()
                writers.remove(writer)
            case 4:
                context.drive(writer.prime())
            case 5:
                other = rng.choice(writers)
                if other is not writer:
                    writer.adopt(other)
                    assert summary(writer)[:2] == summary(other)[:2]
    assert context.open_sequences
    team.close()
    team.close()
    assert not context.open_sequences


def test_the_end_of_a_request_closes_a_stopped_writer() -> None:
    context, plan = case("cross vocabulary", "speculative", 1)
    writer = s.writer_of(context, plan)
    coroutine = writer.advance()
    coroutine.send(None)
    coroutine.close()
    writer.team.close()
    assert not context.open_sequences


def _keep_pending(self: Any) -> None:
    """A fork that keeps what was drawn with the random numbers of the original."""


def _no_span(self: Any) -> None:
    self._span = None
    self._reads.clear()
    self._own = None


@pytest.mark.parametrize(
    ("name", "wrong", "law"),
    [
        ("_forget", _keep_pending, test_a_fork_is_what_a_fresh_writer_makes_of_the_answer),
        ("_undecide", _no_span, test_where_nothing_is_random_every_fork_is_the_original),
    ],
)
def test_a_wrong_fork_is_seen(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Callable[[Any], None], law: Callable[[str, str], None]
) -> None:
    monkeypatch.setattr(CrossVocabularyWriter, name, wrong)
    with pytest.raises(AssertionError):
        law("cross vocabulary", "plain")


def test_every_end_is_met() -> None:
    found = {whole(policy, draw, seed)[2] for policy, draw in PAIRS for seed in range(3)}
    assert {FinishReason.EOS, FinishReason.STOP, FinishReason.MAX_NEW_TOKENS} <= found
