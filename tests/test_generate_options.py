"""The keywords of ``generate``: their types follow the fields, and a type checker holds a user's program to them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import transformers

from trimtab.decode.engine.engine import Engine
from trimtab.decode.request import keywords
from trimtab.decode.request.generate_options import GenerateOptions, RequestOptions
from trimtab.decode.request.method import AXES
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.server.client import AsyncClient, Client

FOLDERS = {"decode": "decode", "kernels": "kernels", "server": "server", "v1": "server/proto/trimtab/v1"}
# What a user's program meets of other packages needs no look here, and takes most of the time.
CONFIGURATION = """
[mypy]
strict = true
follow_imports = silent
explicit_package_bases = true
namespace_packages = true
[mypy-google.*,grpc.*,grpc_status.*,huggingface_hub.*,numpy.*,safetensors.*,tokenizers.*,torch.*,transformers.*]
follow_imports = skip
ignore_missing_imports = true
"""
PROGRAM = """
from trimtab.decode import BestOfN, Engine, Entropy, GenerateOptions, Nudged, Result, chat
from trimtab.server.client import Client


def brief(prompt: str, text: str) -> float:
    return -len(text.split())


options: GenerateOptions = {"model": "base", "stop": ["\\n", "."]}
with Engine(models={"base": "a", "chat": "b"}) as engine:
    print(engine.generate("Once", **options).text)
    one: Result = engine.generate(chat("Why?", system="Be brief."), temperature=0, seed=None)
    two: list[Result] = engine.generate(["Once", "Twice"], policy="nudged:chat", logit_bias={3: -1}, top_p=1)
    for ids in ([1, 2], (3, 4)):
        print(engine.generate(ids, max_new_tokens=3, policy=Nudged("chat", Entropy(above=2))).text)
    chats = [chat("Why?"), chat("How?")]
    print([found.text for found in engine.generate(chats, search="best_of_n:4", objective=brief)])
    print(one.text, one.chosen.rewards)
    print(two[0].tokens[0].entropy)
    print(engine.generate([{"role": "user", "content": "x"}], search=BestOfN(4, objective=brief)).text)
    for event in engine.stream("x", search=BestOfN(4), objective={"helpful": 1.0}):
        print(event)


async def ask(engine: Engine) -> tuple[str, int]:
    return (await engine.agenerate("x", stop="y")).text, len(await engine.agenerate(["x"], draw="speculative:lookup"))


with Client("localhost:1") as client:
    print(client.generate(chat("Why?"), model="base", policy="nudged:chat", temperature=0, timeout=3).text)
"""
PLANTED = {
    "temperature=0, seed=None": "temprature=0, seed=None",
    "max_new_tokens=3": 'max_new_tokens="3"',
    "two[0].tokens": "two.tokens",
    "one.chosen.rewards": "one.choosen.rewards",
    'search=BestOfN(4), objective={"helpful"': 'search=Nudged("chat"), objective={"helpful"',
    "temperature=0, timeout=3": "temperture=0, timeout=3",
}


@pytest.fixture(scope="module")
def complaints(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of the program as it should be, and with the mistakes; per file the lines."""
    folder = tmp_path_factory.mktemp("user")
    wrong = PROGRAM
    for right, mistake in PLANTED.items():
        assert wrong.count(right) == 1, right
        wrong = wrong.replace(right, mistake)
    (folder / "right.py").write_text(PROGRAM, encoding="utf-8")
    (folder / "wrong.py").write_text(wrong, encoding="utf-8")
    (folder / "mypy.ini").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "types" / "trimtab").mkdir(parents=True)
    for name, path in FOLDERS.items():
        (folder / "types" / "trimtab" / name).symlink_to(repository / path)
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(folder / "cache"), "right.py", "wrong.py"]
    environment = {"MYPYPATH": str(folder / "types")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    return {name: [line for line in lines if line.startswith(f"{name}:")] for name in ("right.py", "wrong.py")}


def test_mypy_finds_nothing_in_a_right_program(complaints: dict[str, list[str]]) -> None:
    assert complaints["right.py"] == []


@pytest.mark.parametrize("mistake", PLANTED.values())
def test_mypy_finds_every_planted_mistake(complaints: dict[str, list[str]], mistake: str) -> None:
    (number,) = [i for i, line in enumerate(PROGRAM.splitlines(), 1) if _right(mistake) in line]
    assert any(line.startswith(f"wrong.py:{number}: ") for line in complaints["wrong.py"]), complaints


def test_mypy_finds_nothing_but_the_mistakes(complaints: dict[str, list[str]]) -> None:
    lines = {int(line.split(":")[1]) for line in complaints["wrong.py"]}
    assert len(lines) == len(PLANTED)
    assert any("did you mean" in line and "temperature" in line for line in complaints["wrong.py"])


def _right(mistake: str) -> str:
    return next(right for right, wrong in PLANTED.items() if wrong == mistake)


# --------------------------------------------------------------------------------------- the types are those of fields


def alternatives(hint: Any) -> set[Any]:
    """The types that a hint allows."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}


def option_of(hint: Any) -> set[Any]:
    """What the option of a field takes: what the field does, None, and for a tuple one element or any sequence."""
    found: set[Any] = {type(None)}
    for arm in alternatives(hint):
        found |= {get_args(arm)[0], Sequence[get_args(arm)[0]]} if get_origin(arm) is tuple else {arm}
    return found


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    names = {"GenerationConfig": transformers.GenerationConfig}
    return typing.get_type_hints(GenerateOptions, localns=names)


@pytest.mark.parametrize("cls", [Sampling, Stopping])
def test_options_have_the_types_of_fields(options: dict[str, Any], cls: type) -> None:
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        assert alternatives(options[field.name]) == option_of(hints[field.name]), field.name


def test_options_are_the_fields_of_a_request_and_what_makes_them(options: dict[str, Any]) -> None:
    flat = {field.name for cls in (Sampling, Stopping) for field in fields(cls)}
    whole = {field.name for field in fields(Request)} - {"prompt"}
    assert set(options) == flat | whole | {"objective", "generation_config"}
    assert set(options) == {*keywords._SAMPLING_KEYS, *keywords._STOPPING_KEYS, *keywords._OTHER_KEYS} | {
        *keywords._NAMED_KEYS
    }
    hints = typing.get_type_hints(Request)
    for axis in AXES:
        assert alternatives(options[axis]) == {hints[axis], str, type(None)}
    assert alternatives(options["references"]) == option_of(hints["references"])
    for name in ("top_logprobs", "prompt_cache"):
        assert options[name] == hints[name]
    for name in ("sampling", "stopping"):
        assert alternatives(options[name]) == {hints[name], type(None)}


def test_every_call_takes_the_options() -> None:
    calls: dict[str, list[Any]] = {
        "GenerateOptions": [Engine.generate, Engine.stream, Engine.agenerate, Engine.astream],
        "RequestOptions": [Client.generate, Client.stream, AsyncClient.generate, AsyncClient.stream],
    }
    for kind, found in calls.items():
        for call in found:
            assert inspect.signature(call).parameters["options"].annotation == f"Unpack[{kind}]"
    assert set(GenerateOptions.__annotations__) - set(RequestOptions.__annotations__) == {"model"}


def test_help_lists_the_options(options: dict[str, Any]) -> None:
    (block,) = re.findall(r"Args:\n(.*?)\n\nReturns:", inspect.getdoc(Engine.generate) or "", re.DOTALL)
    heads = re.findall(r"^    ([a-z_, \n]+?):", block, re.MULTILINE)
    assert {name.strip() for head in heads for name in head.split(",")} == {"prompt", *options}
