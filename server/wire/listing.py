"""Lists that are given page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.request.fields import Field, Model, OneOf, Rated, described
from trimtab.decode.request.info import ModelInfo, RewardInfo
from trimtab.decode.request.method import AXES, methods
from trimtab.server.wire.alike import filled, made
from trimtab.v1 import decoding_pb2 as pb

__all__ = ["info_of", "model_message", "page_of", "reward_info_of", "reward_message"]

T = TypeVar("T")

_PAGE = 100
_LARGEST_PAGE = 1000
_Role = Literal["base", "aligned", "draft", "reward"]
_ROLES: Mapping[_Role, pb.ModelRole.ValueType] = {
    "base": pb.MODEL_ROLE_BASE,
    "aligned": pb.MODEL_ROLE_ALIGNED,
    "draft": pb.MODEL_ROLE_DRAFT,
    "reward": pb.MODEL_ROLE_REWARD,
}
_ROLE_OF: Mapping[int, _Role] = {number: role for role, number in _ROLES.items()}
_Kind = Literal["sequence", "prefix", "token"]
_KINDS: Mapping[_Kind, pb.RewardKind.ValueType] = {
    "sequence": pb.REWARD_KIND_SEQUENCE,
    "prefix": pb.REWARD_KIND_PREFIX,
    "token": pb.REWARD_KIND_TOKEN,
}
_KIND_OF: Mapping[int, _Kind] = {number: kind for kind, number in _KINDS.items()}


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


def model_message(info: ModelInfo, rewards: Mapping[str, RewardInfo]) -> pb.Model:
    """What ListModels says of a model; ``rewards`` are those that its answers can be rated with."""
    return filled(pb.Model(), info, id=info.name, role=_ROLES[info.role], methods=_methods(info, rewards))


def _methods(info: ModelInfo, rewards: Mapping[str, RewardInfo]) -> list[str]:
    """What the model can be asked for with the other models and the rewards that there are."""
    if info.role == "reward":
        return []
    rating = [reward for reward in rewards.values() if not reward.pairwise]
    beginnings = [reward for reward in rating if reward.kind != "sequence"]

    def served(field: Field) -> bool:
        """Whether there is something for a field that must name something."""
        rated = field.mark(Rated)
        names = field.mark(Model) is not None and field.mark(OneOf) is None
        if not field.required:
            return True
        if field.repeated:
            return all(map(served, described(field.kinds[0])))
        if rated is None and not names:
            return True
        return bool(info.nudge_models if rated is None else beginnings if rated.beginnings else rating)

    known = (cls for axis in AXES for cls in methods(axis).values())
    return [f"{cls.axis}.{cls.name}" for cls in known if all(map(served, described(cls)))]


def info_of(message: pb.Model) -> ModelInfo:
    """The inverse of ``model_message``."""
    return made(ModelInfo, message, name=message.id, role=_ROLE_OF.get(message.role, "base"))


def reward_message(info: RewardInfo) -> pb.Reward:
    """What ListRewards says of a reward."""
    return filled(pb.Reward(), info, id=info.name, kind=_KINDS[info.kind])


def reward_info_of(message: pb.Reward) -> RewardInfo:
    """The inverse of ``reward_message``; a kind that is not known here rates whole answers, as every reward does."""
    return made(RewardInfo, message, name=message.id, kind=_KIND_OF.get(message.kind, "sequence"))
