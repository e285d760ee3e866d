"""Reward models: decoder-only models with a linear head over the last hidden state in place of the vocabulary's.

They run as every other view, on pages of their own, so what is known of a prefix is not read again. The head is applied
in float32 whatever the weights are: in bfloat16 two good answers would often get the same number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.decode.engine.storage import Step
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models.blueprint import Blueprint
from trimtab.decode.models.modules import ModuleForward
from trimtab.decode.models.stack import Stack
from trimtab.decode.models.weights import ModuleWeights

__all__ = ["RewardHead", "head_values", "is_reward", "labels_of", "load_reward", "reads_causally", "reward_forward"]

_SUFFIX = "ForSequenceClassification"


def is_reward(config: Any) -> bool:
    """Whether a model's configuration says that it has a head with labels."""
    return any(name.endswith(_SUFFIX) for name in getattr(config, "architectures", None) or ())


def labels_of(config: Any) -> tuple[str, ...]:
    """Names of the outputs of the head, in order."""
    named: dict[int, str] = getattr(config, "id2label", None) or {}
    return tuple(named.get(i, f"LABEL_{i}") for i in range(int(getattr(config, "num_labels", 1))))


def reads_causally(source: str) -> bool:
    """Whether a classifier is a decoder with a head over its last token, which the engine can run; from its files.

    Raises:
        UnsupportedModel: no model can be read from ``source``, or it has no head with labels.
    """
    config = read_config(source)
    if not is_reward(config):
        named = ", ".join(config.architectures or ()) or "no architecture"
        raise UnsupportedModel(source, f"its configuration names {named}, not one that ends in {_SUFFIX}")
    from transformers import AutoModelForSequenceClassification
    from transformers.modeling_layers import GenericForSequenceClassification

    kind = AutoModelForSequenceClassification._model_mapping.get(type(config), object)
    return isinstance(kind, type) and issubclass(kind, GenericForSequenceClassification)


def read_config(source: str) -> Any:
    """The configuration of a model, from a folder or the hub.

    Raises:
        UnsupportedModel: there is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise UnsupportedModel(source, f"no model can be read from it: {said}") from error


def load_reward(name: str, source: str, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """The model with its head.

    Raises:
        UnsupportedModel: its head is not one linear layer over the last hidden state.
    """
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(
        source, dtype=dtype, trust_remote_code=trust_remote_code
    )
    if type(getattr(model, "score", None)) is not nn.Linear or not hasattr(model, model.base_model_prefix):
        raise UnsupportedModel(name, f"the head of {type(model).__name__} is not one linear layer over the last token")
    return model


def head_values(model: Any, ids: Sequence[int]) -> Tensor:
    """What the model itself gives after each token: [T, labels], float32; for the self-test."""
    inner: Any = getattr(model, model.base_model_prefix)
    hidden = inner(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state[0]
    return RewardHead(model.score)(hidden)


class RewardHead:
    """hidden [n, D] -> [n, labels], float32."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight = linear.weight.detach().float()
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def __call__(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self.weight, self.bias)


def reward_forward(model: Any, blueprint: Blueprint | None) -> Stack | ModuleReward:
    """The forward pass of a reward model: as of any model, with [n, labels] in place of logits.

    Args:
        model: from ``load_reward``; its weights are taken over.
        blueprint: of its layers, if they are of a checked family and it is on the CPU.
    """
    if blueprint is None:
        return ModuleReward(model)
    head = RewardHead(model.score)
    stack = Stack(blueprint, ModuleWeights(model), model.dtype, head="score")
    stack.head, stack.softcap = head, None  # type: ignore[assignment]  # called in the same way
    return stack


class ModuleReward:
    """Forward pass of a reward model through its own modules."""

    def __init__(self, model: Any) -> None:
        self.head = RewardHead(model.score)
        ModuleForward(model)  # takes attention from the engine and packs what can be packed
        self.inner: Any = getattr(model, model.base_model_prefix)

    def __call__(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor:
        """tokens, positions int64 [T], rows int64 [n] -> [n, labels], float32."""
        hidden: Tensor = self.inner(
            input_ids=tokens.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, ragged=step
        ).last_hidden_state[0]
        return self.head(hidden.index_select(0, rows))
