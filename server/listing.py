"""Lists that are given page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.types import ModelInfo
from trimtab.server.convert import METHODS
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["info_of", "model_message", "page_of"]

T = TypeVar("T")

_PAGE = 100
_LARGEST_PAGE = 1000
_ROLES: Mapping[str, pb.ModelRole.ValueType] = {
    "base": pb.MODEL_ROLE_BASE,
    "aligned": pb.MODEL_ROLE_ALIGNED,
    "draft": pb.MODEL_ROLE_DRAFT,
}
_ROLE_OF: Mapping[int, Literal["base", "aligned", "draft"]] = {
    pb.MODEL_ROLE_BASE: "base",
    pb.MODEL_ROLE_ALIGNED: "aligned",
    pb.MODEL_ROLE_DRAFT: "draft",
}


def page_of(items: Mapping[str, T], size: int, token: str) -> tuple[list[T], str]:
    """One page of ``items`` in the order of their names; a token is the last name of the page before it.

    Returns:
        The page, and the token of the next one ("" after the last).

    Raises:
        InvalidRequest: a size beyond 1000, or a token that no page gave.
    """
    if size > _LARGEST_PAGE:
        raise InvalidRequest.of("page_size", size, f"a whole number in [0, {_LARGEST_PAGE}]")
    if token and token not in items:
        raise InvalidRequest.of("page_token", token, "empty, or the next_page_token of an earlier answer")
    names = sorted(name for name in items if name > token)
    page = names[: size or _PAGE]
    return [items[name] for name in page], page[-1] if len(page) < len(names) else ""


def model_message(info: ModelInfo) -> pb.Model:
    """What ListModels says of a model."""
    return pb.Model(
        id=info.name,
        methods=[method for method in METHODS if method != "policy.nudged" or info.nudge_models],
        nudge_models=info.nudge_models,
        max_context_tokens=info.max_context_tokens,
        vocab_size=info.vocab_size,
        ready=info.ready,
        role=_ROLES[info.role],
        source=info.source,
        architecture=info.architecture,
        dtype=info.dtype,
        device=info.device,
        eos_token_ids=info.eos_token_ids,
    )


def info_of(message: pb.Model) -> ModelInfo:
    """The inverse of ``model_message``."""
    return ModelInfo(
        name=message.id,
        role=_ROLE_OF.get(message.role, "base"),
        source=message.source,
        architecture=message.architecture,
        dtype=message.dtype,
        device=message.device,
        max_context_tokens=message.max_context_tokens,
        vocab_size=message.vocab_size,
        eos_token_ids=tuple(message.eos_token_ids),
        nudge_models=tuple(message.nudge_models),
        ready=message.ready,
    )
