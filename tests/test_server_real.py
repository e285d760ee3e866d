"""The server over the real engine and the bundled pair: what a scripted engine cannot show."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import grpc
import pytest
import test_node_client as node

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy, TopProb
from trimtab.decode.request.events import Chunk, Completed, Started
from trimtab.decode.request.prompt import ChatMessage
from trimtab.server.client import Client
from trimtab.server.rpc.background import BackgroundServer
from trimtab.v1 import decoding_pb2 as pb
from trimtab.v1.decoding_pb2_grpc import DecodingServiceStub

pytestmark = pytest.mark.real

CHAT = [ChatMessage("user", "Name three fruits and say — in a word — which is best.")]
NUDGED = Nudged("chat", TopProb(0.4))


@pytest.fixture(scope="module")
def engine(real_models: Any) -> Iterator[Any]:
    from trimtab.decode.engine.engine import Engine

    # float32, so that "the same up to rounding" is the same: in bfloat16 a prompt read at once and the same prompt from
    # reused pages differ by enough to turn a sampled token now and then.
    folders = {"base": real_models.base, "chat": real_models.aligned}
    models = {name: ModelConfig(source=str(folder), dtype="float32") for name, folder in folders.items()}
    with Engine(models=models, options=EngineOptions(memory_bytes=2**27)) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(engine: Any) -> Iterator[BackgroundServer]:
    with BackgroundServer(lambda: nullcontext(engine)) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server: BackgroundServer) -> Iterator[DecodingServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield DecodingServiceStub(channel)


@pytest.fixture
def client(server: BackgroundServer, engine: Any) -> Iterator[Client]:
    with Client(server.address, timeout=120.0) as client:
        yield client
    assert wait_until(lambda: idle(engine)), engine.stats()
    engine.check()


def idle(engine: Any) -> bool:
    stats = engine.stats()
    return stats.running == stats.queued == 0 and not any(stats.pages_used.values())


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("The first line of the poem is", {"temperature": 0.9, "top_p": 0.9, "seed": 11}),
        (CHAT, {"policy": NUDGED, "temperature": 0.7, "top_k": 40, "seed": 5}),
        (CHAT, {"policy": NUDGED, "temperature": 0.0, "seed": 1, "stop": [".", "\n\n"], "top_logprobs": 2}),
        ([2, 651, 5279, 576], {"temperature": 0.0, "seed": 0, "logit_bias": {107: -math.inf}}),
    ],
    ids=["text sampled", "chat nudged", "chat nudged greedy stops", "ids"],
)
def test_stream_unary_and_embedded_agree(client: Client, engine: Any, prompt: Any, options: dict[str, Any]) -> None:
    options = {"model": "base", "max_new_tokens": 16, **options}
    embedded = engine.generate(prompt, **options)
    unary = client.generate(prompt, **options)
    events = list(client.stream(prompt, **options))
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Completed)
    streamed = events[-1].result
    assert [t.id for t in embedded.tokens] == [t.id for t in unary.tokens] == [t.id for t in streamed.tokens]
    assert embedded.text == unary.text == streamed.text
    chunks = [event for event in events if isinstance(event, Chunk)]
    assert "".join(chunk.text for chunk in chunks) == embedded.text
    assert tuple(token for chunk in chunks for token in chunk.tokens) == streamed.tokens
    assert unary.seed == options["seed"]
    assert [t.author for t in unary.tokens] == [t.author for t in embedded.tokens]
    assert [t.piece for t in unary.tokens] == [t.piece for t in embedded.tokens]
    # Figures agree up to rounding: what was computed before a prompt was reused, and 32-bit floats on the wire.
    for ours, theirs in zip(unary.tokens, embedded.tokens, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, rel=1e-4, abs=1e-4)
        assert ours.entropy == pytest.approx(theirs.entropy, rel=1e-4, abs=1e-4)
        assert len(ours.top) == options.get("top_logprobs", 0)


def test_another_seed_gives_another_answer(client: Client) -> None:
    """The control of the test above: the answers it compares do depend on the seed."""
    options = {"model": "base", "max_new_tokens": 16, "temperature": 0.9}
    answers = {client.generate("The first line of the poem is", seed=seed, **options).text for seed in range(3)}
    assert len(answers) > 1


@pytest.mark.parametrize("policy", [None, NUDGED], ids=["base", "nudged"])
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_what_nobody_waits_for_is_freed(
    client: Client, stub: DecodingServiceStub, engine: Any, policy: Nudged | None, how: str
) -> None:
    del client  # for what it checks afterwards
    nudged = pb.Policy(nudged=pb.Nudged(nudger="chat", top_prob_below=0.4)) if policy else None
    spec = pb.GenerationSpec(
        model="base",
        text="Once upon a time",
        stopping=pb.Stopping(max_new_tokens=2000, ignore_eos=True),
        policy=nudged,
    )
    timeout = 2.0 if how == "deadline" else None
    call = stub.GenerateStream(pb.GenerateStreamRequest(spec=spec), timeout=timeout)
    assert wait_until(lambda: any(engine.stats().pages_used.values()))
    if how == "cancel":
        for _ in range(4):
            next(call)
        call.cancel()
    else:
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert wait_until(lambda: idle(engine), 3.0), engine.stats()
    passes = dict(engine.stats().forward_passes)
    time.sleep(0.2)
    assert dict(engine.stats().forward_passes) == passes, "it still decodes"


def test_calls_at_once_all_complete(client: Client, stub: DecodingServiceStub) -> None:
    calls = [
        stub.Generate.future(
            pb.GenerateRequest(
                spec=pb.GenerationSpec(
                    model="base",
                    text=f"{i} is a number, and",
                    stopping=pb.Stopping(max_new_tokens=8, ignore_eos=True),
                    policy=pb.Policy(nudged=pb.Nudged(nudger="chat")) if i % 2 else None,
                )
            )
        )
        for i in range(6)
    ]
    for call in calls:
        (candidate,) = call.result(timeout=120).candidates
        assert candidate.token_count == 8
        assert candidate.text
    assert client.info().limits.max_new_tokens > 0


def test_tokens_and_models_are_the_engines(client: Client, engine: Any) -> None:
    for model in ("base", "chat"):
        for text in ("Größe 日本語 🙂", " a  b\n", ""):
            ids, starts = client.tokenize(model, text)
            assert (ids, starts) == engine.tokenize(model, text)
            plain, _ = client.tokenize(model, text, add_special_tokens=False)
            assert client.detokenize(model, plain).decode() == text
            assert client.detokenize(model, ids, skip_special_tokens=True).decode() == text
    assert dict(client.models()) == dict(engine.models)


@pytest.mark.parametrize(
    ("prompt", "options", "fields"),
    [
        ("", {}, {"prompt"}),
        ("x", {"temperature": math.nan, "top_p": 2.0}, {"sampling.temperature", "sampling.top_p"}),
        ("x", {"policy": Nudged("base")}, {"policy.nudged.nudger"}),
        ("x", {"policy": Nudged("chat", Entropy(-1.0))}, {"policy.nudged.entropy_nats_above"}),
        ("x", {"stop": list("abcdefghi")}, {"stopping.stop"}),
        ([1, 10**6], {}, {"prompt.token_ids[1]"}),
        ("word " * 50_000, {}, {"prompt"}),
        (CHAT, {"max_new_tokens": 10**9}, {"stopping.max_new_tokens"}),
    ],
)
def test_bad_input_is_named_and_costs_no_forward_pass(
    client: Client, engine: Any, prompt: Any, options: dict[str, Any], fields: set[str]
) -> None:
    before = dict(engine.stats().forward_passes)
    for call in (client.generate, lambda *a, **k: list(client.stream(*a, **k))):
        with pytest.raises(InvalidRequest) as caught:
            call(prompt, model="base", **options)
        assert {violation.field for violation in caught.value.violations} == fields
    assert dict(engine.stats().forward_passes) == before


node_modules = node.node_modules


@node.pytestmark
def test_node_reads_a_real_stream(node_modules: Path, server: BackgroundServer, engine: Any) -> None:
    node.check(node.run_node(node_modules, server.address, "base", 12), 12)
    assert wait_until(lambda: idle(engine))
