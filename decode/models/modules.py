"""Any Hugging Face causal LM through its own modules: attention is ours, everything else is theirs.

Connected by ``AttentionInterface.register``, the hook that models with ``_supports_attention_backend`` promise to call.
The whole ragged batch is one row of T tokens; positions and our ``Step`` say what belongs together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.decode.engine.storage import Step
from trimtab.decode.errors import TrimtabError
from trimtab.decode.models.linear import Linear, packing_available

__all__ = ["ATTENTION", "ModuleForward", "UnsupportedAttention"]

ATTENTION = "trimtab_ragged"
# Arguments that change the scores in ways our attention doesn't know; None means that the model doesn't use them.
_REFUSED = ("softcap", "s_aux", "position_bias", "cache", "block_table")


class UnsupportedAttention(TrimtabError):
    """A model's attention does something that ours can't reproduce."""


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    ragged: Step | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [1, Hq, T, D], key and value [1, Hkv, T, D] after RoPE -> [1, T, Hq, D]."""
    if ragged is None:
        raise UnsupportedAttention("this model belongs to a trimtab engine; its own forward can not be used")
    refused = [name for name in _REFUSED if kwargs.get(name) is not None]
    if refused:
        raise UnsupportedAttention(f"its attention uses {', '.join(refused)}")
    if key.shape != value.shape:
        raise UnsupportedAttention(f"its keys {tuple(key.shape)} and values {tuple(value.shape)} differ in shape")
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise UnsupportedAttention("its attention layers are not numbered")
    scale = float(query.shape[-1] ** -0.5 if scaling is None else scaling)
    q = query[0].transpose(0, 1)
    kv = torch.cat((key[0], value[0])).transpose(0, 1)
    return ragged.attend(int(layer), q, kv, scale, sliding_window).unsqueeze(0), None


class ModuleForward:
    """Forward pass of a model through its own modules.

    Args:
        model: loaded with ``attn_implementation=ATTENTION``, or to be switched to it.
    """

    def __init__(self, model: Any) -> None:
        # Here, because it takes seconds to import what it is a part of, and most models need none of it.
        from transformers import AttentionInterface

        AttentionInterface.register(ATTENTION, _attention)
        self.model = model
        model.set_attn_implementation(ATTENTION)
        if model.device.type == "cpu" and packing_available(model.dtype):
            _pack(model)

    def __call__(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor:
        """tokens, positions int64 [T], rows int64 [n] -> logits [n, V] in the model's dtype."""
        return self._logits(tokens, positions, step, rows)

    def with_hidden(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As a call; also the states that the model's head read for it, after the last norm, [n, D]."""
        read: list[Tensor] = []
        hook = self.model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        try:
            logits = self._logits(tokens, positions, step, rows)
        finally:
            hook.remove()
        return logits, read[0].reshape(len(rows), -1)

    def _logits(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor:
        logits: Tensor = self.model(
            input_ids=tokens.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=rows,
            ragged=step,
        ).logits[0]
        return logits


class _Packed(nn.Module):
    def __init__(self, module: nn.Linear) -> None:
        super().__init__()
        bias = None if module.bias is None else module.bias.detach()
        self.linear = Linear(((module.weight.detach(), bias),), pack=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)


def _pack(model: nn.Module) -> None:
    """Replace linear modules by packed ones. A head tied to the embedding keeps the embedding's copy too."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _Packed(child))
