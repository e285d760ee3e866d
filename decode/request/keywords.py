"""Keyword arguments to a request."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from trimtab.decode.errors import InvalidRequest, Violation
from trimtab.decode.frozen import FrozenDict
from trimtab.decode.request.fields import Rated, described
from trimtab.decode.request.generation_config import from_generation_config
from trimtab.decode.request.method import Draw, Method, Policy, Search, default
from trimtab.decode.request.objective import AnyObjective, Objective
from trimtab.decode.request.prompt import (
    Prompt,
    canonical_prompt,
)
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.decode.request.spec_string import parse_draw, parse_policy, parse_search, with_objective

if TYPE_CHECKING:
    from transformers import GenerationConfig


__all__ = ["request_from_kwargs"]

T = TypeVar("T")


_SAMPLING_KEYS = tuple(f.name for f in fields(Sampling))


_STOPPING_KEYS = tuple(f.name for f in fields(Stopping))


_OTHER_KEYS = ("top_logprobs", "references", "prompt_cache", "sampling", "stopping")


_NAMED_KEYS = ("model", "policy", "draw", "search", "objective", "generation_config")


def request_from_kwargs(
    prompt: Prompt,
    *,
    model: str,
    policy: Policy | str | None = None,
    draw: Draw | str | None = None,
    search: Search | str | None = None,
    objective: AnyObjective | None = None,
    generation_config: GenerationConfig | None = None,
    model_generation_config: GenerationConfig | None = None,
    **flat: Any,
) -> Request:
    """A request from the flat keyword arguments of ``Engine.generate``; ``validate`` checks its values.

    Args:
        prompt: text, token ids or chat messages.
        model: name of the requested model.
        policy, draw, search: the three axes, also as spec strings; None takes ``Base()``, ``Autoregressive()``,
            ``Single()``. A search's objective may be the name of a reward, names and weights, or a function.
        objective: of the search, where that names none itself.
        generation_config: a transformers configuration; flat keywords override its fields, as in ``generate``.
        model_generation_config: the model's own, which ``generate`` would fill unset fields of it from.
        **flat: the fields of ``Sampling`` and ``Stopping`` (``stop`` also as one string), ``references`` (also one
            string), ``top_logprobs``, ``prompt_cache``, and ``sampling=``/``stopping=`` as whole objects in their
            place.

    Raises:
        InvalidRequest: an unknown keyword, fields given twice (flat and as an object), a spec string that can't be
            read, or an unsupported field of ``generation_config``; all of them at once.
    """
    found = _unknown_keywords(flat)
    axes = _axes(policy, draw, search, objective, found)
    sampling_fields: dict[str, Any] = {}
    stopping_fields: dict[str, Any] = {}
    if generation_config is not None:
        try:
            sampling_fields, stopping_fields = from_generation_config(generation_config, model_generation_config)
        except InvalidRequest as error:
            found += error.violations
    found += _given_twice("sampling", Sampling, _SAMPLING_KEYS, flat, generation_config is not None)
    found += _given_twice("stopping", Stopping, _STOPPING_KEYS, flat, generation_config is not None)
    if found:
        raise InvalidRequest(found)
    sampling_fields |= {key: flat[key] for key in _SAMPLING_KEYS if key in flat}
    stopping_fields |= {key: flat[key] for key in _STOPPING_KEYS if key in flat}
    return Request(
        model=model,
        prompt=canonical_prompt(prompt),
        sampling=flat.get("sampling") or Sampling(**_canonical_sampling(sampling_fields)),
        stopping=flat.get("stopping") or Stopping(**_canonical_stopping(stopping_fields)),
        **axes,
        references=_canonical_references(flat.get("references")),
        top_logprobs=flat.get("top_logprobs", 0),
        prompt_cache=flat.get("prompt_cache", True),
    )


def _axes(policy: Any, draw: Any, search: Any, objective: Any, found: list[Violation]) -> dict[str, Any]:
    """The three axes by name, the search with its objective; what can't be read is added to ``found``."""

    def searched() -> Any:
        if objective is None:
            return parse_search(search) if isinstance(search, str) else search
        if search is None:
            raise InvalidRequest.of("objective", objective, "an objective beside a search, e.g. search='best_of_n:16'")
        if isinstance(search, str):
            return parse_search(search, objective)
        return with_objective(search, objective) if isinstance(search, Search) else search

    axes: dict[str, Any] = {}
    for axis, read in (
        ("policy", lambda: parse_policy(policy) if isinstance(policy, str) else policy),
        ("draw", lambda: parse_draw(draw) if isinstance(draw, str) else draw),
        ("search", searched),
    ):
        try:
            value = read()
        except InvalidRequest as error:
            found += error.violations
        else:
            axes[axis] = _canonical(default(axis) if value is None else value)
    return axes


def _unknown_keywords(flat: Mapping[str, Any]) -> list[Violation]:
    accepted = (*_SAMPLING_KEYS, *_STOPPING_KEYS, *_OTHER_KEYS, *_NAMED_KEYS)
    found = []
    for key in flat:
        if key not in accepted:
            close = difflib.get_close_matches(key, accepted, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            found.append(Violation.of(key, flat[key], f"one of the keywords {', '.join(accepted)}{hint}"))
    return found


def _given_twice(
    name: str, kind: type, keys: Sequence[str], flat: Mapping[str, Any], generation_config: bool
) -> list[Violation]:
    whole = flat.get(name)
    if whole is None:
        return []
    if not isinstance(whole, kind):
        return [Violation.of(name, whole, f"a {kind.__name__}")]
    found = [Violation.of(key, flat[key], f"{key}= or {name}=, not both") for key in keys if key in flat]
    if generation_config:
        found.append(Violation.of(name, whole, f"generation_config= or {name}=, not both"))
    return found


def _canonical_sampling(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("logit_bias") is None:
        values.pop("logit_bias", None)
    elif isinstance(values["logit_bias"], Mapping):
        values["logit_bias"] = FrozenDict(values["logit_bias"])
    return values


def _canonical_stopping(values: dict[str, Any]) -> dict[str, Any]:
    """None stands for the default, one stop for a tuple of it, and a list for a tuple."""
    values = {key: value for key, value in values.items() if value is not None}
    for key, single in (("stop", str), ("stop_token_ids", int), ("eos_token_ids", int)):
        value = values.get(key)
        if isinstance(value, single):
            values[key] = (value,)
        elif isinstance(value, list):
            values[key] = tuple(value)
    return values


def _canonical(method: T) -> T:
    """The method with lists as tuples and its objective written out, as it comes over the wire.

    What is not of the types that it takes is left alone.
    """
    if not isinstance(method, Method):
        return method
    changed: dict[str, Any] = {}
    for field in described(cast("Any", type(method))):
        value = getattr(method, field.name)
        if field.repeated and isinstance(value, list):
            changed[field.name] = tuple(value)
        elif field.mark(Rated) and field.kinds != (str,) and isinstance(value, str | Mapping):
            changed[field.name] = Objective.of(value)
    return replace(cast("Any", method), **changed) if changed else method


def _canonical_references(references: Any) -> Any:
    match references:
        case None:
            return ()
        case str():
            return (references,)
        case list():
            return tuple(references)
    return references
