"""Run by test_examples in a process that has the examples' package installed: serves its methods in every way.

Arguments: the folder of a model, and one for a configuration. Prints what was found as JSON; no test is in here.
"""

from __future__ import annotations

import io
import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from transformers import AutoModelForCausalLM, AutoTokenizer
from trimtab_extras.first_good import FirstGood
from trimtab_extras.no_repeat import NoRepeat

from trimtab.decode import (
    BestOfN,
    Engine,
    InvalidRequest,
    ModelConfig,
    Objective,
    Request,
    Segments,
    Speculative,
    UnsupportedRequest,
)
from trimtab.decode.commands import main
from trimtab.decode.methods.table import as_markdown
from trimtab.decode.request.as_json import FormatError, from_json, to_json
from trimtab.decode.request.spec_string import parse_policy, parse_search
from trimtab.server.client import Client
from trimtab.server.rpc.background import BackgroundServer
from trimtab.server.wire.request import read_spec
from trimtab.v1 import decoding_pb2 as pb
from trimtab.v1.decoding_pb2_grpc import DecodingServiceStub

PROMPT, TRIES = "abcdefgh abcdefgh ", 6
OPTIONS: dict[str, Any] = {"model": "base", "max_new_tokens": 12, "seed": 3}
REWARD = {"type": "length", "exactly": 30, "unit": "characters"}
WRONG: Any = {"policy": NoRepeat(0), "search": FirstGood("rule", threshold=float("inf"), tries=0)}
MISSPELT = {"model": "base", "text": "p", "policy": {"extension": {"name": "no_repeat", "fields": {"sise": 3}}}}


def fields_of(call: Any) -> list[str]:
    """The fields that an error names."""
    try:
        call()
    except (InvalidRequest, UnsupportedRequest, FormatError) as error:
        return sorted({violation.field for violation in error.violations})
    return []


def printed(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        assert main(words) == 0, words
    return out.getvalue()


def ids(result: Any) -> list[list[int]]:
    return [[token.id for token in candidate.tokens] for candidate in result.candidates]


def by_library(engine: Engine, folder: str) -> dict[str, Any]:
    several = engine.generate(PROMPT, search=BestOfN(TRIES, "rule"), **OPTIONS)
    first = {
        str(bar): engine.generate(PROMPT, search=FirstGood("rule", bar, TRIES), **OPTIONS)
        for bar in sorted({candidate.rewards["rule"] for candidate in several.candidates} | {2.0})
    }
    greedy: Any = {"model": "base", "temperature": 0, "max_new_tokens": 24, "min_new_tokens": 24}
    without = {n: engine.generate(PROMPT, policy=NoRepeat(n), **greedy) for n in (1, 2, 3)}
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    theirs = {}
    for size in without:
        rule = {"no_repeat_ngram_size": size, "max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False}
        theirs[size] = model.generate(**prompt, **rule)[0, prompt["input_ids"].shape[1] :].tolist()
    beams = Segments("rule", beams=2, samples_per_beam=2, max_tokens=5)
    cool: Any = {**OPTIONS, "temperature": 0.1, "max_new_tokens": 60, "search": beams}
    return {
        "beams": ids(engine.generate(PROMPT, **cool)),
        "beams without": ids(engine.generate(PROMPT, policy=NoRepeat(2), **cool)),
        "best_of_n": {"ids": ids(several), "rewards": [c.rewards["rule"] for c in several.candidates]},
        "first_good": {b: {"ids": ids(r), "selected": r.selected, "abstained": r.abstained} for b, r in first.items()},
        "no_repeat": {size: ids(result)[0] for size, result in without.items()},
        "transformers": theirs,
        "library wrong": fields_of(lambda: engine.generate(PROMPT, **WRONG, **OPTIONS)),
        "greedy": fields_of(lambda: engine.generate(PROMPT, search=FirstGood("rule"), temperature=0)),
        "pair": fields_of(lambda: engine.generate(PROMPT, policy=NoRepeat(), draw=Speculative("draft"))),
        "library": ids(engine.generate(PROMPT, policy=NoRepeat(2), search=FirstGood("rule", 2.0, 3), **OPTIONS)),
    }


def by_command(*where: str) -> list[list[int]]:
    spec = ("--search", "first_good:tries=3,threshold=2", "--objective", "rule", "--policy", "no_repeat:2")
    words = ("generate", PROMPT, "--raw", "--model", "base", "--max-new-tokens", "12", "--seed", "3", "--json")
    return ids(from_json(json.loads(printed(*words, *where, *spec))))


def over_grpc(server: BackgroundServer) -> dict[str, Any]:
    with Client(server.address) as client, grpc.insecure_channel(server.address) as channel:
        stub = DecodingServiceStub(channel)
        (base, *_) = [m for m in stub.ListModels(pb.ListModelsRequest()).models if m.id == "base"]
        served = client.generate(PROMPT, policy=NoRepeat(2), search=FirstGood("rule", 2.0, 3), **OPTIONS)
        wrong: dict[str, Any] = {"policy": NoRepeat(0), "search": FirstGood("rule", tries=0)}
        return {
            "grpc": ids(served),
            "listed": list(base.methods),
            "grpc wrong": fields_of(lambda: client.generate(PROMPT, **wrong, **OPTIONS)),
            "proto wrong": [v.field for v in read_spec(ParseDict(MISSPELT, pb.GenerationSpec())).violations],
        }


def as_json() -> dict[str, Any]:
    request = Request(model="base", prompt="p", policy=NoRepeat(7), search=FirstGood({"rule": 0.5}, -1.5, 2))
    document = json.loads(json.dumps(to_json(request), allow_nan=False))
    document["policy"]["sise"] = 1
    return {
        "same": from_json(json.loads(json.dumps(to_json(request)))) == request,
        "json wrong": fields_of(lambda: from_json(document)),
    }


def written() -> dict[str, Any]:
    return {
        "parsed": parse_search("first_good:rule,tries=3") == FirstGood(Objective.of("rule"), tries=3)
        and parse_policy("no_repeat:2") == NoRepeat(2),
        "text wrong": fields_of(lambda: parse_search("first_good:rule,tries=some", option="--search")),
        "table": printed("methods"),
        "markdown": as_markdown(),
    }


def run(folder: str, scratch: Path) -> dict[str, Any]:
    config = scratch / "trimtab.toml"
    rule = "".join(f"{key} = {value!r}\n" for key, value in REWARD.items())
    config.write_text(f"[models.base]\nsource = {folder!r}\ndtype = 'float32'\n[rewards.rule]\n{rule}")
    sources = {name: ModelConfig(source=folder, dtype="float32") for name in ("base", "draft")}
    with Engine(sources, rewards={"rule": REWARD}) as engine:
        found = {**by_library(engine, folder), **as_json(), **written()}
        with BackgroundServer(lambda: nullcontext(engine)) as server:
            found |= {**over_grpc(server), "command, to a server": by_command("--server", server.address)}
        engine.check()
    return {**found, "command": by_command("--config", str(config))}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], Path(sys.argv[2]))))
