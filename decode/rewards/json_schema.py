"""JSON schemas that need nothing from outside: no reference leads to the network or to a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trimtab.decode.rewards.options import OptionError, needed, table

__all__ = ["schema_validator"]

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


def schema_validator(schema: object) -> Any:
    """A validator of jsonschema for documents that Python's ``json`` read.

    References must lead to a place in the schema itself, or to one of JSON Schema's own metaschemas, which come with
    jsonschema. All are looked up here, so that none fails, or is fetched, once answers are rated.

    Raises:
        OptionError: naming ``schema``, or the reference that leads elsewhere.
    """
    jsonschema = needed("jsonschema", "rewards")
    given = table("schema", schema, "a JSON schema")
    kind = jsonschema.validators.validator_for(given)
    try:
        kind.check_schema(given)
    except jsonschema.SchemaError as error:
        raise OptionError("schema", schema, f"a JSON schema ({error.message})") from error
    for reference in _astray(given, kind):
        accepted = "a reference into the schema itself (#...); nothing is fetched"
        raise OptionError(f"schema.{reference[0]}", reference[1], accepted)
    # Without a registry of its own it would fetch what it doesn't know.
    return kind(given, registry=needed("referencing", "rewards").Registry())


def _astray(schema: Mapping[str, object], kind: Any) -> Iterator[tuple[str, object]]:
    """References that lead nowhere: (keyword, value)."""
    referencing = needed("referencing.jsonschema", "rewards")
    default = referencing.specification_with(kind.META_SCHEMA.get("$schema", ""), default=referencing.DRAFT202012)
    resource = referencing.Resource.from_contents(schema, default_specification=default)
    known = needed("jsonschema_specifications", "rewards").REGISTRY
    waiting = [(known.resolver_with_root(resource), resource)]
    seen: set[int] = set()
    while waiting:
        resolver, resource = waiting.pop()
        contents = resource.contents
        if id(contents) in seen or not isinstance(contents, Mapping):
            continue
        seen.add(id(contents))
        for keyword in _REFERENCES:
            if keyword not in contents:
                continue
            try:
                found = resolver.lookup(contents[keyword])
            except Exception:  # of a reference that is no text, too
                yield keyword, contents[keyword]
                continue
            waiting.append((found.resolver, default.create_resource(found.contents)))
        waiting += [(resolver.in_subresource(inner), inner) for inner in resource.subresources()]
