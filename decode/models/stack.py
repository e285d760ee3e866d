"""A decoder-only transformer as a flat list of calls: what a CPU runs instead of the model's own modules.

At one row the products of a 135M model take 3 ms and Hugging Face's module graph takes 19 ms, the difference being
hundreds of small operations. Here q/k/v and gate/up are one packed product each, residuals are added inside a product,
RoPE and the cache write touch queries and keys at once, and nothing is dispatched through modules.

Only families whose layer was checked line by line are accepted (``FAMILIES``); every other architecture runs its own
modules (``modules.py``). The load-time self-test compares both with the model's eager forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.decode.engine.memory import give_back
from trimtab.decode.engine.storage import Step
from trimtab.decode.models.linear import Linear, packing_available

__all__ = ["FAMILIES", "Stack"]

# Decoder-layer classes: pre-norm, residual after attention and after a gated MLP, rotary positions over the whole head.
FAMILIES = frozenset(
    {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "Gemma3DecoderLayer"}
)
# Of these, the layers that also normalise the output of attention and MLP, with weights stored as an offset from 1.
_SANDWICH = frozenset({"Gemma3DecoderLayer"})
# Layers that are packed before what they took is given back: a checkpoint is read by several threads, and what is freed
# of one thread's memory another one's allocations don't use again.
_TRIM_EVERY = 4


class _Norm:
    """Root-mean-square norm over the last dimension, in float32, rounded once.

    The mean of [x, -x] is zero and its variance mean(x²), so PyTorch's fused layer norm over that pair computes it in
    two calls; ``rms_norm`` has no fused CPU kernel (8.9 against 3.7 us at [1, 576], bfloat16).
    """

    def __init__(self, module: Any, offset: float) -> None:
        weight = module.weight.detach().float() + offset
        self.eps = float(getattr(module, "variance_epsilon", None) or module.eps)
        self.size = weight.numel()
        self.weight = torch.cat((weight, weight))
        self.shape = (2 * self.size,)

    def __call__(self, x: Tensor) -> Tensor:
        pair = functional.layer_norm(torch.cat((x, -x), -1), self.shape, self.weight, None, self.eps)
        return pair[..., : self.size]


class _Layer(Protocol):
    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, step: Step) -> Tensor: ...


class _DecoderLayer:
    """One layer; ``x`` is [T, hidden], ``cos`` and ``sin`` [T, 1, D] with sin negated in its first half."""

    def __init__(self, layer: Any, index: int, heads: int, kv_heads: int, dim: int, pack: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.index, self.heads, self.kv_heads, self.dim = index, heads, kv_heads, dim
        self.scale = float(attention.scaling)
        window = getattr(attention, "sliding_window", None)
        if window is None and type(layer).__name__ == "MistralDecoderLayer":
            window = getattr(attention.config, "sliding_window", None)
        self.window: int | None = window
        self.kind: str = getattr(attention, "layer_type", None) or "full_attention"
        self.sandwich = type(layer).__name__ in _SANDWICH
        offset = 1.0 if self.sandwich else 0.0
        self.qkv = Linear((attention.q_proj, attention.k_proj, attention.v_proj), pack)
        self.out = Linear((attention.o_proj,), pack)
        self.gate_up = Linear((mlp.gate_proj, mlp.up_proj), pack)
        self.down = Linear((mlp.down_proj,), pack)
        self.act: Callable[[Tensor], Tensor] = _activation(mlp.act_fn)
        self.norm_in = _Norm(layer.input_layernorm, offset)
        if self.sandwich:
            self.norm_attention = _Norm(layer.post_attention_layernorm, offset)
            self.norm_mlp = _Norm(layer.pre_feedforward_layernorm, offset)
            self.norm_out = _Norm(layer.post_feedforward_layernorm, offset)
        else:
            self.norm_mlp = _Norm(layer.post_attention_layernorm, offset)
        self.head_norm: tuple[Tensor, float] | None = None
        if hasattr(attention, "q_norm"):
            weights = [attention.q_norm.weight.detach().float() + offset] * heads
            weights += [attention.k_norm.weight.detach().float() + offset] * kv_heads
            eps = float(getattr(attention.q_norm, "variance_epsilon", None) or attention.q_norm.eps)
            self.head_norm = torch.stack(weights), eps  # [Hq + Hkv, D]

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, step: Step) -> Tensor:
        heads, kv_heads, dim = self.heads, self.kv_heads, self.dim
        qkv = self.qkv(self.norm_in(x)).view(-1, heads + 2 * kv_heads, dim)
        qk = qkv[:, : heads + kv_heads]
        if self.head_norm is not None:
            weight, eps = self.head_norm
            pair = functional.layer_norm(torch.cat((qk, -qk), -1), (2 * dim,), None, None, eps)
            qk = (pair[..., :dim] * weight).to(x.dtype)
        qk = torch.addcmul(qk * cos, qk.roll(dim // 2, -1), sin)
        kv = torch.cat((qk[:, heads:], qkv[:, heads + kv_heads :]), 1)
        mixed = step.attend(self.index, qk[:, :heads], kv, self.scale, self.window).reshape(-1, heads * dim)
        if self.sandwich:
            x = x + self.norm_attention(self.out(mixed))
            return x + self.norm_out(self._mlp(x, None))
        x = self.out.add(mixed, x)
        return self._mlp(x, x)

    def _mlp(self, x: Tensor, residual: Tensor | None) -> Tensor:
        gate, up = self.gate_up(self.norm_mlp(x)).chunk(2, -1)
        hidden = self.act(gate).mul_(up)
        return self.down(hidden) if residual is None else self.down.add(hidden, residual)


class Stack:
    """Forward pass of a whole model.

    Args:
        model: a causal LM of one of ``FAMILIES``, on the CPU, in the dtype to run in. Its linear weights are released
            as they are packed; the model can't be used afterwards.
        table: the embedding in a narrower dtype, to be read in place of the model's own: a packed head holds the same
            numbers again, and of the table only a row per token is ever read.

    Raises:
        ValueError: the model isn't of these families.
    """

    def __init__(self, model: Any, table: Tensor | None = None) -> None:
        config, inner = model.config, model.model
        if any(type(layer).__name__ not in FAMILIES for layer in inner.layers):
            raise ValueError(f"{type(model).__name__} is not one of the checked families")
        dtype: torch.dtype = model.dtype
        pack = packing_available(dtype)
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        embed: Any = inner.embed_tokens
        self.table: Tensor = embed.weight.detach() if table is None else table
        scale = None if type(embed) is nn.Embedding else embed.embed_scale
        self.embed_scale: Tensor | None = None if scale is None else scale.to(dtype)
        self.layers: list[_DecoderLayer] = []
        for index, layer in enumerate(inner.layers):
            self.layers.append(_DecoderLayer(layer, index, heads, kv_heads, dim, pack))
            if pack:
                _release(layer)
                if index % _TRIM_EVERY == _TRIM_EVERY - 1:
                    give_back()
        # Last, when all other weights are there once only: the largest, it is there twice while it is packed.
        give_back()
        self.head = Linear((model.lm_head,), pack)
        sandwich = type(inner.layers[0]).__name__ in _SANDWICH
        self.norm = _Norm(inner.norm, 1.0 if sandwich else 0.0)
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self._rotary = inner.rotary_emb
        self._kinds = sorted({layer.kind for layer in self.layers})
        self._dtype = dtype
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._grow(1024)

    def __call__(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor:
        """Logits.

        Args:
            tokens, positions: int64 [T].
            step: attention and cache of this pass.
            rows: int64 [n], indices into T.

        Returns:
            [n, V] in the model's dtype.
        """
        return self.with_hidden(tokens, positions, step, rows)[0]

    def with_hidden(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> tuple[Tensor, Tensor]:
        """As a call; also the states that the logits come from, after the last norm, [n, D]."""
        last = int(positions.max())
        if last >= self._length:
            self._grow(2 * last)
        angles = {k: (c.index_select(0, positions), s.index_select(0, positions)) for k, (c, s) in self._tables.items()}
        x = functional.embedding(tokens, self.table).to(self._dtype)
        if self.embed_scale is not None:
            x = x * self.embed_scale
        for layer in self.layers:
            cos, sin = angles[layer.kind]
            x = layer(x, cos, sin, step)
        if len(rows) < len(x):
            x = x.index_select(0, rows)
        hidden = self.norm(x)
        logits = self.head(hidden)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits, hidden

    def _grow(self, length: int) -> None:
        """(Re)compute the rotary tables for positions [0, length), with the model's own module."""
        self._length = length
        at = torch.arange(length).unsqueeze(0)
        like = torch.empty(0, dtype=self._dtype)
        by_kind = hasattr(self._rotary, "layer_types")
        for kind in self._kinds:
            cos, sin = self._rotary(like, at, kind) if by_kind else self._rotary(like, at)
            sin = sin[0].clone()
            sin[:, : sin.shape[-1] // 2].neg_()  # the rotation of halves becomes a roll
            self._tables[kind] = (cos[0].unsqueeze(1).contiguous(), sin.unsqueeze(1).contiguous())


def _activation(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The activation as one operator where there is one."""
    name = type(module).__name__
    if name in ("SiLU", "SiLUActivation"):
        return functional.silu
    if name in ("GELUTanh", "PytorchGELUTanh"):
        return _gelu_tanh
    return module


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _release(layer: nn.Module) -> None:
    """Drop a layer's linear weights: the packed copies replace them."""
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
