"""What the library hands out can be copied, sent to another process and turned into plain dictionaries."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import pickle
import pkgutil
import subprocess
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import pytest

import trimtab.decode
import trimtab.server
from trimtab import decode as plain
from trimtab.bench.public.sets import find
from trimtab.decode import errors as error_types
from trimtab.decode.config import ConfigError, EngineConfig, EngineOptions, ModelConfig
from trimtab.decode.errors import TrimtabError, Violation
from trimtab.decode.request.method import AXES, methods

FIELD = Violation("a.field", "'x'", "something else")
# Of classes whose arguments do not follow from their signature.
ARGUMENTS: Mapping[str, tuple[Any, ...]] = {
    "InvalidRequest": ([FIELD, FIELD],),
    "ConfigError": (FIELD, "a file"),
    "MissingExtra": ("server", "grpc"),
    "NotFound": ("model", "x", ("y",)),
    "UnsupportedRequest": ("policy", "x", "y"),
    "UnsupportedModel": ("m", "why"),
    "Overloaded": ("full", 2.5),
    "RewardFailed": ("r", "why"),
    "FormatError": ("path", 3, "a string"),
    "OptionError": ("a.field", 3, "a string"),
    "DataMissing": (find("gsm8k"), "why"),
}


def modules(package: types.ModuleType) -> Iterator[types.ModuleType]:
    """All modules of a package that can be imported here."""
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if ".proto" not in found.name and not found.name.endswith((".worker", "__main__")):
            yield importlib.import_module(found.name)


def descendants(cls: type) -> Iterator[type]:
    for child in cls.__subclasses__():
        yield child
        yield from descendants(child)


def errors() -> list[type[TrimtabError]]:
    for package in (trimtab.decode, trimtab.server):
        list(modules(package))
    return sorted({TrimtabError, *descendants(TrimtabError)}, key=lambda cls: cls.__name__)


def made(cls: type) -> Any:
    """An object of a public dataclass, with a value in every field."""
    if cls.__name__ == "ServerConfig":  # which checks its values
        return cls()
    hints = typing.get_type_hints(cls)
    return cls(**{field.name: some(hints[field.name]) for field in dataclasses.fields(cls)})


def some(hint: Any) -> Any:
    """A value of an annotated type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return some(next(arm for arm in arguments if arm is not type(None)))
    if origin is typing.Literal:
        return arguments[0]
    if origin is tuple:
        return (some(arguments[0]), some(arguments[0]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {some(arguments[0]): some(arguments[1])}
    if hint is object:
        return "anything"
    if hint in AXES.values():
        return made(next(iter(methods(hint.axis).values())))
    if dataclasses.is_dataclass(hint):
        return made(typing.cast("type", hint))
    if issubclass(hint, StrEnum):
        return next(iter(hint))
    return {str: "text", int: 3, float: 0.5, bool: True, bytes: b"\xe2"}[hint]


PUBLIC = [
    *(cls for name in plain.__all__ if dataclasses.is_dataclass(cls := getattr(plain, name)) and isinstance(cls, type)),
    Violation,
    ModelConfig,
    EngineOptions,
    EngineConfig,
]


def others() -> list[type]:
    from trimtab.decode.engine.engine import EngineStats
    from trimtab.decode.rewards.base import Sample
    from trimtab.server.client import ServerInfo
    from trimtab.server.config import ServerConfig

    return [EngineStats, Sample, ServerInfo, ServerConfig]


def frozen(value: Any) -> None:
    """Nothing inside can be changed."""
    if isinstance(value, Mapping):
        with pytest.raises((TypeError, AttributeError)):
            value["new"] = 1  # type: ignore[index]
        for inner in value.values():
            frozen(inner)
    elif isinstance(value, tuple):
        for inner in value:
            frozen(inner)
    else:
        assert not isinstance(value, list | set)
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                with pytest.raises((dataclasses.FrozenInstanceError, TypeError, AttributeError)):
                    setattr(value, field.name, None)
                frozen(getattr(value, field.name))


@pytest.mark.parametrize("cls", [*PUBLIC, *others()], ids=lambda cls: cls.__name__)
def test_data_can_be_copied(cls: type) -> None:
    value = made(cls)
    for again in (
        copy.copy(value),
        copy.deepcopy(value),
        *(pickle.loads(pickle.dumps(value, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        dataclasses.replace(value),
    ):
        assert type(again) is cls
        assert again == value
        assert hash(again) == hash(value)
        assert repr(again) == repr(value)
        frozen(again)
    frozen(value)
    json.dumps(dataclasses.asdict(value), default=repr)
    dataclasses.astuple(value)


def test_what_was_given_cannot_be_changed_behind_a_request() -> None:
    bias = {3: 1.0}
    request = plain.Request(model="m", prompt="x", sampling=plain.Sampling(logit_bias=bias))
    bias[4] = 2.0
    assert request.sampling.logit_bias == {3: 1.0}


def test_a_frozen_mapping_has_no_way_in() -> None:
    made_once = plain.Sampling(logit_bias={3: 1.0}).logit_bias
    assert isinstance(made_once, dict)
    for change in (
        lambda m: m.update({4: 1.0}),
        lambda m: m.pop(3),
        lambda m: m.popitem(),
        lambda m: m.clear(),
        lambda m: m.setdefault(4, 1.0),
        lambda m: m.__setitem__(3, 2.0),
        lambda m: m.__delitem__(3),
        lambda m: m.__ior__({4: 1.0}),
    ):
        with pytest.raises(TypeError):
            change(made_once)
    assert made_once == {3: 1.0}
    mine = made_once | {4: 2.0}
    mine[5] = 3.0  # a merged one is the caller's own
    assert made_once == {3: 1.0}


@pytest.mark.parametrize("cls", errors(), ids=lambda cls: cls.__name__)
def test_errors_can_be_sent(cls: type[TrimtabError]) -> None:
    error = cls(*ARGUMENTS.get(cls.__name__, ("what happened",)))
    error.add_note("a note")
    for again in (copy.copy(error), copy.deepcopy(error), *(pickle.loads(pickle.dumps(error, p)) for p in (2, 4, 5))):
        assert type(again) is cls
        assert again.args == error.args
        assert vars(again) == vars(error)
        assert str(again) == str(error)
        assert again.retryable == error.retryable


def test_the_attributes_that_callers_read_are_still_there() -> None:
    late = pickle.loads(pickle.dumps(error_types.RewardFailed("r", "why", timed_out=True)))
    assert (late.reward, late.reason, late.timed_out, late.retryable) == ("r", "why", True, True)
    full = pickle.loads(pickle.dumps(error_types.Overloaded("full", 2.5)))
    assert full.retry_after == 2.5
    wrong = pickle.loads(pickle.dumps(ConfigError([FIELD], "a file")))
    assert (wrong.violations, wrong.source) == ((FIELD,), "a file")


def test_a_result_reaches_another_process() -> None:
    """As the pools of the standard library send it: pickled here, read by a fresh interpreter, and sent back."""
    result = made(plain.Result)
    code = (
        "import pickle, sys; value = pickle.load(sys.stdin.buffer); error = value[1]; "
        "sys.stdout.buffer.write(pickle.dumps((value[0], error.violations)))"
    )
    sent = pickle.dumps((result, error_types.InvalidRequest([FIELD])))
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True, timeout=120)
    assert pickle.loads(done.stdout) == (result, (FIELD,))
