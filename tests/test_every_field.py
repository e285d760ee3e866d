"""No field describes what doesn't happen: each is written by some real answer, and each of a request is read."""

from __future__ import annotations

import dataclasses
import enum
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from reward_doubles import Compared, Rated

from trimtab import decode as lib
from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest, NotFound
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import TopProb
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.models.acceptance import AcceptanceHead
from trimtab.decode.models.draft import DraftSpec, assemble, write_draft
from trimtab.decode.request.info import Limits
from trimtab.decode.rewards.base import Sample
from trimtab.server.client import Client, ServerInfo
from trimtab.server.config import ServerConfig
from trimtab.server.rpc.background import BackgroundServer
from trimtab.server.wire.request import read_spec
from trimtab.v1 import decoding_pb2 as pb
from trimtab.v1.decoding_pb2_grpc import DecodingServiceStub

SERVICE = pb.DESCRIPTOR.services_by_name["DecodingService"]


def vowels(sample: Sample) -> float:
    return sum(map(sample.text.count, "aeiou")) / (1 + len(sample.text))


def likeness(sample: Sample) -> float:
    return float(len(sample.text) == len(sample.references[0]))


def longer(a: str, b: str) -> float:
    return (len(a) + 1) / (len(a) + len(b) + 2)


@pytest.fixture(scope="module")
def engine(tiny: Any, tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    source, with_head = tiny_folder("llama"), tmp_path_factory.mktemp("draft")
    ids = torch.arange(tiny.VOCAB)
    drafting, size = assemble(tiny.make("llama"), (0, 2), ids), tiny.make("llama").config.hidden_size
    spec = DraftSpec(
        target=str(source), layers=(0, 2), vocab_size=tiny.VOCAB, hidden_size=size, head_blocks=1, head_width=4
    )
    head = AcceptanceHead(size + 1, 1, 4).to(torch.bfloat16).state_dict()
    write_draft(with_head, spec, ids, drafting.state_dict(), head)
    folders = {
        "base": ModelConfig(source=str(tiny_folder("llama")), dtype="float32"),
        "chat": ModelConfig(source=str(tiny_folder("mistral", 2)), role="aligned", dtype="float32"),
        "draft": ModelConfig(source=str(tiny_folder("llama")), role="draft", dtype="float32"),
        "with_head": ModelConfig(source=str(with_head), role="draft", dtype="float32"),
        "narrow": ModelConfig(source=str(tiny_folder("qwen2", 3)), context_tokens=24, dtype="float32"),
    }
    rewards = {
        "vowels": Rated(vowels, description="share of vowels"),
        "likeness": Rated(likeness, "sequence", needs_reference=True, models=("base",)),
        "longer": Compared(longer),
    }
    with Engine(folders, rewards=rewards, options=EngineOptions(memory_bytes=2**25)) as made:
        yield made
        made.check()


# ------------------------------------------------------------------------------------------------------- what is asked

LONG, END = "abcdefgh " * 20, 285
# One request for each variant of the axes, and for whatever else shows in an answer.
ASKED: list[dict[str, Any]] = [
    {"prompt": LONG, "top_logprobs": 2},
    {"prompt": LONG},  # a second time, from the cache
    {"policy": Nudged("chat", TopProb(0.9))},
    {"policy": Mixture((Weighted("chat", 0.5),))},
    {"policy": TokenReward("vowels", 2.0, 3)},
    {"draw": Speculative("draft", Fixed(3))},
    {"draw": Speculative("chat", Fixed(3))},
    {"draw": Speculative("draft"), "temperature": 1.0},
    {"search": BestOfN(3, "vowels", threshold=9.0)},
    *[{"search": BestOfN(4, "vowels")}] * 4,  # not the first candidate every time
    {"search": BestOfN(3, "longer", Choose.TOURNAMENT)},
    {"search": BestOfN(4, "vowels", reject_fraction=0.5, check_every_tokens=3)},
    {"search": BestOfN(2, "likeness"), "references": ["a reference"]},
    {"search": Segments("vowels", 2, 2, max_tokens=3)},
    {"search": RejectSegments("vowels", 0.5, max_tokens=4)},
    {"search": Evolution("vowels", 2, 1, 4, rounds=0)},
    {"search": Refine("vowels", rounds=0)},
    {"stop": ["e", "a", "i", "o", "u", "t", " "], "max_new_tokens": 64},
    {"max_new_tokens": 4000, "ignore_eos": True, "time_budget": 0.05},
    {"model": "narrow", "prompt": "abcdefgh", "max_new_tokens": 60, "ignore_eos": True},
    {"logit_bias": {END: 50.0}},
]


@pytest.fixture(scope="module")
def told(engine: Engine) -> tuple[list[Message], list[Any]]:
    """What a server answered, as messages, and as what the client made of them."""
    messages: list[Message] = []
    values: list[Any] = []
    server = BackgroundServer(lambda: _open(engine), ServerConfig(port=0, lame_duck=1.0))
    assert engine.models["base"].eos_token_ids == (END,)
    server.__enter__()  # it is left while it is asked, below
    with Client(server.address) as client, grpc.insecure_channel(server.address) as channel:
        stub = DecodingServiceStub(channel)
        heard = _listening(client, messages)
        for i, asked in enumerate(ASKED):
            options = {"model": "base", "max_new_tokens": 9, "seed": i, **asked}
            prompt = options.pop("prompt", "go on then")
            values += heard.stream(prompt, **options)
        values.append(heard.generate(LONG, model="base", max_new_tokens=4, top_logprobs=1))
        values += heard.models().values()
        values += heard.rewards().values()
        values += heard.methods().values()
        values += heard.score([("a", "b c")], model="base")
        values += heard.score([("a", "b c")], reward="vowels")
        values.append(heard.info())
        heard.tokenize("base", "a b")
        heard.detokenize("base", [70])
        messages.append(stub.ListModels(pb.ListModelsRequest(page_size=1)))
        messages.append(stub.ListRewards(pb.ListRewardsRequest(page_size=1)))
        messages.append(stub.ListMethods(pb.ListMethodsRequest(page_size=1)))
        values += _while_draining(server, heard)
    return messages, values


def _open(engine: Engine) -> Any:
    from contextlib import nullcontext

    return nullcontext(engine)


def _listening(client: Client, messages: list[Message]) -> Client:
    """The client, of which every answer is noted."""
    stub = client._stub

    def noted(name: str) -> Callable[..., Any]:
        call = getattr(stub, name)

        def ask(*args: Any, **kwargs: Any) -> Any:
            answer = call(*args, **kwargs)
            if isinstance(answer, Message):
                messages.append(answer)
                return answer
            return _Noted(answer, messages)

        return ask

    class Stub:
        pass

    ours: Any = Stub()
    for method in SERVICE.methods:
        setattr(ours, method.name, noted(method.name))
    client._stub = ours
    return client


class _Noted:
    def __init__(self, call: Any, messages: list[Message]) -> None:
        self._call, self._messages = call, messages
        self.cancel = call.cancel

    def __iter__(self) -> Iterator[Message]:
        for message in self._call:
            self._messages.append(message)
            yield message


def _while_draining(server: BackgroundServer, client: Client) -> list[ServerInfo]:
    leaving = threading.Thread(target=server.__exit__, args=(None, None, None))
    leaving.start()
    found: list[ServerInfo] = []
    while not found or not found[-1].draining:
        found.append(client.info())
        time.sleep(0.02)
    leaving.join()
    return found


# -------------------------------------------------------------------------------------------------------- what is there


def below(message: Descriptor, seen: dict[str, Descriptor]) -> dict[str, Descriptor]:
    """A message and all that it may hold, by name; those of other packages left out."""
    if message.full_name not in seen and message.file.package == pb.DESCRIPTOR.package:
        seen[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                below(field.message_type, seen)
    return seen


def written(messages: Iterable[Message]) -> dict[tuple[str, str], set[Any]]:
    """Fields that have a value somewhere in ``messages``; of scalars, with the values."""
    found: dict[tuple[str, str], set[Any]] = {}
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        for field, value in message.ListFields():
            values = found.setdefault((message.DESCRIPTOR.full_name, field.name), set())
            if field.message_type is None:
                values.update([value] if not _repeated(field) else value)
            elif not field.message_type.GetOptions().map_entry:
                waiting += value if _repeated(field) else [value]
    return found


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def test_every_field_of_an_answer_is_written_by_some_answer(told: tuple[list[Message], list[Any]]) -> None:
    found = written(told[0])
    known: dict[str, Descriptor] = {}
    for method in SERVICE.methods:
        below(method.output_type, known)
    missing = [
        f"{message.name}.{field.name}"
        for message in known.values()
        if not message.GetOptions().map_entry
        for field in message.fields
        if (message.full_name, field.name) not in found
    ]
    assert missing == []


# A draw that is certain comes with scores; a loop that the nudging policy breaks is shown where it can be scripted.
NOT_HERE = {"REPETITION"}


def test_every_way_to_draw_and_to_end_happens(told: tuple[list[Message], list[Any]]) -> None:
    found = written(told[0])
    drawn = {lib.TokenDraw(pb.TokenDraw.Name(n)[11:].lower()) for n in found["trimtab.v1.TokenInfo", "draw"]}
    assert drawn == set(lib.TokenDraw)
    ended = {pb.FinishReason.Name(n)[14:] for n in found["trimtab.v1.Candidate", "finish_reason"]}
    assert ended == {reason.name for reason in lib.FinishReason} - NOT_HERE


def values_of(value: Any, found: dict[tuple[type, str], list[Any]]) -> None:
    """Note the values of all fields of the dataclasses within ``value``."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            found.setdefault((type(value), field.name), []).append(inner)
            values_of(inner, found)
    elif isinstance(value, tuple):
        for inner in value:
            values_of(inner, found)


def test_every_field_of_what_the_library_hands_out_is_filled(
    told: tuple[list[Message], list[Any]], engine: Engine
) -> None:
    """And those that are true or false are both at some time."""
    found: dict[tuple[type, str], list[Any]] = {}
    for value in [*told[1], *engine.models.values(), *engine.rewards.values(), engine.stats()]:
        values_of(value, found)
    classes = {cls for cls, _ in found}
    handed_out = {lib.Started, lib.Chunk, lib.Progress, lib.Completed, lib.Result, lib.Candidate, lib.Token}
    handed_out |= {lib.TopLogprob, lib.Usage, lib.ModelUsage, lib.Scored, lib.ModelInfo, lib.RewardInfo, Limits}
    assert handed_out | {ServerInfo} <= classes
    for (cls, name), values in found.items():
        if cls.__name__ == "EngineStats":
            continue  # of an idle engine
        if all(isinstance(value, bool) for value in values):
            assert set(values) == {True, False}, f"{cls.__name__}.{name} is never {not values[0]}"
        elif not any(isinstance(value, enum.Enum) for value in values):
            assert any(value or isinstance(value, float) for value in values), f"{cls.__name__}.{name} is always empty"


# ------------------------------------------------------------------------------------- the lists of models that fit


def test_the_models_that_a_model_can_be_asked_for_with_are_those_that_are_accepted(engine: Engine) -> None:
    from dataclasses import replace

    from trimtab.decode.engine.loading import partners
    from trimtab.decode.request.validate import validate

    infos = dict(engine.models)
    infos["judge"] = replace(infos["chat"], name="judge", source="elsewhere", role="reward")
    infos["twin"] = replace(infos["base"], name="twin")  # the same weights once more
    infos = partners(infos)

    def accepted(**axes: Any) -> bool:
        try:
            validate(lib.Request(prompt="x", **axes), infos, Limits(), {}, lambda a, b: True)
        except (InvalidRequest, NotFound):
            return False
        return True

    for name, info in infos.items():
        others = tuple(infos)
        assert info.nudge_models == tuple(o for o in others if accepted(model=name, policy=Nudged(o)))
        assert info.draft_models == tuple(o for o in others if accepted(model=name, draw=Speculative(o)))
    assert infos["base"].draft_models == ("chat", "draft", "with_head", "narrow", "twin")
    assert infos["judge"].draft_models == ()


# ------------------------------------------------------------------------------------------------------- what is read

# Used beside the request that is read: for the log, and for what of the answer is sent.
USED_ELSEWHERE = {
    "client_request_id",
    "response.tokens",
    "response.max_candidates",
    *(f"{axis}.extension.fields" for axis in ("policy", "draw", "search")),  # what a package adds: test_examples
}


def leaves(message: Descriptor, path: tuple[FieldDescriptor, ...] = ()) -> Iterator[tuple[FieldDescriptor, ...]]:
    for field in message.fields:
        nested = field.message_type
        if nested is None or nested.GetOptions().map_entry or nested.file.package != pb.DESCRIPTOR.package:
            yield (*path, field)
        elif nested.fields:
            yield from leaves(nested, (*path, field))


def filled(path: tuple[FieldDescriptor, ...], leaf: bool) -> pb.GenerationSpec:
    """A spec with the messages along ``path``, and the last field set if ``leaf``."""
    spec = pb.GenerationSpec()
    at: Any = spec
    for field in path[:-1]:
        if _repeated(field):
            at = getattr(at, field.name).add()
        else:
            at = getattr(at, field.name)
            at.SetInParent()
    field = path[-1]
    if not leaf:
        return spec
    value: Any = {
        FieldDescriptor.CPPTYPE_STRING: "x",
        FieldDescriptor.CPPTYPE_BOOL: not (field.has_presence and field.name == "prompt_cache"),
        FieldDescriptor.CPPTYPE_FLOAT: 0.625,
        FieldDescriptor.CPPTYPE_UINT32: 7,
        FieldDescriptor.CPPTYPE_ENUM: 2,
    }.get(field.cpp_type)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(at, field.name)[7] = 0.5
    elif field.message_type is not None:
        well_known = getattr(at, field.name)
        if isinstance(well_known, Struct):
            well_known["x"] = 1.5
        else:
            well_known.FromMilliseconds(1500)
    elif _repeated(field):
        getattr(at, field.name).append(value)
    else:
        setattr(at, field.name, value)
    return spec


def test_every_field_of_a_request_is_read() -> None:
    """Setting a field changes the request that the server makes of the spec."""
    unread, count = [], 0
    for path in leaves(pb.GenerationSpec.DESCRIPTOR):
        name = ".".join(field.name for field in path)
        without, with_it = read_spec(filled(path, leaf=False)), read_spec(filled(path, leaf=True))
        count += 1
        if name not in USED_ELSEWHERE and without == with_it:
            unread.append(name)
    assert unread == []
    assert count > 80
