"""JSON schemas of rewards: references lead to places in the schema itself, and nothing is fetched."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from trimtab.decode.config import ConfigError
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.registry import make_rewards

pytest.importorskip("jsonschema")

NUMBER = {"type": "integer"}
# Schemas that say the same in several ways: a list of whole numbers, perhaps in lists.
LOCAL: list[dict[str, Any]] = [
    {"$ref": "#/$defs/list", "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/one"}},
     "one": {"anyOf": [NUMBER, {"$ref": "#/$defs/list"}]}}},
    {"type": "array", "items": {"anyOf": [NUMBER, {"$ref": "#"}]}},
    {"type": "array", "items": {"anyOf": [NUMBER, {"$ref": "#list"}]}, "$anchor": "list"},
    {"$id": "https://example.org/list", "type": "array", "items": {"anyOf": [NUMBER, {"$ref": "list"}]}},
    {"$id": "https://example.org/a", "$ref": "b", "$defs": {"b": {
        "$id": "https://example.org/b", "type": "array", "items": {"anyOf": [NUMBER, {"$ref": "a"}]}}}},
    {"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/list", "definitions": {
        "list": {"type": "array", "items": {"anyOf": [NUMBER, {"$ref": "#/definitions/list"}]}}}},
    {"$dynamicAnchor": "list", "type": "array", "items": {"anyOf": [NUMBER, {"$dynamicRef": "#list"}]}},
]  # fmt: skip

# Schemas, the reference at fault.
ASTRAY: list[tuple[dict[str, Any], str]] = [
    ({"$ref": "http://127.0.0.1:1/schema.json"}, "http://127.0.0.1:1/schema.json"),
    ({"properties": {"a": {"items": {"$ref": "https://example.org/s"}}}}, "https://example.org/s"),
    ({"$ref": "file:///etc/hostname"}, "file:///etc/hostname"),
    ({"$ref": "other.json"}, "other.json"),
    ({"$ref": "#/$defs/nothing", "$defs": {}}, "#/$defs/nothing"),
    ({"$ref": "#nothing"}, "#nothing"),
    ({"$defs": {"unused": {"$ref": "urn:example:s"}}}, "urn:example:s"),
    ({"$dynamicRef": "http://127.0.0.1:1/#a"}, "http://127.0.0.1:1/#a"),
    ({"$ref": "#/x/y", "x": {"y": {"$ref": "http://127.0.0.1:1/"}}}, "http://127.0.0.1:1/"),
    ({"$id": "https://example.org/list", "$ref": "no-list"}, "no-list"),
]


def rated(schema: dict[str, Any], *texts: str) -> list[float]:
    reward: Any = make_rewards({"r": {"type": "json", "schema": schema}})["r"]
    return list(reward.rate([Sample("p", text) for text in texts]))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("something is fetched")

    monkeypatch.setattr(urllib.request, "urlopen", refused)


@pytest.mark.parametrize("schema", LOCAL, ids=range(len(LOCAL)))
def test_local_references_work(schema: dict[str, Any]) -> None:
    assert rated(schema, "[]", "[1, [2, []]]", "[1, [2, [true]]]", "{}") == [1, 1, 0.75, 0.75]


@pytest.mark.parametrize(("schema", "reference"), ASTRAY, ids=[reference for _, reference in ASTRAY])
def test_references_that_lead_elsewhere_are_refused(schema: dict[str, Any], reference: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rewards\.r\.schema\.\$(dynamicR|r)ef = .*into the schema itself") as error:
        rated(schema, "1")
    assert repr(reference) in str(error.value)
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    with pytest.raises(ConfigError, match=r"schema\.\$(dynamicR|r)ef"):
        make_rewards({"r": {"type": "json", "path": str(path)}})
    rules = [{"kind": "words", "at_least": 1}, {"kind": "json", "schema": schema}]
    with pytest.raises(ConfigError, match=r"constraints\[1\]\.schema\.\$(dynamicR|r)ef"):
        make_rewards({"r": {"type": "constraints", "constraints": rules}})


def test_what_only_looks_like_a_reference_is_none() -> None:
    schema = {"properties": {"$ref": {"type": "string"}}, "examples": [{"$ref": "http://127.0.0.1:1/"}]}
    assert rated(schema, '{"$ref": "http://127.0.0.1:1/"}', '{"$ref": 1}') == [1, 0.75]
    assert rated({"const": {"$ref": "no"}}, '{"$ref": "no"}', "1") == [1, 0.75]


def test_metaschemas_are_at_hand() -> None:
    schema = {"$ref": "https://json-schema.org/draft/2020-12/schema"}
    assert rated(schema, '{"type": "array"}', '{"type": 3}')[0] == 1 > rated(schema, '{"type": 3}')[0]
