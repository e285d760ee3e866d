"""Between the proto and the library nothing is lost: properties of requests, answers, errors and numbers."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from typing import Any

import axis_strategies as axes
import pytest
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.errors import (
    EngineClosed,
    EngineFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RequestCancelled,
    RewardFailed,
    UnsupportedRequest,
    Violation,
)
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Progress,
    Started,
)
from trimtab.decode.request.info import ModelInfo, RewardInfo
from trimtab.decode.request.method import AXES, Draw, Method, Policy, Search, methods
from trimtab.decode.request.objective import (
    AnyObjective,
    Combine,
    Objective,
    RewardTerm,
)
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    ModelUsage,
    Result,
    Scored,
    Token,
    TokenDraw,
    TokenReason,
    TopLogprob,
    Usage,
)
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.server.rpc.bridge import StreamMessages
from trimtab.server.wire.alike import filled
from trimtab.server.wire.answer import (
    Assembler,
    MalformedAnswer,
    candidate_message,
    candidate_parts,
    completed_message,
    result_of,
)
from trimtab.server.wire.listing import info_of, model_message, reward_info_of, reward_message
from trimtab.server.wire.numbers import duration, seconds, shortest
from trimtab.server.wire.paths import library_path, proto_path
from trimtab.server.wire.request import read_spec, spec_of
from trimtab.server.wire.score import score_request, scores_of
from trimtab.server.wire.status import AnswerTooLarge, error_of, status_of
from trimtab.v1 import decoding_pb2 as pb

uint32 = st.integers(0, 2**32 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=12)
names = st.text("abc-.", min_size=1, max_size=6)
float32 = st.floats(width=32)
finite32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
# What people write: at most six significant digits.
short = st.builds(lambda digits, exponent: float(f"{digits}e{exponent}"), st.integers(0, 999_999), st.integers(-9, 6))
nanos = st.integers(0, 10**15).map(lambda n: n / 1e9)


# ------------------------------------------------------------------------------------------------------------- requests

samplings = st.builds(
    Sampling,
    temperature=st.none() | short,
    top_k=st.none() | uint32,
    top_p=st.none() | short,
    min_p=st.none() | short,
    repetition_penalty=st.none() | short,
    logit_bias=st.dictionaries(uint32, short | st.just(-math.inf), max_size=4),
    seed=st.none() | uint32,
)
stoppings = st.builds(
    Stopping,
    max_new_tokens=uint32,
    min_new_tokens=uint32,
    stop=st.lists(text, max_size=4).map(tuple),
    stop_token_ids=st.lists(uint32, max_size=4).map(tuple),
    eos_token_ids=st.lists(uint32, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    include_stop=st.booleans(),
    time_budget=st.none() | st.integers(0, 10**9).map(lambda ms: ms / 1000),
)
SCALARS: dict[Any, Any] = {int: uint32, float: short, str: text}
# Names of rewards, and names and weights, become objectives on the way.
SCALARS[AnyObjective] = axes.values(Objective, SCALARS)
SCALARS[AnyObjective | None] = st.none() | SCALARS[AnyObjective]
prompts = st.one_of(
    text.filter(bool),
    st.lists(uint32, min_size=1, max_size=5).map(tuple),
    st.lists(st.builds(ChatMessage, text, text), min_size=1, max_size=3).map(tuple),
)
requests = st.builds(
    Request,
    model=names,
    prompt=prompts,
    sampling=samplings,
    stopping=stoppings,
    policy=axes.values(Policy, SCALARS),
    draw=axes.values(Draw, SCALARS),
    search=axes.values(Search, SCALARS),
    references=st.lists(text, max_size=2).map(tuple),
    top_logprobs=st.integers(0, 20),
    prompt_cache=st.booleans(),
)


@settings(deadline=None)
@given(requests)
def test_a_request_comes_back_as_it_was(request: Request) -> None:
    wire = spec_of(request).SerializeToString()
    reading = read_spec(pb.GenerationSpec.FromString(wire))
    assert reading.violations == ()
    assert reading.request == request


@pytest.mark.parametrize("cls", [cls for axis in AXES for cls in methods(axis).values()])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_every_variant_comes_back_as_it_was(cls: type[Method], data: st.DataObject) -> None:
    value = data.draw(axes.values(cls, SCALARS))
    request = Request(model="m", prompt="x", **{cls.axis: value})
    reading = read_spec(pb.GenerationSpec.FromString(spec_of(request).SerializeToString()))
    assert (reading.request, reading.violations) == (request, ())


def test_the_proto_has_the_variants_of_the_types() -> None:
    for axis, message in (("policy", pb.Policy), ("draw", pb.Draw), ("search", pb.Search)):
        variants = {field.name for field in message.DESCRIPTOR.oneofs_by_name["kind"].fields}
        assert variants == {*methods(axis), "extension"}
    for prefix, enum, values in (("CHOOSE", pb.Choose, Choose), ("COMBINE", pb.Combine, Combine)):
        assert set(enum.keys()) == {f"{prefix}_UNSPECIFIED", *(f"{prefix}_{value.name}" for value in values)}


@pytest.mark.parametrize("objective", ["a", {"a": 1.0}, Objective((RewardTerm("a"),))])
def test_an_objective_in_short_is_written_out(objective: Any) -> None:
    spec = spec_of(Request(model="m", prompt="x", search=BestOfN(2, objective)))
    assert read_spec(spec).request.search == BestOfN(2, Objective((RewardTerm("a", 1.0),)))


def test_an_unset_field_of_a_variant_takes_the_librarys_default() -> None:
    objective = pb.Objective(terms=[pb.RewardTerm(reward="a")])
    whole = Objective((RewardTerm("a"),))
    for search, expected in (
        (pb.Search(best_of_n=pb.BestOfN(n=3)), BestOfN(3)),
        (pb.Search(segments=pb.Segments(objective=objective)), Segments(whole)),
        (pb.Search(evolution=pb.Evolution(objective=objective)), Evolution(whole)),
        (pb.Search(refine=pb.Refine(objective=objective)), Refine(whole)),
        (
            pb.Search(reject_segments=pb.RejectSegments(objective=objective, target=0.5)),
            RejectSegments(whole, 0.5),
        ),
    ):
        reading = read_spec(pb.GenerationSpec(model="m", text="x", search=search))
        assert (reading.request.search, reading.violations) == (expected, ())
    mixture = pb.Policy(mixture=pb.Mixture(experts=[pb.Weighted(model="e"), pb.Weighted(model="f", weight=0)]))
    reading = read_spec(pb.GenerationSpec(model="m", text="x", policy=mixture))
    assert reading.request.policy == Mixture((Weighted("e", 1.0), Weighted("f", 0.0))), "zero is not unset"


def test_what_a_variant_needs_and_lacks_is_named() -> None:
    spec = pb.GenerationSpec(
        model="m",
        text="x",
        draw=pb.Draw(speculative=pb.Speculative()),
        search=pb.Search(
            reject_segments=pb.RejectSegments(objective=pb.Objective(combine=77)),  # type: ignore[arg-type]
        ),
    )
    fields = [violation.field for violation in read_spec(spec).violations]
    assert fields == [
        "draw.speculative.drafter",
        "search.reject_segments.objective.combine",
        "search.reject_segments.target",
    ]
    spec.search.best_of_n.choose = 9  # type: ignore[assignment]
    assert [v.field for v in read_spec(spec).violations][1:] == ["search.best_of_n.choose"]


@pytest.mark.parametrize(
    ("search", "count"),
    [
        (BestOfN(7, "a"), 7),
        (BestOfN(None, "a", reject_fraction=0.5, max_held_tokens=99), 12),
        (Segments("a", beams=3), 3),
        (Evolution("a", population=5, rounds=3), 16),
        (Refine("a", rounds=2), 3),
        (RejectSegments("a", 1.0), 1),
        (BestOfN(-1, "a"), 0),
    ],
)
def test_a_client_asks_for_every_candidate(search: Any, count: int) -> None:
    request = Request(model="m", prompt="x", search=search)
    if count:
        assert spec_of(request).response.max_candidates == count
    else:
        with pytest.raises(InvalidRequest, match=r"search\.best_of_n\.n"):
            spec_of(request)


@pytest.mark.parametrize("field", ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"])
def test_zero_is_not_unset(field: str) -> None:
    unset, zero = read_spec(pb.GenerationSpec()), read_spec(pb.GenerationSpec(sampling=pb.Sampling(**{field: 0})))
    assert getattr(unset.request.sampling, field) is None
    assert getattr(zero.request.sampling, field) == 0


def test_unset_stopping_is_the_librarys_default() -> None:
    reading = read_spec(pb.GenerationSpec(stopping=pb.Stopping(ignore_eos=True)))
    assert reading.request.stopping == Stopping(ignore_eos=True)
    zero = read_spec(pb.GenerationSpec(stopping=pb.Stopping(max_new_tokens=0)))
    assert zero.request.stopping.max_new_tokens == 0


def test_mappings_are_chat_messages() -> None:
    spec = spec_of(Request(model="m", prompt=[{"role": "user", "content": "é"}]))
    assert spec.chat.messages == [pb.ChatMessage(role="user", content="é")]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(model="m", prompt="\ud800"), "prompt"),
        (Request(model="m", prompt=[{"role": "user"}]), "prompt.messages[0]"),
        (Request(model="m", prompt=[{"role": "user", "content": "x", "name": "y"}]), "prompt.messages[0]"),
        (Request(model="m", prompt=(1, -2)), "prompt.token_ids[1]"),
        (Request(model="m", prompt=()), "prompt"),
        (Request(model="m", prompt=b"bytes"), "prompt"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", stopping=Stopping(max_new_tokens=True)), "stopping.max_new_tokens"),
        (Request(model="m", prompt="x", stopping=Stopping(time_budget=math.nan)), "stopping.time_budget"),
        (Request(model="m", prompt="x", stopping=Stopping(stop=(3,))), "stopping.stop[0]"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", sampling=Sampling(seed=-1)), "sampling.seed"),
        (Request(model="m", prompt="x", sampling=Sampling(logit_bias={-1: 0.0})), "sampling.logit_bias[-1]"),
        (Request(model="m", prompt="x", policy="nudged"), "policy"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", policy=Nudged("c", 3.0)), "policy.nudged.when"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", draw="fast"), "draw"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", search="best"), "search"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", references=("\ud800",)), "references[0]"),
        (Request(model="m", prompt="x", references="text"), "references"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", policy=Mixture(("e",))), "policy.mixture.experts[0]"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", policy=Mixture((Weighted("e", True),))), "policy.mixture.experts[0].weight"),
        (Request(model="m", prompt="x", policy=TokenReward("a", width=-1)), "policy.token_reward.width"),
        (Request(model="m", prompt="x", draw=Speculative(3)), "draw.speculative.draft_model"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", draw=Speculative("d", 4)), "draw.speculative.length"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", draw=Speculative("d", coupled=1)), "draw.speculative.coupled"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", search=BestOfN(2, 3)), "search.best_of_n.objective"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", search=BestOfN(2, "a", "best")), "search.best_of_n.choose"),  # type: ignore[arg-type]
        (Request(model="m", prompt="x", search=Segments({"a": None})), "search.segments.objective.terms[0].weight"),  # type: ignore[dict-item]
        (Request(model="m", prompt="x", search=Segments("a", beams=True)), "search.segments.beams"),
        (Request(model="m", prompt="x", top_logprobs=-1), "top_logprobs"),
    ],
)
def test_what_the_wire_cannot_carry_is_named(request_: Request, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        spec_of(request_)
    assert [violation.field for violation in caught.value.violations] == [field]


# -------------------------------------------------------------------------------------------------------------- numbers


@given(short)
def test_short_decimals_survive_32_bits(value: float) -> None:
    wire: float = struct.unpack("<f", struct.pack("<f", value))[0]
    assert shortest(wire) == value


@given(float32)
def test_shortest_never_leaves_its_32_bit_float(value: float) -> None:
    assert struct.pack("<f", shortest(value)) == struct.pack("<f", value)


@given(st.integers(-(10**15), 10**15))
def test_durations_are_exact_to_the_nanosecond(count: int) -> None:
    message = duration(count / 1e6)
    assert message.seconds * message.nanos >= 0, "the parts of a Duration have one sign"
    assert seconds(message) == pytest.approx(count / 1e6, abs=1e-6)
    assert duration(seconds(message)) == message


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_what_is_no_duration_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="Duration"):
        duration(value)


@pytest.mark.parametrize(
    ("library", "proto"),
    [
        ("model", "spec.model"),
        ("prompt", "spec.prompt"),
        ("prompt.token_ids[7]", "spec.token_ids.ids[7]"),
        ("prompt.messages[0].role", "spec.chat.messages[0].role"),
        ("top_logprobs", "spec.response.top_logprobs"),
        ("policy.nudged.entropy_nats_above", "spec.policy.nudged.entropy_nats_above"),
        ("search.segments.objective.terms[1].reward", "spec.search.segments.objective.terms[1].reward"),
        ("references[1]", "spec.references[1]"),
        ("mode", "mode"),
    ],
)
def test_paths_translate_both_ways(library: str, proto: str) -> None:
    assert proto_path(library) == proto
    assert library_path(proto) == library


# -------------------------------------------------------------------------------------------------------------- answers

models = st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)
tops = st.lists(st.builds(TopLogprob, uint32, st.binary(max_size=4), finite32), max_size=2).map(tuple)


def _tokens(authors: tuple[str, ...]) -> st.SearchStrategy[tuple[Token, ...]]:
    optional = st.none() | finite32
    token = st.builds(
        Token,
        id=uint32,
        piece=st.binary(max_size=6),
        author=st.sampled_from(authors),
        draw=st.sampled_from(TokenDraw),
        logprob=optional | st.just(-math.inf),
        entropy=st.none() | st.floats(0, 20, width=32),
        top_prob=st.none() | st.floats(0, 1, width=32),
        top=tops,
        reward=optional,
        reason=st.none() | st.sampled_from(TokenReason),
        base_entropy=st.none() | st.floats(0, 20, width=32),
        base_top_prob=st.none() | st.floats(0, 1, width=32),
    )
    return st.lists(token, max_size=6).map(tuple)


@st.composite
def results(draw: Any, candidates: int = 3) -> Result:
    authors = draw(models)
    found = tuple(
        Candidate(
            index=index,
            text=draw(text),
            tokens=draw(_tokens(authors)),
            finish_reason=draw(st.sampled_from(FinishReason)),
            stop_match=draw(st.none() | text),
            rewards=draw(st.dictionaries(names, finite32, max_size=2)),
        )
        for index in range(draw(st.integers(1, candidates)))
    )
    return Result(
        model=authors[0],
        models=authors,
        candidates=found,
        usage=Usage(
            **{name: draw(uint32) for name in ("prompt_tokens", "cached_prompt_tokens", "returned_tokens")},
            **{name: draw(uint32) for name in ("generated_tokens", "drafted_tokens", "accepted_tokens")},
            **{name: draw(uint32) for name in ("nudged_tokens", "discarded_tokens", "reward_calls")},
            models=tuple(ModelUsage(name, draw(uint32), draw(uint32), draw(uint32)) for name in authors),
            queue_time=draw(st.integers(0, 2**20)) / 512,
            time_to_first_token=draw(st.integers(0, 2**20)) / 512,
            total_time=draw(st.integers(0, 2**20)) / 512,
        ),
        seed=draw(uint32),
        selected=draw(st.integers(0, len(found) - 1)),
        reproducible=draw(st.booleans()),
        abstained=draw(st.booleans()),
    )


def _started(result: Result) -> Started:
    return Started("g1", result.models, result.usage.prompt_tokens, result.seed, 99)


@settings(deadline=None)
@given(results())
def test_a_unary_answer_comes_back_as_it_was(result: Result) -> None:
    authors = {name: index for index, name in enumerate(result.models)}
    response = pb.GenerateResponse(
        started=filled(pb.Started(), _started(result)),
        candidates=[candidate_message(c, authors, tokens=True) for c in result.candidates],
        completed=completed_message(result),
    )
    assert result_of(pb.GenerateResponse.FromString(response.SerializeToString())) == result


@settings(deadline=None)
@given(results(candidates=1), st.data())
def test_a_stream_of_chunks_comes_back_as_it_was(result: Result, data: Any) -> None:
    chosen = result.chosen
    cuts = sorted(data.draw(st.lists(st.integers(0, len(chosen.text)), max_size=4)))
    marks = sorted(data.draw(st.lists(st.integers(0, len(chosen.tokens)), min_size=len(cuts), max_size=len(cuts))))
    chunks = [
        Chunk(0, chosen.text[a:b], chosen.tokens[c:d])
        for a, b, c, d in zip((0, *cuts), (*cuts, None), (0, *marks), (*marks, None), strict=True)
    ]
    events = [_started(result), *chunks, Progress(1, 0, 5, data.draw(st.none() | finite32)), Completed(result)]
    messages = StreamMessages(tokens=True, max_candidates=0)
    assembler = Assembler()
    back = [
        assembler.feed(pb.GenerateStreamResponse.FromString(message.SerializeToString()))
        for event in events
        for message in messages.of(event)
    ]
    seen = [event for event in back if event is not None]
    assert [e for e in seen if not isinstance(e, Chunk)] == [e for e in events if not isinstance(e, Chunk)]
    assert [e for e in seen if isinstance(e, Chunk)] == [c for c in chunks if c.text or c.tokens]


@settings(deadline=None)
@given(results(candidates=4), st.data())
def test_every_candidate_arrives_whole_however_much_was_streamed(result: Result, data: Any) -> None:
    """A search may commit a beginning only, of some candidates only, and the client asks for any number of them."""
    chunks = []
    for candidate in result.candidates:
        if data.draw(st.booleans()):
            cut = data.draw(st.integers(0, len(candidate.text)))
            mark = data.draw(st.integers(0, len(candidate.tokens)))
            chunks.append(Chunk(candidate.index, candidate.text[:cut], candidate.tokens[:mark]))
    most = data.draw(st.none() | st.integers(0, 5))
    with_tokens = data.draw(st.booleans())
    messages = StreamMessages(tokens=with_tokens, max_candidates=most)
    assembler = Assembler()
    last: Any = None
    for event in [_started(result), *chunks, Completed(result)]:
        for message in messages.of(event):
            last = assembler.feed(pb.GenerateStreamResponse.FromString(message.SerializeToString()))
    others = [c for c in result.candidates if c is not result.chosen]
    kept = [result.chosen, *(others if most is None else others[: max(0, most - 1)])]
    expected = sorted(kept, key=lambda c: c.index)
    if not with_tokens:
        expected = [replace(c, tokens=()) for c in expected]
    assert list(last.result.candidates) == expected
    assert last.result.chosen.index == result.chosen.index
    assert last.result.abstained == result.abstained


def test_committed_text_that_is_retracted_is_the_engines_fault() -> None:
    candidate = Candidate(0, "an answer", (), FinishReason.EOS)
    result = Result(model="m", models=("m",), candidates=(candidate,), usage=Usage(prompt_tokens=1), seed=0)
    messages = StreamMessages(tokens=False, max_candidates=0)
    list(messages.of(_started(result)))
    list(messages.of(Chunk(0, "another", ())))
    with pytest.raises(EngineFailed, match="candidate 0"):
        list(messages.of(Completed(result)))


@settings(deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), max_size=300),
    st.lists(st.binary(max_size=20), max_size=80),
    st.integers(200, 600),
)
def test_parts_of_a_candidate_fit_and_concatenate(written: str, pieces: list[bytes], limit: int) -> None:
    whole = pb.Candidate(
        index=3,
        text=written,
        tokens=[pb.TokenInfo(id=i, piece=piece) for i, piece in enumerate(pieces)],
        finish_reason=pb.FINISH_REASON_EOS,
        rewards={"a": 1.0},
        token_count=len(pieces),
    )
    parts = list(candidate_parts(whole, limit))
    assert all(part.ByteSize() <= limit for part in parts)
    assert "".join(part.text for part in parts) == written
    assert [token for part in parts for token in part.tokens] == list(whole.tokens)
    assert {part.index for part in parts} == {3}
    assert [part.finish_reason for part in parts[:-1]] == [0] * (len(parts) - 1)
    assert parts[-1].finish_reason == pb.FINISH_REASON_EOS
    assert dict(parts[-1].rewards) == {"a": 1.0}
    assert (len(parts) == 1) == (whole.ByteSize() <= limit)


def _message(**event: Any) -> pb.GenerateStreamResponse:
    return pb.GenerateStreamResponse(**event)


_STARTED = _message(started=pb.Started(models=["m"]))


@pytest.mark.parametrize(
    "messages",
    [
        [_message(chunk=pb.Chunk())],
        [_STARTED, _STARTED],
        [_STARTED, _message(completed=pb.Completed())],
        [_STARTED, _message(candidate=pb.Candidate(index=1, finish_reason=1)), _message(completed=pb.Completed())],
        [_STARTED, _message(chunk=pb.Chunk(tokens=[pb.TokenInfo(author=1, draw=1)]))],
        [_STARTED, _message(chunk=pb.Chunk(tokens=[pb.TokenInfo(draw=77)]))],  # type: ignore[arg-type]
        [_STARTED, _message(chunk=pb.Chunk(tokens=[pb.TokenInfo(draw=1, reason=77)]))],  # type: ignore[arg-type]
    ],
)
def test_a_stream_out_of_order_is_malformed(messages: list[pb.GenerateStreamResponse]) -> None:
    assembler = Assembler()
    with pytest.raises(MalformedAnswer):
        list(map(assembler.feed, messages))


def test_models_come_back_as_they_were() -> None:
    info = ModelInfo(
        name="chat",
        role="aligned",
        source="s",
        architecture="A",
        dtype="bfloat16",
        device="cpu",
        max_context_tokens=2048,
        vocab_size=100,
        eos_token_ids=(1, 2),
        nudge_models=("x",),
        draft_models=("y", "z"),
    )
    assert info_of(model_message(info, {})) == info
    for role in ("base", "aligned", "draft", "reward"):
        assert info_of(model_message(replace(info, role=role), {})).role == role  # type: ignore[arg-type]


def test_rewards_come_back_as_they_were() -> None:
    for kind in ("sequence", "prefix", "token"):
        info = RewardInfo(name="r", kind=kind, description="d", models=("m",), pairwise=True, needs_reference=True)  # type: ignore[arg-type]
        assert reward_info_of(reward_message(info)) == info
    assert reward_info_of(pb.Reward(id="r", kind=9)).kind == "sequence"  # type: ignore[arg-type]


def test_a_model_lists_what_it_can_be_asked_for() -> None:
    info = info_of(pb.Model(id="m"))
    prefix, whole, pair = (
        RewardInfo(name="p", kind="prefix"),
        RewardInfo(name="w", kind="sequence"),
        RewardInfo(name="j", kind="prefix", pairwise=True),
    )
    alone = {"policy.base", "policy.guided", "draw.autoregressive", "draw.speculative", "search.single"}
    alone.add("search.best_of_n")
    beginnings = {"policy.token_reward", "search.segments", "search.reject_segments", "search.evolution"}
    for rewards, more in (
        ((), set()),
        ((pair,), set()),
        ((whole,), {"search.refine"}),
        ((prefix,), {"search.refine", *beginnings}),
    ):
        assert set(model_message(info, {r.name: r for r in rewards}).methods) == alone | more
    assert set(model_message(replace(info, nudge_models=("x",)), {"p": prefix}).methods) == {
        f"{axis}.{name}" for axis in AXES for name in methods(axis)
    }
    assert not model_message(replace(info, role="reward"), {"p": prefix}).methods


def test_scores_come_back_as_they_were() -> None:
    items = [("text", "é"), ([ChatMessage("user", "hi")], ""), ([{"role": "user", "content": "x"}], "y")]
    message = score_request(items, reward=None, model="m", tokens=True)
    assert message.WhichOneof("scorer") == "model"
    assert [item.completion for item in message.items] == ["é", "", "y"]
    assert message.items[0].text == "text"
    assert [m.content for item in message.items[1:] for m in item.chat.messages] == ["hi", "x"]
    for bad, field in (
        ({"reward": "r", "model": "m"}, "scorer"),
        ({"reward": None, "model": None}, "scorer"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            score_request(items, tokens=False, **bad)
        assert [v.field for v in caught.value.violations] == [field]
    with pytest.raises(InvalidRequest, match=r"items\[1\]\.completion"):
        score_request([("a", "b"), ("a", "\ud800")], reward="r", model=None, tokens=False)
    with pytest.raises(InvalidRequest, match=r"items\[0\]\.prompt"):
        score_request([((1, 2), "b")], reward="r", model=None, tokens=False)  # type: ignore[list-item]
    token = pb.TokenInfo(id=3, piece=b"a", draw=pb.TOKEN_DRAW_FORCED, logprob=-0.5)
    response = pb.ScoreResponse(scores=[pb.ItemScore(value=-0.5, token_count=1, tokens=[token])])
    assert scores_of(response, "m") == [Scored(-0.5, 1, (Token(3, b"a", "m", TokenDraw.FORCED, -0.5),))]


# --------------------------------------------------------------------------------------------------------------- errors

VIOLATIONS = (
    Violation.of("sampling.temperature", math.nan, "a finite number in [0, 10]"),
    Violation.of("prompt.messages[2].role", "x: accepted: y", "one of 'system', 'user', 'assistant'"),
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest(VIOLATIONS), StatusCode.INVALID_ARGUMENT),
        (NotFound("model", "it's", ["a", "b"]), StatusCode.NOT_FOUND),
        (UnsupportedRequest("policy.nudged", "with x", "y"), StatusCode.FAILED_PRECONDITION),
        (Overloaded("full", 2.5), StatusCode.RESOURCE_EXHAUSTED),
        (AnswerTooLarge("too large"), StatusCode.RESOURCE_EXHAUSTED),
        (EngineClosed("closing"), StatusCode.UNAVAILABLE),
        (RequestCancelled("cancelled"), StatusCode.CANCELLED),
        (RewardFailed("short", "it gave nan for sample 0"), StatusCode.INTERNAL),
        (RewardFailed("slow", "it took longer than its limit of 2 s", timed_out=True), StatusCode.INTERNAL),
    ],
)
def test_errors_come_back_as_they_were(error: Any, code: StatusCode) -> None:
    status = status_of(error, in_spec=True)
    assert status.code == code.value[0]
    back = error_of(code, status.message, status)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert back.retryable == error.retryable
    assert getattr(back, "violations", None) == getattr(error, "violations", None)
    assert getattr(back, "retry_after", None) == getattr(error, "retry_after", None)


def test_what_an_exception_of_a_reward_says_does_not_leak() -> None:
    error = RewardFailed("short", "it raised OSError: /opt/secret is missing")
    error.__cause__ = OSError("/opt/secret is missing")
    status = status_of(error)
    assert "secret" not in str(status)
    back = error_of(StatusCode.INTERNAL, status.message, status)
    assert isinstance(back, RewardFailed)
    assert back.reward == "short"
    assert back.reason.startswith("it raised OSError; the server's log has it as ")


def test_the_engines_own_faults_do_not_leak() -> None:
    status = status_of(EngineFailed("CUDA error at /opt/secret"))
    assert "secret" not in str(status)
    assert isinstance(error_of(StatusCode.INTERNAL, status.message, status), EngineFailed)
