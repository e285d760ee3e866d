"""Requests and answers survive the way through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import axis_strategies as axes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.as_json import FORMAT, FormatError, from_json, to_json
from trimtab.decode.request.method import AXES, Draw, Method, Policy, Search, methods
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    ModelUsage,
    Result,
    Token,
    TokenDraw,
    TokenReason,
    TopLogprob,
    Usage,
)
from trimtab.decode.request.sampling import Sampling, Stopping

names = st.text(max_size=4)
counts = st.integers(0, 2**53)
numbers = st.floats(allow_nan=False)
maybe_numbers = st.none() | numbers
pieces = st.binary(max_size=5) | st.text(max_size=3).map(str.encode)
tops = st.builds(TopLogprob, id=counts, piece=pieces, logprob=numbers)
tokens = st.builds(
    Token,
    id=counts,
    piece=pieces,
    author=names,
    draw=st.sampled_from(TokenDraw),
    logprob=maybe_numbers,
    entropy=maybe_numbers,
    top_prob=maybe_numbers,
    top=st.lists(tops, max_size=2).map(tuple),
    reward=maybe_numbers,
    reason=st.none() | st.sampled_from(TokenReason),
    base_entropy=maybe_numbers,
    base_top_prob=maybe_numbers,
)
candidates = st.builds(
    Candidate,
    index=counts,
    text=names,
    tokens=st.lists(tokens, max_size=2).map(tuple),
    finish_reason=st.sampled_from(FinishReason),
    stop_match=st.none() | names,
    rewards=st.dictionaries(names, numbers, max_size=2),
)
models_used = st.builds(ModelUsage, model=names, forward_passes=counts, tokens_read=counts, tokens_written=counts)
usages = st.builds(
    Usage,
    prompt_tokens=counts,
    cached_prompt_tokens=counts,
    nudged_tokens=counts,
    discarded_tokens=counts,
    reward_calls=counts,
    models=st.lists(models_used, max_size=2).map(tuple),
    total_time=numbers,
)
results = st.builds(
    Result,
    model=names,
    models=st.lists(names, max_size=2).map(tuple),
    candidates=st.lists(candidates, max_size=2).map(tuple),
    usage=usages,
    seed=counts,
    selected=counts,
    reproducible=st.booleans(),
    abstained=st.booleans(),
)
SCALARS = {int: counts, float: numbers, str: names}
prompts = st.one_of(
    names,
    st.lists(counts, min_size=1, max_size=3).map(tuple),
    st.lists(st.builds(ChatMessage, names, names), min_size=1, max_size=2).map(tuple),
)
requests = st.builds(
    Request,
    model=names,
    prompt=prompts,
    sampling=st.builds(
        Sampling,
        temperature=maybe_numbers,
        top_k=st.none() | counts,
        logit_bias=st.dictionaries(counts, numbers, max_size=2),
        seed=st.none() | counts,
    ),
    stopping=st.builds(
        Stopping,
        stop=st.lists(names, max_size=2).map(tuple),
        eos_token_ids=st.lists(counts, max_size=2).map(tuple),
        ignore_eos=st.booleans(),
    ),
    policy=axes.values(Policy, SCALARS),
    draw=axes.values(Draw, SCALARS),
    search=axes.values(Search, SCALARS),
    references=st.lists(names, max_size=2).map(tuple),
    top_logprobs=counts,
    prompt_cache=st.booleans(),
)


@settings(max_examples=200, deadline=None)
@given(value=results | requests)
def test_round_trip(value: Result | Request) -> None:
    document = to_json(value)
    assert document["format"] == FORMAT
    assert from_json(document) == value
    text = json.dumps(document, allow_nan=False)
    again = from_json(json.loads(text))
    assert again == value
    assert json.dumps(to_json(again), allow_nan=False) == text


TOKEN = Token(
    id=5, piece=b"\xe2\x82", author="base", draw=TokenDraw.BONUS, logprob=-math.inf, entropy=0.5, top_prob=0.1
)
RESULT = Result(
    model="base",
    models=("base", "chat"),
    candidates=(
        Candidate(0, "é", (TOKEN, Token(6, "é".encode(), "chat")), FinishReason.STOP, "\n", rewards={"helpful": 0.5}),
    ),
    usage=Usage(prompt_tokens=3, models=(ModelUsage("base", 1, 2, 3),), queue_time=0.1),
    seed=7,
)
REQUEST = Request(
    model="base", prompt="hi", sampling=Sampling(logit_bias={3: -math.inf}), policy=Nudged("chat", when=Entropy(2.0))
)
SEARCH = Request(
    model="base", prompt="hi", search=Segments(Objective((RewardTerm("a"),))), draw=Speculative(PromptLookup())
)


def test_the_written_form() -> None:
    document = to_json(RESULT)
    assert (document["format"], document["kind"]) == (1, "result")
    first, second = document["candidates"][0]["tokens"]
    assert (first["piece"], first["draw"], first["logprob"]) == ({"base64": "4oI="}, "bonus", "-inf")
    assert (second["piece"], second["logprob"]) == ("é", None)
    document = to_json(REQUEST)
    assert document["prompt"] == {"text": "hi"}
    assert document["policy"]["kind"] == "Nudged"
    assert document["policy"]["when"] == {"kind": "Entropy", "above": 2.0}
    assert document["sampling"]["logit_bias"] == {"3": "-inf"}


def test_nan_survives() -> None:
    value = Request(model="m", prompt="x", sampling=Sampling(temperature=math.nan))
    again = from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
    assert isinstance(again, Request)
    assert again.sampling.temperature is not None
    assert math.isnan(again.sampling.temperature)


def test_lists_and_mappings_come_back_in_one_form() -> None:
    for prompt, expected in (
        ([1, 2], (1, 2)),
        ([{"role": "user", "content": "x"}], (ChatMessage("user", "x"),)),
        ([ChatMessage("user", "x")], (ChatMessage("user", "x"),)),
    ):
        again = from_json(to_json(Request(model="m", prompt=prompt)))
        assert isinstance(again, Request)
        assert again.prompt == expected


@pytest.mark.parametrize("cls", [cls for axis in AXES for cls in methods(axis).values()])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_variant_of_the_types_round_trips(cls: type[Method], data: st.DataObject) -> None:
    value = data.draw(axes.values(cls, SCALARS))
    request = Request(model="m", prompt="x", **{cls.axis: value})
    again = from_json(json.loads(json.dumps(to_json(request), allow_nan=False)))
    assert again == request
    assert type(getattr(again, cls.axis)) is cls


def test_what_is_given_in_short_stays_short() -> None:
    terms = (RewardTerm("a", 2.0),)
    for objective, written in (
        ("a", "a"),
        ({"a": 2.0, "kind": math.inf}, {"a": 2.0, "kind": "inf"}),
        (Objective(terms, Combine.MIN), {"kind": "Objective", "combine": "min", "spread": 1.0}),
        (None, None),
    ):
        document = to_json(Request(model="m", prompt="x", search=BestOfN(2, objective)))
        got = document["search"]["objective"]
        assert {**got, **written} == got if isinstance(got, dict) else got == written
        assert from_json(document).search.objective == objective  # type: ignore[union-attr]
    for draft, written in (("d", "d"), (PromptLookup(4), {"kind": "PromptLookup", "max_ngram": 4})):
        document = to_json(Request(model="m", prompt="x", draw=Speculative(draft)))
        assert document["draw"]["draft"] == written


def test_missing_fields_take_their_defaults() -> None:
    document = {"format": 1, "kind": "request", "model": "m", "prompt": {"text": "x"}}
    assert from_json(document) == Request(model="m", prompt="x")


def spoiled(value: Request | Result, path: str, new: Any) -> dict[str, Any]:
    """The document with one place changed; a last key "+x" is added."""
    document: dict[str, Any] = json.loads(json.dumps(to_json(value)))
    *way, last = path.split(".")
    at: Any = document
    for step in way:
        at = at[int(step)] if step.isdigit() else at[step]
    at[last.removeprefix("+")] = new
    return document


@pytest.mark.parametrize(
    ("value", "path", "new", "field"),
    [
        (RESULT, "+more", 1, "more"),
        (RESULT, "candidates.0.+more", 1, "candidates[0].more"),
        (REQUEST, "policy.+more", 1, "policy.more"),
        (RESULT, "format", 2, "format"),
        (RESULT, "format", True, "format"),
        (RESULT, "kind", "event", "kind"),
        (RESULT, "seed", "7", "seed"),
        (RESULT, "seed", True, "seed"),
        (RESULT, "seed", 7.0, "seed"),
        (RESULT, "reproducible", 1, "reproducible"),
        (RESULT, "models", "base", "models"),
        (RESULT, "candidates", {}, "candidates"),
        (RESULT, "usage", [], "usage"),
        (RESULT, "usage.models.0.model", None, "usage.models[0].model"),
        (RESULT, "candidates.0.finish_reason", "EOS", "candidates[0].finish_reason"),
        (RESULT, "candidates.0.tokens.1.piece", {"base64": "*"}, "candidates[0].tokens[1].piece"),
        (RESULT, "candidates.0.tokens.1.piece", {"base64": "", "x": 1}, "candidates[0].tokens[1].piece"),
        (RESULT, "candidates.0.tokens.1.logprob", "-Infinity", "candidates[0].tokens[1].logprob"),
        (RESULT, "candidates.0.rewards", {"a": "b"}, "candidates[0].rewards.a"),
        (REQUEST, "prompt", "hi", "prompt"),
        (REQUEST, "prompt.+token_ids", [1], "prompt"),
        (REQUEST, "prompt", {"token_ids": ["1"]}, "prompt.token_ids[0]"),
        (REQUEST, "policy", {"kind": "Oracle"}, "policy.kind"),
        (REQUEST, "policy", None, "policy.kind"),
        (REQUEST, "policy.when.kind", "Base", "policy.when.kind"),
        (REQUEST, "sampling.logit_bias", {"x": 1.0}, "sampling.logit_bias.x"),
        # One key has one spelling: "3" and "03" would be two values of one token.
        (REQUEST, "sampling.logit_bias", {"3": 1.0, "03": 2.0}, "sampling.logit_bias.03"),
        (REQUEST, "sampling.logit_bias", {"1_0": 1.0}, "sampling.logit_bias.1_0"),
        (REQUEST, "sampling.logit_bias", {" 3": 1.0}, "sampling.logit_bias. 3"),
        (REQUEST, "sampling.logit_bias", {"+3": 1.0}, "sampling.logit_bias.+3"),
        (SEARCH, "search.objective", 3, "search.objective"),
        (SEARCH, "search.objective", None, "search.objective"),
        (SEARCH, "search.objective", {"kind": "Entropy", "above": 1.0}, "search.objective.kind"),
        (SEARCH, "search.objective", {"kind": "Objective"}, "search.objective.terms"),
        (SEARCH, "search.objective.combine", "mean", "search.objective.combine"),
        (SEARCH, "search.objective.terms.0.weight", "x", "search.objective.terms[0].weight"),
        (SEARCH, "search.beams", 2.0, "search.beams"),
        (SEARCH, "search.kind", "Beam", "search.kind"),
        (SEARCH, "draw.draft", 3, "draw.draft"),
        (SEARCH, "draw.draft", {"kind": "Lookup"}, "draw.draft"),
        (SEARCH, "draw.length", {"kind": "Entropy"}, "draw.length.kind"),
    ],
)
def test_spoiled_documents_are_refused_by_place(value: Request | Result, path: str, new: Any, field: str) -> None:
    with pytest.raises(FormatError) as caught:
        from_json(spoiled(value, path, new))
    (violation,) = caught.value.violations
    assert violation.field == field
    assert violation.accepted


def test_needed_keys_and_whole_documents() -> None:
    document = to_json(RESULT)
    del document["usage"]
    with pytest.raises(FormatError, match="usage = None: accepted: a value: Result needs it"):
        from_json(document)
    documents: tuple[Any, ...] = ([], "x", None, {})
    for bad in documents:
        with pytest.raises(FormatError):
            from_json(bad)
    with pytest.raises(FormatError, match="kind = 'request': accepted: one of result"):
        from_json(to_json(REQUEST), Result)
    assert from_json(to_json(REQUEST), Request) == REQUEST
    with pytest.raises(FormatError, match=r"sampling\.logit_bias = .*keys that differ as text"):
        to_json(Request(model="m", prompt="x", sampling=Sampling(logit_bias={3: 1.0, "3": 2.0})))  # type: ignore[dict-item]
    with pytest.raises(FormatError, match="a Request or a Result"):
        to_json(TOKEN)
    with pytest.raises(FormatError, match=r"sampling\.seed"):
        to_json(Request(model="m", prompt="x", sampling=Sampling(seed=object())))
