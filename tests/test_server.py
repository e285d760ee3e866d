"""The server over a scripted engine: what callers are promised, without a model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import scripted_engine as scripted
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.decode.config import ConfigError
from trimtab.decode.errors import (
    EngineClosed,
    EngineFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RewardFailed,
    UnsupportedRequest,
)
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Logprob, Segments
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Progress,
    Started,
)
from trimtab.decode.request.info import Limits
from trimtab.decode.request.keywords import request_from_kwargs
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    Result,
    Scored,
    Token,
    TokenDraw,
    Usage,
)
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.request.validate import validate
from trimtab.server.client import AsyncClient, Client
from trimtab.server.config import ServerConfig
from trimtab.server.rpc.background import BackgroundServer
from trimtab.server.rpc.server import Server, ServerError
from trimtab.server.wire.request import spec_of
from trimtab.server.wire.status import DeadlineExceeded, Unreachable
from trimtab.v1 import decoding_pb2 as pb
from trimtab.v1.decoding_pb2_grpc import DecodingServiceStub

SERVICE = "/trimtab.v1.DecodingService"


class Served:
    """A scripted engine behind a server, with a client and a channel to it."""

    def __init__(self, engine: Any, config: ServerConfig | None = None) -> None:
        self.engine = engine
        self.config = config
        self.server: BackgroundServer

    def __enter__(self) -> Served:
        self.server = BackgroundServer(lambda: self.engine, self.config)
        self.server.__enter__()
        self.channel = grpc.insecure_channel(self.server.address)
        self.stub = DecodingServiceStub(self.channel)
        self.client = Client(self.server.address, timeout=20.0)
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.close()
        self.channel.close()
        self.server.__exit__(*error)


@pytest.fixture
def engine() -> Any:
    return scripted.ScriptedEngine()


@pytest.fixture
def served(engine: Any) -> Iterator[Served]:
    with Served(engine) as it:
        yield it
        assert engine.wait_idle(), "a request outlived its call"


def spec(**fields: Any) -> pb.GenerationSpec:
    return pb.GenerationSpec(**{"model": "base", "text": "Hello", **fields})


def details(error: grpc.RpcError) -> dict[str, Any]:
    """The rich details of a status, by the name of their type."""
    status = rpc_status.from_call(error)
    found = {}
    for detail in status.details if status is not None else ():
        message = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])()
        assert detail.Unpack(message)
        found[type(message).__name__] = message
    return found


def failing(call: Callable[[], Any]) -> tuple[grpc.StatusCode, dict[str, Any], str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), details(caught.value), caught.value.details() or ""


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    return condition()


# --------------------------------------------------------------------------------------------- 1: bad fields at once


NAN, INF = math.nan, math.inf
HELPFUL = pb.Objective(terms=[pb.RewardTerm(reward="helpful")])
BAD = {
    "temperature nan": (spec(sampling=pb.Sampling(temperature=NAN)), {"spec.sampling.temperature"}),
    "temperature inf": (spec(sampling=pb.Sampling(temperature=INF)), {"spec.sampling.temperature"}),
    "temperature -inf": (spec(sampling=pb.Sampling(temperature=-INF)), {"spec.sampling.temperature"}),
    "temperature negative": (spec(sampling=pb.Sampling(temperature=-1)), {"spec.sampling.temperature"}),
    "temperature 11": (spec(sampling=pb.Sampling(temperature=11)), {"spec.sampling.temperature"}),
    "top_p 0": (spec(sampling=pb.Sampling(top_p=0)), {"spec.sampling.top_p"}),
    "min_p 1": (spec(sampling=pb.Sampling(min_p=1)), {"spec.sampling.min_p"}),
    "max_new_tokens 0": (spec(stopping=pb.Stopping(max_new_tokens=0)), {"spec.stopping.max_new_tokens"}),
    "nine stops": (spec(stopping=pb.Stopping(stop=list("abcdefghi"))), {"spec.stopping.stop"}),
    "empty prompt": (spec(text=""), {"spec.prompt"}),
    "no prompt": (pb.GenerationSpec(model="base"), {"spec.prompt"}),
    "no token ids": (spec(token_ids=pb.TokenIds()), {"spec.prompt"}),
    "id beyond the vocabulary": (spec(token_ids=pb.TokenIds(ids=[1, 5000])), {"spec.token_ids.ids[1]"}),
    "unknown role": (
        spec(chat=pb.Chat(messages=[pb.ChatMessage(role="robot", content="x")])),
        {"spec.chat.messages[0].role"},
    ),
    "top_logprobs without tokens": (
        spec(response=pb.ResponseOptions(top_logprobs=3)),
        {"spec.response.top_logprobs"},
    ),
    "top_logprobs 21": (
        spec(response=pb.ResponseOptions(top_logprobs=21, tokens=True)),
        {"spec.response.top_logprobs"},
    ),
    "a mixture of nothing": (spec(policy=pb.Policy(mixture=pb.Mixture())), {"spec.policy.mixture.experts"}),
    "an expert that is the model": (
        spec(policy=pb.Policy(mixture=pb.Mixture(experts=[pb.Weighted(model="base", weight=NAN)]))),
        {"spec.policy.mixture.experts[0].model", "spec.policy.mixture.experts[0].weight"},
    ),
    "width 1": (
        spec(policy=pb.Policy(token_reward=pb.TokenReward(reward="helpful", width=1))),
        {"spec.policy.token_reward.width"},
    ),
    "no drafter": (
        spec(draw=pb.Draw(speculative=pb.Speculative(fixed=pb.FixedLength(tokens=33)))),
        {"spec.draw.speculative.drafter", "spec.draw.speculative.draft_model", "spec.draw.speculative.fixed.tokens"},
    ),
    "the model as its own draft": (
        spec(draw=pb.Draw(speculative=pb.Speculative(draft_model="base"))),
        {"spec.draw.speculative.draft_model"},
    ),
    "best of none": (
        spec(search=pb.Search(best_of_n=pb.BestOfN())),
        {"spec.search.best_of_n.n", "spec.search.best_of_n.objective"},
    ),
    "best of too many": (
        spec(search=pb.Search(best_of_n=pb.BestOfN(n=65, choose=pb.CHOOSE_MAJORITY))),
        {"spec.search.best_of_n.n"},
    ),
    "an unknown choice": (
        spec(search=pb.Search(best_of_n=pb.BestOfN(n=2, choose=99, objective=HELPFUL))),  # type: ignore[arg-type]
        {"spec.search.best_of_n.choose"},
    ),
    "weight inf": (
        spec(
            search=pb.Search(
                refine=pb.Refine(objective=pb.Objective(terms=[pb.RewardTerm(reward="helpful", weight=INF)]))
            )
        ),
        {"spec.search.refine.objective.terms[0].weight"},
    ),
    "no target": (
        spec(search=pb.Search(reject_segments=pb.RejectSegments(objective=HELPFUL, beta=-1))),
        {"spec.search.reject_segments.target", "spec.search.reject_segments.beta"},
    ),
    "no objective": (spec(search=pb.Search(segments=pb.Segments())), {"spec.search.segments.objective.terms"}),
    "a reference is missing": (
        spec(
            search=pb.Search(best_of_n=pb.BestOfN(n=2, objective=pb.Objective(terms=[pb.RewardTerm(reward="whole")])))
        ),
        {"spec.references"},
    ),
    "long client_request_id": (spec(client_request_id="x" * 129), {"spec.client_request_id"}),
    "trigger nan": (
        spec(policy=pb.Policy(nudged=pb.Nudged(nudger="chat", entropy_nats_above=NAN))),
        {"spec.policy.nudged.entropy_nats_above"},
    ),
    "nudger is the model": (spec(policy=pb.Policy(nudged=pb.Nudged(nudger="base"))), {"spec.policy.nudged.nudger"}),
    "nothing at all": (pb.GenerationSpec(), {"spec.model", "spec.prompt"}),
    "five at once": (
        pb.GenerationSpec(
            model="base",
            text="",
            sampling=pb.Sampling(temperature=NAN, top_p=2),
            stopping=pb.Stopping(max_new_tokens=0),
            policy=pb.Policy(),
        ),
        {
            "spec.prompt",
            "spec.sampling.temperature",
            "spec.sampling.top_p",
            "spec.stopping.max_new_tokens",
            "spec.policy",
        },
    ),
}


@pytest.fixture(scope="module")
def bad_server() -> Iterator[Served]:
    with Served(scripted.ScriptedEngine()) as it:
        yield it


@pytest.mark.parametrize("case", BAD)
def test_every_bad_field_is_named(bad_server: Served, case: str) -> None:
    bad, fields = BAD[case]
    for call in (
        lambda: bad_server.stub.Generate(pb.GenerateRequest(spec=bad)),
        lambda: list(bad_server.stub.GenerateStream(pb.GenerateStreamRequest(spec=bad))),
    ):
        code, found, _ = failing(call)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert {v.field for v in found["BadRequest"].field_violations} == fields
        assert found["ErrorInfo"].domain == "trimtab.v1"
        assert "RetryInfo" not in found
    assert bad_server.engine.submitted == 0


def test_unknown_enum_number_is_refused(bad_server: Served) -> None:
    request = pb.GenerateStreamRequest(spec=spec(), mode=17)  # type: ignore[arg-type]
    code, found, _ = failing(lambda: list(bad_server.stub.GenerateStream(request)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in found["BadRequest"].field_violations] == ["mode"]


# -------------------------------------------------------------------------------------- 2: what the server cannot know


def _with_unknown(message: Any, number: int = 900) -> Any:
    """The message with one more field, as a newer client would send it."""
    tag, value = (number << 3) | 0, 1
    varint = bytes([(tag & 0x7F) | 0x80, tag >> 7, value])
    return type(message).FromString(message.SerializeToString() + varint)


@pytest.mark.parametrize("axis", ["policy", "draw", "search"])
@pytest.mark.parametrize("newer", [False, True])
def test_an_axis_without_a_known_variant_is_refused(bad_server: Served, axis: str, newer: bool) -> None:
    kind = {"policy": pb.Policy, "draw": pb.Draw, "search": pb.Search}[axis]()
    kind = _with_unknown(kind) if newer else kind
    assert kind.WhichOneof("kind") is None
    code, found, _ = failing(lambda: bad_server.stub.Generate(pb.GenerateRequest(spec=spec(**{axis: kind}))))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in found["BadRequest"].field_violations] == [f"spec.{axis}"]


@pytest.mark.parametrize(
    ("unknown", "field"),
    [
        (_with_unknown(spec()), "spec"),
        (spec(sampling=_with_unknown(pb.Sampling(temperature=0))), "spec.sampling"),
        (spec(policy=_with_unknown(pb.Policy(base=pb.Base()))), "spec.policy"),
        (spec(policy=pb.Policy(nudged=_with_unknown(pb.Nudged(nudger="chat")))), "spec.policy.nudged"),
    ],
)
def test_a_field_of_a_newer_proto_is_refused(bad_server: Served, unknown: pb.GenerationSpec, field: str) -> None:
    code, found, _ = failing(lambda: bad_server.stub.Generate(pb.GenerateRequest(spec=unknown)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in found["BadRequest"].field_violations] == [field]
    assert "900" in found["BadRequest"].field_violations[0].description


# ---------------------------------------------------------------------------------------------------- 3: error codes


def test_unknown_models_are_not_found(bad_server: Served) -> None:
    for call in (
        lambda: bad_server.stub.Generate(pb.GenerateRequest(spec=spec(model="gpt"))),
        lambda: bad_server.stub.Tokenize(pb.TokenizeRequest(model="gpt", texts=["x"])),
        lambda: bad_server.stub.Detokenize(pb.DetokenizeRequest(model="gpt", ids=[3])),
    ):
        code, found, message = failing(call)
        assert code is grpc.StatusCode.NOT_FOUND
        assert "'base', 'chat'" in message
        assert found["ErrorInfo"].reason == "NOT_FOUND"
    with pytest.raises(NotFound, match=r"model = 'gpt'.*'base', 'chat'"):
        bad_server.client.generate("x", model="gpt")


def test_unknown_rewards_are_not_found(bad_server: Served) -> None:
    objective = pb.Objective(terms=[pb.RewardTerm(reward="gone")])
    unknown = spec(search=pb.Search(best_of_n=pb.BestOfN(n=2, objective=objective)))
    code, found, message = failing(lambda: bad_server.stub.Generate(pb.GenerateRequest(spec=unknown)))
    assert code is grpc.StatusCode.NOT_FOUND
    assert found["BadRequest"].field_violations[0].field == "spec.search.best_of_n.objective.terms[0].reward"
    assert "'helpful', 'versus', 'whole'" in message
    with pytest.raises(NotFound, match=r"reward = 'gone'.*'helpful', 'versus', 'whole'"):
        bad_server.client.score([("a", "b")], reward="gone")


@pytest.mark.parametrize(
    ("pair", "field", "names"),
    [
        (
            spec(search=pb.Search(segments=pb.Segments(objective=pb.Objective(terms=[pb.RewardTerm(reward="whole")])))),
            "spec.search.segments.objective.terms[0].reward",
            "'whole'",
        ),
        (
            spec(policy=pb.Policy(mixture=pb.Mixture(experts=[pb.Weighted(model="chat")]))),
            "spec.policy.mixture.experts[0].model",
            "'chat' mixed with 'base'",
        ),
        (
            spec(
                policy=pb.Policy(token_reward=pb.TokenReward(reward="helpful")),
                draw=pb.Draw(speculative=pb.Speculative(draft_model="chat")),
            ),
            "spec.draw",
            "draw.speculative with policy.token_reward",
        ),
    ],
)
def test_pairs_that_cannot_work_are_refused_before_they_start(
    bad_server: Served, pair: pb.GenerationSpec, field: str, names: str
) -> None:
    pair.references.append("an answer")
    for call in (
        lambda: bad_server.stub.Generate(pb.GenerateRequest(spec=pair)),
        lambda: list(bad_server.stub.GenerateStream(pb.GenerateStreamRequest(spec=pair))),
    ):
        code, found, message = failing(call)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert [v.field for v in found["BadRequest"].field_violations] == [field]
        assert names in message
    assert bad_server.engine.submitted == 0


def test_a_failing_reward_is_named_and_fails_its_own_request(served: Served) -> None:
    served.engine.step_failure = RewardFailed("helpful", "it gave nan for sample 0; accepted: numbers")
    for call in (served.client.generate, lambda *a, **k: list(served.client.stream(*a, **k))):
        with pytest.raises(RewardFailed) as caught:
            call("hi", model="base", search=BestOfN(2, "helpful"))
        assert str(caught.value) == str(served.engine.step_failure)
        assert not caught.value.retryable
    served.engine.step_failure = RewardFailed("helpful", "it took too long", timed_out=True)
    code, found, _ = failing(lambda: served.stub.Generate(pb.GenerateRequest(spec=spec())))
    assert code is grpc.StatusCode.INTERNAL
    assert found["ErrorInfo"].reason == "REWARD_FAILED"
    assert found["RetryInfo"].retry_delay.seconds >= 1
    served.engine.step_failure = None
    assert served.client.generate("hi", model="base", max_new_tokens=2).tokens, "and no other"


@pytest.mark.parametrize("method", ["Generate", "Tokenize"])
def test_bytes_that_are_no_message_are_internal(bad_server: Served, method: str) -> None:
    call = bad_server.channel.unary_unary(f"{SERVICE}/{method}")  # no serializer: raw bytes
    code, _, _ = failing(lambda: call(b"\xff\xff\xff\xff"))
    assert code is grpc.StatusCode.INTERNAL
    stream = bad_server.channel.unary_stream(f"{SERVICE}/GenerateStream")
    code, _, _ = failing(lambda: list(stream(b"\xff\xff\xff\xff")))
    assert code is grpc.StatusCode.INTERNAL


def test_unsupported_combinations_are_failed_preconditions(served: Served) -> None:
    served.engine.submit_failure = UnsupportedRequest("policy.nudged", "with search x", "single")
    code, found, _ = failing(lambda: served.stub.Generate(pb.GenerateRequest(spec=spec())))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert found["BadRequest"].field_violations[0].field == "spec.policy.nudged"
    with pytest.raises(UnsupportedRequest) as caught:
        served.client.generate("x", model="base")
    assert caught.value.violations == served.engine.submit_failure.violations
    assert str(caught.value) == str(served.engine.submit_failure)


def test_the_client_raises_what_the_engine_raises(served: Served) -> None:
    bad = {"temperature": -1.0, "top_p": 7.0, "top_logprobs": 3000, "stop": "x" * 300}
    with pytest.raises(InvalidRequest) as embedded:
        validate(request_from_kwargs("hi", model="base", **bad), served.engine.models, served.engine.limits)
    with pytest.raises(InvalidRequest) as remote:
        served.client.generate("hi", model="base", **bad)
    assert set(remote.value.violations) == set(embedded.value.violations)
    assert len(remote.value.violations) == 4


# ----------------------------------------------------------------------------------------- 5: explicit zero and seeds


def test_explicit_zero_is_honoured_and_unset_is_not_zero(served: Served) -> None:
    greedy = {served.client.generate("hi", model="base", temperature=0.0, max_new_tokens=12).text for _ in range(4)}
    drawn = {served.client.generate("hi", model="base", max_new_tokens=12).text for _ in range(12)}
    assert len(greedy) == 1
    assert len(drawn) > 1
    assert [job.request.sampling.temperature for job in served.engine.jobs[:4]] == [0.0] * 4
    assert served.engine.jobs[4].request.sampling.temperature is None


def test_seed_zero_is_a_seed(served: Served) -> None:
    answers = [served.client.generate("hi", model="base", max_new_tokens=12, seed=0) for _ in range(3)]
    assert {answer.seed for answer in answers} == {0}
    assert len({answer.text for answer in answers}) == 1


# --------------------------------------------------------------------------------------- 6: nothing leaks in an error


@pytest.mark.parametrize("where", ["submit_failure", "step_failure"])
def test_unexpected_errors_do_not_leak(served: Served, where: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "/home/someone/weights " + "x" * 100_000
    setattr(served.engine, where, RuntimeError(secret))
    for call in (
        lambda: served.stub.Generate(pb.GenerateRequest(spec=spec())),
        lambda: list(served.stub.GenerateStream(pb.GenerateStreamRequest(spec=spec()))),
    ):
        caplog.clear()
        with caplog.at_level(logging.ERROR, "trimtab.server"), pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        status = rpc_status.from_call(caught.value)
        assert status is not None
        assert len(status.SerializeToString()) < 4096
        assert "someone" not in f"{status}{caught.value.details()}"
        incident = details(caught.value)["ErrorInfo"].metadata["incident"]
        assert incident in caplog.text, "the log lacks the id that the client was given"
        assert "someone" in caplog.text
    with pytest.raises(EngineFailed, match="log has it"):
        served.client.generate("x", model="base")


def test_a_status_with_many_violations_stays_small(bad_server: Served) -> None:
    stops = ["é" * 200] * 8
    bias = {70_000 + i: NAN for i in range(500)}
    bad = spec(sampling=pb.Sampling(logit_bias=bias, temperature=NAN), stopping=pb.Stopping(stop=stops))
    with pytest.raises(grpc.RpcError) as caught:
        bad_server.stub.Generate(pb.GenerateRequest(spec=bad))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert len(status.SerializeToString()) < 4096


# ------------------------------------------------------------------------------------------------------ 7, 8: cancel


def _slow(state: str) -> Any:
    """An engine that keeps a request in one state."""
    limits = Limits(max_new_tokens=10**6)
    match state:
        case "queued":
            return scripted.ScriptedEngine(max_running=0, limits=limits)
        case "prefill":
            return scripted.ScriptedEngine(prefill_ticks=10**9, limits=limits)
        case "decoding":
            return scripted.ScriptedEngine(tick=0.005, limits=limits)
    raise ValueError(state)


@pytest.mark.parametrize("state", ["queued", "prefill", "decoding"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_cancel_and_deadline_reach_the_engine(state: str, stream: bool, how: str) -> None:
    with Served(_slow(state)) as served:
        engine = served.engine
        long = spec(stopping=pb.Stopping(max_new_tokens=100_000))
        timeout = 0.25 if how == "deadline" else None
        if stream:
            call: Any = served.stub.GenerateStream(pb.GenerateStreamRequest(spec=long), timeout=timeout)
        else:
            call = served.stub.Generate.future(pb.GenerateRequest(spec=long), timeout=timeout)
        assert wait_until(lambda: bool(engine.jobs) and engine.jobs[0].state == state)
        if how == "cancel":
            call.cancel()
        else:
            assert wait_until(lambda: call.code() is not None if stream else call.done())
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert engine.wait_idle(2.0), "the engine still works for nobody"
        assert engine.jobs[0].state == "cancelled"
        passes = engine.forward_passes
        time.sleep(0.05)
        assert engine.forward_passes <= passes + 1
        if state == "queued":
            assert engine.forward_passes == 0


def test_cancel_while_the_prompt_is_tokenised(served: Served) -> None:
    served.engine.tokenize_seconds = 0.3
    call = served.stub.Generate.future(pb.GenerateRequest(spec=spec(stopping=pb.Stopping(max_new_tokens=4000))))
    time.sleep(0.1)
    call.cancel()
    assert wait_until(lambda: len(served.engine.jobs) == 1), "the worker thread goes on, as threads do"
    assert wait_until(lambda: served.engine.jobs[0].state == "cancelled")


class CountingEngine(scripted.ScriptedEngine):  # type: ignore[misc]
    """Counts the events that the server has taken."""

    taken = 0

    async def astream_request(self, request: Any) -> Any:
        async with contextlib.aclosing(super().astream_request(request)) as events:
            async for event in events:
                self.taken += 1
                yield event


def test_cancel_while_a_write_waits_for_the_client() -> None:
    limits = Limits(max_new_tokens=10**6)
    with Served(CountingEngine(tick=0, limits=limits)) as served:
        # Without its probes the flow-control window stays at 64 KB, and a client that does not read blocks the writer.
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)]
        with grpc.insecure_channel(served.server.address, options=options) as channel:
            endless = spec(
                stopping=pb.Stopping(max_new_tokens=1_000_000),
                response=pb.ResponseOptions(tokens=True, top_logprobs=20),
            )
            call = DecodingServiceStub(channel).GenerateStream(pb.GenerateStreamRequest(spec=endless))
            next(call)
            job = served.engine.jobs[0]
            assert wait_until(lambda: len(job.written) > 1500)
            taken, written = served.engine.taken, len(job.written)
            time.sleep(0.1)
            assert served.engine.taken == taken, "no write is waiting: the test would prove nothing"
            assert len(job.written) > written, "decoding waits for a client"
            call.cancel()
            assert served.engine.wait_idle(2.0)
            assert job.state == "cancelled"


def test_random_cancels_leave_nothing_behind() -> None:
    import random

    draw = random.Random(7)
    with Served(scripted.ScriptedEngine(tick=0.001, max_running=4)) as served:
        threads = threading.active_count()
        for _ in range(60):
            calls = [
                served.stub.GenerateStream(
                    pb.GenerateStreamRequest(spec=spec(stopping=pb.Stopping(max_new_tokens=draw.randint(1, 40))))
                )
                for _ in range(4)
            ]
            time.sleep(draw.random() * 0.01)
            for call in calls:
                call.cancel()
        assert served.engine.wait_idle()
        assert served.client.generate("still there?", model="base", max_new_tokens=3).tokens
        assert wait_until(lambda: threading.active_count() <= threads + 8)


# ------------------------------------------------------------------------------------------------------ 10: overload


def test_overload_is_refused_at_once_with_a_time_to_retry() -> None:
    engine = scripted.ScriptedEngine(max_running=1, tick=0.01, limits=Limits(max_queue=2))
    with Served(engine) as served:
        long = spec(stopping=pb.Stopping(max_new_tokens=60))
        running = [served.stub.Generate.future(pb.GenerateRequest(spec=long))]
        assert wait_until(lambda: bool(engine.jobs) and engine.jobs[0].state == "decoding")
        running += [served.stub.Generate.future(pb.GenerateRequest(spec=long)) for _ in range(2)]
        assert wait_until(lambda: len(engine.jobs) == 3)
        times = []
        for _ in range(5):
            began = time.monotonic()
            code, found, _ = failing(lambda: served.stub.Generate(pb.GenerateRequest(spec=long)))
            times.append(time.monotonic() - began)
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert found["RetryInfo"].retry_delay.ToTimedelta().total_seconds() == 2.5
            assert found["ErrorInfo"].reason == "QUEUE_FULL"
        assert min(times) < 0.05
        with pytest.raises(Overloaded) as caught:
            served.client.generate("x", model="base")
        assert caught.value.retryable
        assert caught.value.retry_after == 2.5
        health: Any = health_pb2_grpc.HealthStub(served.channel)
        assert health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        assert all(len(call.result().candidates[0].text) > 0 for call in running), "running calls are unaffected"


def test_calls_in_progress_are_bounded() -> None:
    config = ServerConfig(port=0, lame_duck=0.0, max_calls=2)
    with Served(scripted.ScriptedEngine(tick=0.01), config) as served:
        long = pb.GenerateRequest(spec=spec(stopping=pb.Stopping(max_new_tokens=50)))
        running = [served.stub.Generate.future(long) for _ in range(2)]
        assert wait_until(lambda: len(served.engine.jobs) == 2)
        code, found, _ = failing(lambda: served.stub.Generate(long))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "RetryInfo" in found
        for call in running:
            call.result()
        served.stub.Generate(long)  # there is room again


# --------------------------------------------------------------------------------------------------------- 14: sizes


def test_a_request_above_the_limit_is_rejected_without_a_retry_hint() -> None:
    with Served(scripted.ScriptedEngine(), ServerConfig(port=0, lame_duck=0.0, max_request_bytes=2000)) as served:
        code, found, _ = failing(lambda: served.stub.Generate(pb.GenerateRequest(spec=spec(text="x" * 3000))))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "RetryInfo" not in found
        assert served.engine.submitted == 0


def test_a_large_unary_answer_is_refused_before_it_starts() -> None:
    with Served(scripted.ScriptedEngine(limits=Limits(max_new_tokens=10**6))) as served:
        large = spec(
            stopping=pb.Stopping(max_new_tokens=100_000), response=pb.ResponseOptions(tokens=True, top_logprobs=20)
        )
        code, found, _ = failing(lambda: served.stub.Generate(pb.GenerateRequest(spec=large)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        (violation,) = found["BadRequest"].field_violations
        assert violation.field == "spec.stopping.max_new_tokens"
        assert "GenerateStream" in violation.description
        assert served.engine.submitted == 0


class LargeEngine(scripted.ScriptedEngine):  # type: ignore[misc]
    """Commits nothing while it decodes, as searches do, and returns several large candidates at once."""

    candidates = 3
    tokens = 9000

    async def astream_request(self, request: Any) -> Any:
        from trimtab.decode.request.events import Progress
        from trimtab.decode.request.result import (
            Candidate,
            Result,
            Token,
            TopLogprob,
            Usage,
        )

        def candidate(index: int) -> Candidate:
            top = tuple(TopLogprob(i, b"alternative", -1.0) for i in range(20))
            tokens = tuple(
                Token(i % 300, f"é{i} ".encode()[:-1], "base", TokenDraw.PLAIN, -0.5, 1.0, 0.5, top)
                for i in range(self.tokens)
            )
            return Candidate(index, "".join(t.piece.decode() for t in tokens), tokens, FinishReason.MAX_NEW_TOKENS)

        yield Started("g", ("base",), 1, 0, self.tokens)
        yield Progress(self.candidates, 0, 5, 0.5)
        result = Result(
            model="base",
            models=("base",),
            candidates=tuple(candidate(i) for i in range(self.candidates)),
            usage=Usage(prompt_tokens=1),
            seed=0,
            selected=1,
        )
        self.result = result
        yield Completed(result)


def test_large_candidates_are_split_and_add_up() -> None:
    with Served(LargeEngine()) as served:
        request = pb.GenerateStreamRequest(spec=spec(response=pb.ResponseOptions(tokens=True, max_candidates=3)))
        messages = list(served.stub.GenerateStream(request, timeout=60))
        assert all(message.ByteSize() <= 3 * 1024 * 1024 for message in messages)
        assert sum(message.ByteSize() for message in messages) > 6 * 1024 * 1024, "nothing had to be split"
        kinds = [message.WhichOneof("event") for message in messages]
        assert kinds[:2] == ["started", "progress"]
        assert kinds[-1] == "completed"
        texts: dict[int, str] = {}
        tokens: dict[int, int] = {}
        for message in messages:
            texts[message.candidate.index] = texts.get(message.candidate.index, "") + message.candidate.text
            tokens[message.candidate.index] = tokens.get(message.candidate.index, 0) + len(message.candidate.tokens)
        assert texts == {c.index: c.text for c in served.engine.result.candidates}
        assert tokens == dict.fromkeys(range(3), LargeEngine.tokens)

        # A unary answer of so few tokens would fit: this engine does not keep to max_new_tokens.
        code, found, said = failing(
            lambda: served.stub.Generate(
                pb.GenerateRequest(
                    spec=spec(stopping=pb.Stopping(max_new_tokens=10), response=pb.ResponseOptions(tokens=True))
                )
            )
        )
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert found["ErrorInfo"].reason == "TOO_LARGE"
        assert "RetryInfo" not in found
        assert "GenerateStream" in said


def test_the_client_puts_split_candidates_together() -> None:
    with Served(LargeEngine()) as served:
        *_, last = served.client.stream("hi", model="base")
        assert isinstance(last, Completed)
        assert last.result.chosen == served.engine.result.chosen
        assert last.result.candidates == (served.engine.result.chosen,)
        assert last.result.selected == 0


# ------------------------------------------------------------------------------------------------- searches: candidates


class SearchingEngine(scripted.ScriptedEngine):  # type: ignore[misc]
    """Commits the beginning of its second candidate, reports progress, and takes that candidate in the end."""

    async def astream_request(self, request: Any) -> Any:
        def candidate(index: int, text: str, reason: FinishReason) -> Candidate:
            made = tuple(
                Token(b, bytes([b]), "base", TokenDraw.ACCEPTED, -0.5, 1.0, 0.5, (), 0.25) for b in text.encode()
            )
            return Candidate(index, text, made, reason, None, {"helpful": index / 4, "objective": index / 4})

        candidates = (
            candidate(0, "Größe one", FinishReason.EOS),
            candidate(1, "Größe two is longer", FinishReason.STOP),
            candidate(2, "", FinishReason.PRUNED),
            candidate(3, "a third 🙂", FinishReason.MAX_NEW_TOKENS),
        )
        yield Started("g", ("base",), 1, 7, 99)
        yield Progress(4, 0, 8)
        yield Chunk(1, "Größe ", candidates[1].tokens[:9])  # one token more than its text
        yield Progress(1, 3, 30, 0.5)
        self.result = Result(
            model="base",
            models=("base",),
            candidates=candidates,
            usage=Usage(prompt_tokens=1, drafted_tokens=9, accepted_tokens=5, discarded_tokens=4, reward_calls=3),
            seed=7,
            selected=1,
            reproducible=False,
            abstained=True,
        )
        yield Completed(self.result)


def test_a_search_gives_the_same_streamed_unary_and_embedded() -> None:
    search = BestOfN(4, "helpful")
    with Served(SearchingEngine()) as served:
        *events, last = served.client.stream("hi", model="base", search=search)
        assert isinstance(last, Completed)
        assert last.result == served.engine.result
        assert served.client.generate("hi", model="base", search=search) == served.engine.result
        assert [e for e in events if isinstance(e, Progress)] == [Progress(4, 0, 8), Progress(1, 3, 30, 0.5)]
        assert "".join(e.text for e in events if isinstance(e, Chunk)) == "Größe "


@pytest.mark.parametrize(("most", "indices"), [(0, [1]), (1, [1]), (2, [1, 0]), (3, [1, 0, 2]), (99, [1, 0, 2, 3])])
@pytest.mark.parametrize("tokens", [False, True])
def test_as_many_candidates_arrive_as_were_asked_for(most: int, indices: list[int], tokens: bool) -> None:
    with Served(SearchingEngine()) as served:
        options = pb.ResponseOptions(max_candidates=most, tokens=tokens)
        asked = spec(response=options, search=pb.Search(best_of_n=pb.BestOfN(n=4, objective=HELPFUL)))
        unary = served.stub.Generate(pb.GenerateRequest(spec=asked))
        assert [c.index for c in unary.candidates] == indices
        for every, expected in ((False, indices), (True, [1, 0, 2, 3])):
            mode = pb.STREAM_MODE_ALL_CANDIDATES if every else pb.STREAM_MODE_COMMITTED
            messages = list(served.stub.GenerateStream(pb.GenerateStreamRequest(spec=asked, mode=mode)))
            ended = [m.candidate for m in messages if m.WhichOneof("event") == "candidate"]
            assert [c.index for c in ended] == expected
            assert ended[0].text == "two is longer", "what was committed is not sent again"
            assert [c.text for c in ended[1:]] == [served.engine.result.candidates[i].text for i in expected[1:]]
            written = len(served.engine.result.chosen.tokens)
            sent = sum(
                len(m.chunk.tokens) + len(m.candidate.tokens)
                for m in messages
                if 1 in (m.candidate.index, m.chunk.candidate)
            )
            assert sent == (written if tokens else 0)
            assert ended[0].token_count == written
            assert dict(ended[0].rewards) == {"helpful": 0.25, "objective": 0.25}
        completed = messages[-1].completed
        assert (completed.abstained, completed.reproducible, completed.usage.discarded_tokens) == (True, False, 4)


def test_every_axis_arrives_as_it_was_sent(served: Served) -> None:
    objective = Objective((RewardTerm("helpful", -0.7), RewardTerm("helpful", 0.1)), Combine.MIN, 0.3)
    for axes in (
        {"policy": TokenReward("helpful", 0.3, 7)},
        {"draw": Speculative("chat", Fixed(3), coupled=True), "search": BestOfN(3, "helpful", Choose.SOFT, 0.7)},
        {"draw": Speculative(PromptLookup(5)), "policy": Nudged("chat", Entropy(1.3), 5)},
        {"draw": Speculative("chat", Fixed(3), copying=PromptLookup(5))},
        {"search": BestOfN(4, objective, reject_fraction=0.3, check_every_tokens=9, threshold=-0.1)},
        {"search": BestOfN(4, "helpful", reject_fraction=0.3, max_held_tokens=99)},
        {"search": BestOfN(None, "helpful", reject_fraction=0.3, max_held_tokens=99)},
        {"search": BestOfN(4, "helpful", Choose.WEIGHTED, extract="number")},
        {"search": Segments(objective, 2, 3, 9, "\n", 1.7, 4, 0.9, 0.1, True, Logprob.MEAN)},
        {"search": RejectSegments({"helpful": 0.7}, 0.9, 0.1, 2.3, 2, 33, 5, 0.7, 0)},
        {"search": Evolution("helpful", 5, 2, 11, 1, "chat")},
        {"search": Refine("whole", 3, "chat"), "references": ["é"]},
    ):
        expected = request_from_kwargs("hi", model="base", max_new_tokens=2, seed=1, time_budget=600.0, **axes)
        served.client.generate("hi", model="base", max_new_tokens=2, seed=1, **axes)
        assert served.engine.jobs[-1].request == expected


# ------------------------------------------------------------------------------------------------------ rewards, scores


def test_rewards_are_listed_page_by_page(served: Served) -> None:
    first = served.stub.ListRewards(pb.ListRewardsRequest(page_size=2))
    assert [(reward.id, reward.kind) for reward in first.rewards] == [
        ("helpful", pb.REWARD_KIND_PREFIX),
        ("versus", pb.REWARD_KIND_SEQUENCE),
    ]
    assert first.next_page_token == "versus"
    assert dict(served.client.rewards()) == served.engine.rewards
    code, _, _ = failing(lambda: served.stub.ListRewards(pb.ListRewardsRequest(page_token="nonsense")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_scores_are_the_engines(served: Served) -> None:
    items = [("a", "bcd"), ([ChatMessage("user", "xy")], "é"), ("z", "")]
    for how in ({"reward": "helpful"}, {"model": "chat"}):
        assert served.client.score(items, **how) == served.engine.score(items, **how)
    bare = [Scored(one.value, one.token_count) for one in served.engine.score(items, model="chat")]
    assert served.client.score(items, model="chat", tokens=False) == bare
    served.engine.score_failure = RewardFailed("helpful", "it gave 2 numbers for 3 samples")
    with pytest.raises(RewardFailed, match="it gave 2 numbers for 3 samples"):
        served.client.score(items, reward="helpful")


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.ScoreRequest(), {"scorer", "items"}),
        (pb.ScoreRequest(model="base", items=[pb.ScoreItem(text="a")] * 257), {"items"}),
        (
            pb.ScoreRequest(reward="helpful", tokens=True, items=[pb.ScoreItem(text="a"), pb.ScoreItem()]),
            {"tokens", "items[1].prompt"},
        ),
        (
            pb.ScoreRequest(model="base", items=[pb.ScoreItem(text=""), pb.ScoreItem(chat=pb.Chat())]),
            {"items[0].prompt", "items[1].prompt"},
        ),
    ],
)
def test_bad_scores_are_named(bad_server: Served, request_: pb.ScoreRequest, fields: set[str]) -> None:
    code, found, _ = failing(lambda: bad_server.stub.Score(request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert {v.field for v in found["BadRequest"].field_violations} == fields


def test_scoring_does_not_hold_up_other_calls(served: Served) -> None:
    released = threading.Event()

    def slow(*args: Any, **kwargs: Any) -> list[Any]:
        released.wait(10)
        return []

    served.engine.score = slow
    call = served.stub.Score.future(pb.ScoreRequest(model="base", items=[pb.ScoreItem(text="a")]))
    assert served.client.generate("hi", model="base", max_new_tokens=2).tokens
    assert not call.done()
    released.set()
    call.result(timeout=5)


# -------------------------------------------------------------------------------------------------------- 15: health

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("name", ["", "trimtab.v1.DecodingService"])
def test_health_follows_the_server_from_load_to_drain(name: str) -> None:
    opened = threading.Event()
    may_open = threading.Event()

    def open_engine() -> Any:
        opened.set()
        assert may_open.wait(10)
        return scripted.ScriptedEngine(tick=0.02)

    async def scenario() -> None:
        server = Server(open_engine, ServerConfig(port=0, lame_duck=0.3, grace=5.0))
        await server.start()
        loading = asyncio.ensure_future(server.load())
        async with grpc.aio.insecure_channel(server.address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            stub: Any = DecodingServiceStub(channel)
            watch = aiter(health.Watch(health_pb2.HealthCheckRequest(service=name)))

            async def check() -> int:
                answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
                return int(answer.status)

            assert (await anext(watch)).status == NOT_SERVING
            assert await check() == NOT_SERVING
            with pytest.raises(grpc.aio.AioRpcError) as early:
                await stub.Generate(pb.GenerateRequest(spec=spec()))
            assert early.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "RetryInfo" in details(early.value)
            may_open.set()
            await loading
            assert (await anext(watch)).status == SERVING
            assert await check() == SERVING

            call = asyncio.ensure_future(
                stub.Generate(pb.GenerateRequest(spec=spec(stopping=pb.Stopping(max_new_tokens=30))))
            )
            await asyncio.sleep(0.1)
            began = time.monotonic()
            draining = asyncio.ensure_future(server.drain())
            assert (await anext(watch)).status == NOT_SERVING
            assert await check() == NOT_SERVING
            info = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert info.draining
            late = await stub.Generate(pb.GenerateRequest(spec=spec(stopping=pb.Stopping(max_new_tokens=1))))
            assert late.candidates, "calls are still accepted while load balancers take notice"
            assert (await call).candidates[0].token_count == 30, "a call in progress completes"
            await draining
            assert time.monotonic() - began < 3.0, "the watcher held up the stop"
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Generate(pb.GenerateRequest(spec=spec()))

    asyncio.run(scenario())
    assert opened.is_set()


def test_many_watchers_do_not_starve_checks(served: Served) -> None:
    health: Any = health_pb2_grpc.HealthStub(served.channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(50)]
    for watch in watches:
        assert next(watch).status == SERVING
    load = [served.stub.Generate.future(pb.GenerateRequest(spec=spec())) for _ in range(8)]
    times = []
    for _ in range(20):
        began = time.monotonic()
        health.Check(health_pb2.HealthCheckRequest(), timeout=2)
        times.append(time.monotonic() - began)
    assert sorted(times)[10] < 0.1
    for call in (*load, *watches):
        call.cancel()


@pytest.mark.parametrize("how", ["closed", "failed"])
def test_a_closed_or_failed_engine_is_unavailable_and_stops_the_server(how: str) -> None:
    async def scenario() -> None:
        engine = scripted.ScriptedEngine()
        server = Server(lambda: engine, ServerConfig(port=0))
        await server.start()
        await server.load()
        running = asyncio.ensure_future(server._ended.wait())
        async with AsyncClient(server.address) as client:
            engine.close()
            if how == "failed":
                engine.failure = RuntimeError("no memory")
                engine.submit_failure = EngineFailed("the engine thread failed")
            with pytest.raises(EngineClosed) as caught:
                await client.generate("x", model="base")
            assert caught.value.retryable
        await asyncio.wait_for(running, 2.0)
        await server.stop()

    asyncio.run(scenario())


def test_a_failed_load_is_raised_and_nothing_keeps_listening() -> None:
    def broken() -> Any:
        raise RuntimeError("no weights")

    server = BackgroundServer(broken)
    with pytest.raises(RuntimeError, match="no weights"), server:
        pass
    assert not server._thread.is_alive()


# ---------------------------------------------------------------------------------------- 18: streams and unary agree

prompts = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.lists(st.integers(0, 299), min_size=1, max_size=5),
    st.lists(st.builds(ChatMessage, st.just("user"), st.text(st.characters(codec="utf-8"))), min_size=1, max_size=3),
)
stops = st.lists(
    st.sampled_from(["e", "本", "ends", "🙂 —", "words, and", "ö", "zzz", "naïve 日", "Größe "]),
    max_size=3,
    unique=True,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=prompts,
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    stop=stops,
    include_stop=st.booleans(),
    nudged=st.booleans(),
    tokens=st.booleans(),
)
def test_stream_and_unary_and_oracle_agree(
    bad_server: Served,
    prompt: Any,
    seed: int,
    count: int,
    stop: list[str],
    include_stop: bool,
    nudged: bool,
    tokens: bool,
) -> None:
    request = request_from_kwargs(
        prompt,
        model="base",
        policy=Nudged("chat", Entropy(1.5)) if nudged else None,
        seed=seed,
        stopping=Stopping(max_new_tokens=count, stop=tuple(stop), include_stop=include_stop),
    )
    expected = scripted.expected_text(request, seed)
    message = spec_of(request)
    message.response.tokens = tokens

    unary = bad_server.stub.Generate(pb.GenerateRequest(spec=message))
    assert unary.candidates[0].text == expected
    assert len(unary.candidates[0].tokens) == (unary.candidates[0].token_count if tokens else 0)

    messages = list(bad_server.stub.GenerateStream(pb.GenerateStreamRequest(spec=message)))
    kinds = [m.WhichOneof("event") for m in messages]
    assert kinds[0] == "started"
    assert kinds[-1] == "completed"
    assert kinds.count("started") == kinds.count("completed") == 1
    assert "".join(m.chunk.text_delta for m in messages) == expected
    streamed = [t for m in messages for t in m.chunk.tokens]
    assert streamed == list(unary.candidates[0].tokens)
    summary = next(m.candidate for m in messages if m.WhichOneof("event") == "candidate")
    assert summary.finish_reason == unary.candidates[0].finish_reason
    assert summary.token_count == unary.candidates[0].token_count
    # Tokens whose text is still held back at the end are in the summary only.
    assert sum(m.chunk.token_count for m in messages) <= summary.token_count

    if tokens:
        *events, last = bad_server.client.stream_request(request)
        assert isinstance(last, Completed)
        whole = bad_server.client.generate_request(request)
        assert last.result.candidates == whole.candidates
        assert "".join(e.text for e in events if isinstance(e, Chunk)) == whole.text == expected
        assert tuple(t for e in events if isinstance(e, Chunk) for t in e.tokens) == whole.tokens
        assert {t.author for t in whole.tokens} <= set(whole.models)


def test_the_stream_of_a_broken_engine_is_never_ok(served: Served) -> None:
    async def cut_short(request: Any) -> Any:
        yield Started("g", ("base",), 1, 0, 5)

    served.engine.astream_request = cut_short
    code, _, _ = failing(lambda: list(served.stub.GenerateStream(pb.GenerateStreamRequest(spec=spec()))))
    assert code is grpc.StatusCode.INTERNAL
    code, _, _ = failing(lambda: served.stub.Generate(pb.GenerateRequest(spec=spec())))
    assert code is grpc.StatusCode.INTERNAL


# ---------------------------------------------------------------------------------------- tokens, models, information


def test_tokenize_and_detokenize(served: Served) -> None:
    ids, starts = served.client.tokenize("base", "añ")
    assert ids == [1, 100, 198, 180]
    assert starts == [0, 0, 1, 2]
    assert served.client.tokenize("base", "a", add_special_tokens=False) == ([100], [0])
    assert served.client.detokenize("base", [1, 198]) == b"<s>\xc3", "bytes, not text"
    assert served.client.detokenize("base", [1, 198], skip_special_tokens=True) == b"\xc3"
    response = served.stub.Tokenize(pb.TokenizeRequest(model="base", texts=["a", "", "bc"]))
    assert [list(item.ids) for item in response.items] == [[1, 100], [1], [1, 101, 102]]
    assert not any(item.byte_starts for item in response.items)
    code, found, _ = failing(lambda: served.stub.Detokenize(pb.DetokenizeRequest(model="base", ids=[5, 300])))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert found["BadRequest"].field_violations[0].field == "ids[1]"


def test_models_are_listed_page_by_page(served: Served) -> None:
    first = served.stub.ListModels(pb.ListModelsRequest(page_size=1))
    assert [model.id for model in first.models] == ["base"]
    second = served.stub.ListModels(pb.ListModelsRequest(page_size=1, page_token=first.next_page_token))
    assert [model.id for model in second.models] == ["chat"]
    assert second.next_page_token == ""
    assert dict(served.client.models()) == served.engine.models
    assert "policy.nudged" in first.models[0].methods
    assert "policy.nudged" not in second.models[0].methods
    for bad in (pb.ListModelsRequest(page_token="nonsense"), pb.ListModelsRequest(page_size=5000)):
        code, _, _ = failing(lambda bad=bad: served.stub.ListModels(bad))
        assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_information_names_the_limits(served: Served) -> None:
    info = served.client.info()
    assert info.limits == served.engine.limits
    assert info.max_generation_time == ServerConfig().max_generation_time
    assert not info.draining
    assert info.version


def test_no_answer_takes_longer_than_the_server_allows() -> None:
    with Served(scripted.ScriptedEngine(), ServerConfig(port=0, lame_duck=0.0, max_generation_time=7.0)) as served:
        for asked, given in ((None, 7.0), (3.0, 3.0), (70.0, 7.0)):
            served.client.generate("hi", model="base", max_new_tokens=1, time_budget=asked)
            assert served.engine.jobs[-1].request.stopping.time_budget == given


def test_parameters_arrive_as_they_were_sent(served: Served) -> None:
    sent = {"temperature": 0.7, "top_p": 0.95, "top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1, "seed": 2**32 - 1}
    served.client.generate("hi", model="base", policy=Nudged("chat", Entropy(1.3), 5), max_new_tokens=2, **sent)
    request = served.engine.jobs[-1].request
    assert {name: getattr(request.sampling, name) for name in sent} == sent
    assert request.policy == Nudged("chat", Entropy(1.3), 5)


# ---------------------------------------------------------------------------------------------------- 22: reflection


def test_reflection_lists_the_services_and_can_be_turned_off(served: Served) -> None:
    database = ProtoReflectionDescriptorDatabase(served.channel)
    assert {"trimtab.v1.DecodingService", "grpc.health.v1.Health"} <= set(database.get_services())
    method = DescriptorPool(database).FindServiceByName("trimtab.v1.DecodingService").FindMethodByName("Generate")
    assert method.input_type.full_name == "trimtab.v1.GenerateRequest"
    off = ServerConfig(port=0, lame_duck=0.0, reflection=False)
    with Served(scripted.ScriptedEngine(), off) as closed, pytest.raises(grpc.RpcError) as caught:
        ProtoReflectionDescriptorDatabase(closed.channel).get_services()
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# ------------------------------------------------------------------------------------------- 25: ids, ports, clients


def test_equal_client_request_ids_are_harmless(served: Served) -> None:
    same = spec(client_request_id="the same", stopping=pb.Stopping(max_new_tokens=20))
    calls = [served.stub.Generate.future(pb.GenerateRequest(spec=same)) for _ in range(8)]
    answers = [call.result() for call in calls]
    assert len({answer.started.generation_id for answer in answers}) == 8


def test_a_second_server_on_the_port_fails(served: Served) -> None:
    port = int(served.server.address.rpartition(":")[2])
    second = BackgroundServer(scripted.ScriptedEngine, ServerConfig(port=port))
    with pytest.raises(ServerError, match=str(port)), second:
        pass
    assert served.client.generate("hi", model="base", max_new_tokens=2).tokens


def test_a_client_of_nobody_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with Client(f"127.0.0.1:{port}", timeout=5.0) as client:
        with pytest.raises(Unreachable) as caught:
            client.info()
        assert caught.value.retryable
        with pytest.raises(DeadlineExceeded):
            client.wait_ready(0.1)


def test_a_client_timeout_is_a_timeout() -> None:
    with Served(_slow("prefill")) as served:
        with pytest.raises(DeadlineExceeded) as caught:
            served.client.generate("hi", model="base", timeout=0.2)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(DeadlineExceeded):
            list(served.client.stream("hi", model="base", timeout=0.2))


def test_closing_a_stream_cancels_the_request() -> None:
    with Served(_slow("decoding")) as served:
        events = served.client.stream("hi", model="base", max_new_tokens=1000)
        assert isinstance(next(events), Started)
        with contextlib.closing(events):  # type: ignore[type-var]
            assert isinstance(next(events), Chunk)
        assert served.engine.wait_idle(2.0)


def test_the_asyncio_client_gives_the_same(served: Served) -> None:
    async def scenario() -> None:
        async with AsyncClient(served.server.address) as client:
            result = await client.generate("hi", model="base", seed=3, max_new_tokens=9)
            events = [event async for event in client.stream("hi", model="base", seed=3, max_new_tokens=9)]
            assert isinstance(events[-1], Completed)
            assert events[-1].result.candidates == result.candidates
            with pytest.raises(NotFound):
                await client.generate("hi", model="gpt")

    asyncio.run(scenario())
    assert served.client.generate("hi", model="base", seed=3, max_new_tokens=9).tokens


@pytest.mark.parametrize("bad", [{"max_new_tokens": -1}, {"seed": 2**32}, {"top_k": "x"}, {"temperature": "hot"}])
def test_what_the_wire_cannot_carry_is_an_invalid_request(served: Served, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(bad))):
        served.client.generate("hi", model="base", **bad)
    assert served.engine.submitted == 0


# ----------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"prot": 1}, ["server.prot"]),
        ({"port": 70_000}, ["server.port"]),
        ({"port": True}, ["server.port"]),
        ({"host": ""}, ["server.host"]),
        ({"grace": -1.0}, ["server.grace"]),
        ({"grace": NAN}, ["server.grace"]),
        ({"max_generation_time": 0}, ["server.max_generation_time"]),
        ({"reflection": "yes", "lame_duck": "1", "x": 0}, ["server.x", "server.lame_duck", "server.reflection"]),
    ],
)
def test_a_bad_server_table_is_refused_by_key(table: dict[str, object], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ServerConfig.from_table(table)
    assert [violation.field for violation in caught.value.violations] == named


def test_a_good_server_table_is_read() -> None:
    assert ServerConfig.from_table({}) == ServerConfig()
    assert ServerConfig.from_table({"port": 0, "grace": 3}) == ServerConfig(port=0, grace=3)


# ------------------------------------------------------------------------------------------------- 16: signals, drain

_PROCESS = """
import asyncio, contextlib, importlib.util, sys
spec = importlib.util.spec_from_file_location("scripted_engine", sys.argv[1])
module = sys.modules["scripted_engine"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
from trimtab.server.config import ServerConfig
from trimtab.server.rpc.server import Server

async def main():
    server = Server(lambda: module.ScriptedEngine(tick=0.02), ServerConfig(port=0, lame_duck=0.1, grace=30.0))
    return await server.run(lambda line: print(line, flush=True))

sys.exit(asyncio.run(main()))
"""


@pytest.mark.parametrize(
    ("signals", "tokens", "completes"),
    [((signal.SIGTERM,), 40, True), ((signal.SIGINT,), 10, True), ((signal.SIGTERM, signal.SIGTERM), 4000, False)],
)
def test_signals_drain_and_a_second_one_forces(signals: tuple[int, ...], tokens: int, completes: bool) -> None:
    helper = Path(__file__).with_name("scripted_engine.py")
    with subprocess.Popen(
        [sys.executable, "-c", _PROCESS, str(helper)], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        address = ""
        for line in process.stdout:
            if line.startswith("serving on "):
                address = line.split()[-1]
                break
        with grpc.insecure_channel(address) as channel:
            call = DecodingServiceStub(channel).GenerateStream(
                pb.GenerateStreamRequest(spec=spec(stopping=pb.Stopping(max_new_tokens=tokens)))
            )
            next(call)
            for number in signals:
                process.send_signal(number)
                time.sleep(0.2)
            if completes:
                assert [m.WhichOneof("event") for m in call][-1] == "completed"
            else:
                with pytest.raises(grpc.RpcError):
                    list(call)
        assert process.wait(10) == 0
