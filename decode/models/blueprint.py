"""What a decoder-only transformer of a checked family is, by its configuration alone.

A family is checked when its layer was read line by line: pre-norm, a residual after attention and after a gated MLP,
rotary positions over the whole head. The self-test at load holds every model against its own forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.decode.models.reading import Fields

__all__ = ["Blueprint", "Rotary"]

_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
# Of these, the ones that also normalise the output of attention and MLP; weights of norms are offsets from 1.
_SANDWICH = frozenset({"gemma3_text"})
_HEAD_NORM = frozenset({"qwen3", "gemma3_text"})
# Fields that change the scores in ways that are not known here, and the values at which they don't.
_UNKNOWN = {"attn_logit_softcapping": (None,), "use_bidirectional_attention": (None, False)}
_ACTIVATIONS = frozenset({"silu", "swish", "gelu_pytorch_tanh"})
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary positions of one kind of layers.

    Attributes:
        frequencies: float32 [D / 2], radians per position.
        factor: of cosines and sines.
    """

    frequencies: Tensor
    factor: float

    def tables(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [0, length), each [length, D], computed in float32 and rounded once."""
        angles = torch.arange(length, dtype=torch.float32)[:, None] * self.frequencies
        angles = torch.cat((angles, angles), -1)
        return (angles.cos() * self.factor).to(dtype), (angles.sin() * self.factor).to(dtype)


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The shapes and constants of a model, layer by layer where these differ.

    Attributes:
        scale: of attention's scores.
        windows: positions that a layer sees, its own included; None sees all.
        kinds: which rotary positions a layer has.
        rotary: these, by kind.
        activation: of the gate, by its name in the configuration.
        eps: of every norm.
        sandwich: whether the outputs of attention and MLP are normalised too, with norms that are offsets from 1.
        head_norm: whether queries and keys are normalised, head by head.
        embed_scale: factor of the embedding.
        softcap: bound of the logits, by a hyperbolic tangent.
        tied: whether the head is the embedding.
    """

    heads: int
    kv_heads: int
    dim: int
    scale: float
    windows: tuple[int | None, ...]
    kinds: tuple[str, ...]
    rotary: Mapping[str, Rotary]
    activation: str
    eps: float
    sandwich: bool
    head_norm: bool
    embed_scale: float | None
    softcap: float | None
    tied: bool

    @classmethod
    def of(cls, config: Any) -> Blueprint | None:
        """That of a transformers configuration; None if it is of no checked family, or does what is not known here.

        Args:
            config: of transformers, or what was remembered of one.
        """
        family = str(getattr(config, "model_type", ""))
        known = isinstance(config, Fields) or type(config).__module__.startswith("transformers.")
        if family not in _FAMILIES or not known:
            return None
        if any(getattr(config, name, known[0]) not in known for name, known in _UNKNOWN.items()):
            return None
        count = int(config.num_hidden_layers)
        types = tuple(getattr(config, "layer_types", None) or (_FULL,) * count)
        window = getattr(config, "sliding_window", None)
        if family == "mistral":
            windows: tuple[int | None, ...] = (window,) * count
        else:
            windows = tuple(window if kind == _SLIDING else None for kind in types)
        by_kind = family == "gemma3_text"
        kinds = types if by_kind else (_FULL,) * count
        rotary = {kind: _rotary(config, kind if by_kind else None) for kind in sorted(set(kinds))}
        positions = {kind: found for kind, found in rotary.items() if found is not None}
        if len(positions) < len(rotary):
            return None
        activation = str(config.hidden_activation if by_kind else config.hidden_act)
        if activation not in _ACTIVATIONS:
            return None
        dim = _dim(config)
        scalar = config.query_pre_attn_scalar if by_kind else dim
        return cls(
            heads=int(config.num_attention_heads),
            kv_heads=int(config.num_key_value_heads),
            dim=dim,
            scale=float(scalar) ** -0.5,
            windows=windows,
            kinds=kinds,
            rotary=positions,
            activation=activation,
            eps=float(config.rms_norm_eps),
            sandwich=family in _SANDWICH,
            head_norm=family in _HEAD_NORM,
            embed_scale=float(config.hidden_size) ** 0.5 if by_kind else None,
            softcap=getattr(config, "final_logit_softcapping", None),
            tied=bool(config.tie_word_embeddings),
        )


def _dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rotary(config: Any, kind: str | None) -> Rotary | None:
    """Of all layers, or of one kind; None if they turn a part of the head only, or with the length of a batch."""
    given = config.rope_parameters[kind] if kind is not None else config.rope_parameters
    if given.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        return None
    rope_type = given["rope_type"]
    if rope_type == "default":
        exponents = torch.arange(0, _dim(config), 2, dtype=torch.float32) / _dim(config)
        return Rotary(1.0 / (given["rope_theta"] ** exponents), 1.0)
    if rope_type not in ("linear", "yarn", "llama3"):
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"), layer_type=kind)
    return Rotary(frequencies, float(factor))
