"""One request must not hurt another: every legal one, however extreme, gets the answer that it gets alone."""

from __future__ import annotations

import math
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import axis_strategies as axes
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest, NotFound, RewardFailed, UnsupportedRequest
from trimtab.decode.methods.draws.length import Acceptance, Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Weighted
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.request.events import Completed
from trimtab.decode.request.info import Limits
from trimtab.decode.request.method import Draw, Policy, Search, methods
from trimtab.decode.request.objective import AnyObjective, Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Result
from trimtab.decode.request.sampling import Sampling, Stopping

Folder = Callable[..., Path]
VOCAB, WIDE, CONTEXT = 304, 320, 96


REFUSED = (InvalidRequest, NotFound, UnsupportedRequest)
MODELS = ("base", "twin", "chat", "wide", "foreign")
REWARDS = ("short", "likely", "words")


@pytest.fixture(scope="module")
def engine(tiny_folder: Folder, foreign_folder: Path) -> Iterator[Engine]:
    """Models of one vocabulary, one of them padded further, and one of another; few pages and short contexts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    folders = {
        "base": tiny_folder("llama", 0),
        "twin": tiny_folder("llama", 0),
        "chat": tiny_folder("mistral", 2),
        "wide": tiny_folder("llama", 4, vocab_size=WIDE),
        "foreign": foreign_folder,
    }
    configs = {n: ModelConfig(source=str(f), dtype="float32", context_tokens=CONTEXT) for n, f in folders.items()}
    rewards = {
        "short": {"type": "length", "at_most": 3},
        "likely": {"type": "likelihood", "model": "chat"},
        "words": {"type": "keywords", "wanted": ["the", "and"]},
    }
    limits = Limits(max_new_tokens=16, max_n=6, max_queue=64)
    options = EngineOptions(memory_bytes=12 << 20, page_tokens=8, max_batch_rows=24, token_budget=64)
    with Engine(configs, rewards=rewards, limits=limits, options=options) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------------ requests

ids = st.integers(0, VOCAB - 1)
words = st.sampled_from(["the", " and", "é", "🙂", "\n", "<eos>", "<bot>", "\x00", "a" * 9, " ", "."])
text = st.lists(words, max_size=12).map("".join)
prompts = st.one_of(
    st.lists(ids, min_size=1, max_size=40),
    text.filter(bool),
    st.lists(st.builds(ChatMessage, st.sampled_from(["user", "assistant"]), text), min_size=1, max_size=3),
)
bans = st.builds(
    lambda spared: {token: -math.inf for token in range(VOCAB) if token not in spared}, st.sets(ids, max_size=4)
)
biases = st.dictionaries(ids, st.sampled_from([-math.inf, -1e38, -3.0, 0.0, 5.0, 1e38, 3.4e38]), max_size=6)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([None, 0, 1e-30, 0.7, 1.0, 10.0]),
    top_k=st.sampled_from([None, 1, 5, VOCAB, 2**32 - 1]),
    top_p=st.sampled_from([None, 1e-30, 0.5, 1.0]),
    min_p=st.sampled_from([None, 0.0, 0.2, 0.999]),
    repetition_penalty=st.sampled_from([None, 1e-30, 0.5, 1.3, 10.0]),
    logit_bias=st.one_of(st.just({}), biases, bans),
    seed=st.integers(0, 2**32 - 1),
)
stoppings = st.builds(
    Stopping,
    max_new_tokens=st.sampled_from([1, 2, 3, 5, 8]),
    min_new_tokens=st.integers(0, 4),
    stop=st.lists(st.sampled_from(["the", "\n", "é", " a", "."]), max_size=2).map(tuple),
    stop_token_ids=st.lists(ids, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    include_stop=st.booleans(),
)
objectives = st.builds(
    Objective,
    st.lists(
        st.builds(RewardTerm, st.sampled_from(REWARDS), st.sampled_from([1.0, -1.0, 0.0, 1e6])), min_size=1, max_size=2
    ).map(tuple),
)
scalars = {
    int: st.sampled_from([1, 2, 3]),
    float: st.sampled_from([0.01, 0.3, 0.9]),
    str: st.sampled_from(REWARDS),
    AnyObjective: objectives,
    Objective: objectives,
}
weights = st.sampled_from([0.0, 0.5, -0.5, 1e6, -1e6])
SHARED, ANY = st.sampled_from(MODELS[:4]), st.sampled_from(MODELS)
named = {
    "nudger": ANY,
    "draft": st.one_of(ANY, st.builds(PromptLookup, st.integers(1, 3))),
    "model": SHARED,
    "mutator": st.none() | ANY,
    "critic": st.none() | ANY,
    "weight": weights,
    "above": st.sampled_from([1.0, 3.0, 5.0, 1e3]),
    "reward_weight": weights,
    "logprob_weight": weights,
    "scale": st.sampled_from([0.0, 1.0, 1.5, 1e6]),
    "prompt": st.sampled_from([None, "the", "é\n"]),
    "system": st.none(),
    "threshold": st.sampled_from([None, -1e308, 0.5, 1e308]),
    "target": st.sampled_from([-1e308, 0.5, 1e308]),
    "beta": st.sampled_from([1e-300, 0.3, 1e308]),
    "temperature": st.sampled_from([1e-300, 1.0, 1e308]),
    "width": st.sampled_from([2, 7, 64]),
    "delimiter": st.sampled_from([None, "the", "\n"]),
    "experts": st.lists(
        st.builds(Weighted, SHARED, st.sampled_from([0.0, 0.5, -0.5, 1e6, -1e6])), min_size=1, max_size=2
    ).map(tuple),
    "plausibility": st.sampled_from([None, 0.0, 0.3, 0.999]),
}


def repaired(axis: Any) -> Any:
    """The same where its fields exclude one another, without those that are too many."""
    if isinstance(axis, BestOfN):
        check = axis.check_every_tokens if axis.reject_fraction else None
        held = (axis.max_held_tokens or 3) if axis.reject_fraction and check is None else None
        axis = replace(axis, check_every_tokens=check, max_held_tokens=held)
        if axis.choose is Choose.TOURNAMENT:
            axis = replace(axis, threshold=None)
        rated = axis.choose not in (Choose.MAJORITY, Choose.CONSENSUS) or held or check or axis.threshold
        if rated and axis.objective is None:
            axis = replace(axis, objective=Objective.of("words"))
    if isinstance(axis, RejectSegments):
        axis = replace(axis, max_tokens=max(axis.min_tokens, axis.max_tokens))
    if isinstance(axis, Evolution):
        axis = replace(axis, survivors=min(axis.survivors, axis.population))
    if isinstance(axis, Speculative):
        if isinstance(axis.length, Acceptance) or (isinstance(axis.draft, PromptLookup) and axis.length is not None):
            axis = replace(axis, length=Fixed(3))
        if isinstance(axis.draft, PromptLookup):
            axis = replace(axis, copying=None)
    return axis


def axis(hint: Any) -> st.SearchStrategy[Any]:
    kinds = [axes.values(kind, scalars, named).map(repaired) for kind in methods(hint.axis, plugins=False).values()]
    return st.one_of(kinds)


requests = st.builds(
    Request,
    model=ANY,
    prompt=prompts,
    sampling=samplings,
    stopping=stoppings,
    policy=axis(Policy),
    draw=axis(Draw),
    search=axis(Search),
    top_logprobs=st.sampled_from([0, 0, 3, 20]),
)


def run(engine: Engine, asked: Sequence[Request]) -> list[Result | Exception]:
    """What each ends with, side by side."""
    inboxes: list[queue.SimpleQueue[Any]] = []
    for request in asked:
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            engine.submit(request, inbox.put)
        except REFUSED as error:
            inbox.put(error)
        inboxes.append(inbox)
    ends: list[Result | Exception] = []
    for inbox in inboxes:
        while not isinstance(event := inbox.get(timeout=120), (Completed, Exception)):
            pass
        ends.append(event.result if isinstance(event, Completed) else event)
    return ends


def ids_of(result: Result) -> list[tuple[int, ...]]:
    return [tuple(token.id for token in candidate.tokens) for candidate in result.candidates]


def _too_long(end: Result | Exception) -> bool:
    """The one end that a reward documents and nobody can foresee: an answer that its own model spells too long."""
    return isinstance(end, RewardFailed) and "prompt and answer take" in str(end)


COUNT = 24  # requests side by side
HUGE = "1000000.0"  # a weight by which what rounding leaves of two batches is multiplied, too


def check(engine: Engine, asked: Sequence[Request], alone: int) -> int:
    """Run requests side by side, and the first ``alone`` legal ones by themselves; returns how many were legal."""
    ends = run(engine, asked)
    legal = [(r, e) for r, e in zip(asked, ends, strict=True) if not isinstance(e, REFUSED) and not _too_long(e)]
    for request, end in legal:
        assert isinstance(end, Result), (request, end, end.__cause__)
    for request, end in legal[:alone]:
        assert isinstance(end, Result)
        if end.reproducible and HUGE not in repr(request):
            (same,) = run(engine, [request])
            assert isinstance(same, Result)
            assert ids_of(same) == ids_of(end), request
    assert not any(engine.stats().pages_used.values())
    return len(legal)


@pytest.mark.parametrize(
    ("least", "alone", "exact"),
    [
        pytest.param(500, 1, True, id="500"),
        *(pytest.param(2000, 1, False, id=f"2000 more, {n}", marks=pytest.mark.full) for n in range(10)),
    ],
)
def test_legal_requests_get_what_they_get_alone(engine: Engine, least: int, alone: int, exact: bool) -> None:
    """No request that passes validation fails; ``exact``: the same requests every time."""
    found = 0
    waiting: list[Request] = []

    @settings(
        max_examples=3 * least,  # a third of them and more are legal
        derandomize=exact,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        database=None,
        phases=[Phase.generate],
    )
    @given(asked=requests)
    def fuzz(asked: Request) -> None:
        nonlocal found
        waiting.append(asked)
        if len(waiting) == COUNT and found < least:
            found += check(engine, waiting, alone)
            waiting.clear()

    fuzz()
    assert found >= least
