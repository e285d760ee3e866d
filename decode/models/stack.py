"""A decoder-only transformer as a flat list of calls: what a CPU runs instead of the model's own modules.

At one row the products of a 135M model take 3 ms and Hugging Face's module graph takes 19 ms, the difference being
hundreds of small operations. Here q/k/v and gate/up are one packed product each, residuals are added inside a product,
RoPE and the cache write touch queries and keys at once, and nothing is dispatched through modules.

Only families whose layer was checked line by line have a ``Blueprint``; every other architecture runs its own modules
(``modules.py``). The load-time self-test compares both with the model's eager forward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.decode.engine.memory import give_back
from trimtab.decode.engine.storage import Step
from trimtab.decode.models.blueprint import Blueprint
from trimtab.decode.models.linear import Linear, packing_available
from trimtab.decode.models.weights import Weights

__all__ = ["Stack"]

# Layers that are packed before what they took is given back: a checkpoint is read by several threads, and what is freed
# of one thread's memory another one's allocations don't use again.
_TRIM_EVERY = 4


class _Norm:
    """Root-mean-square norm over the last dimension, in float32, rounded once.

    The mean of [x, -x] is zero and its variance mean(x²), so PyTorch's fused layer norm over that pair computes it in
    two calls; ``rms_norm`` has no fused CPU kernel (8.9 against 3.7 us at [1, 576], bfloat16).
    """

    def __init__(self, weight: Tensor, blueprint: Blueprint) -> None:
        weight = _norm_weight(weight, blueprint)
        self.eps = blueprint.eps
        self.size = weight.numel()
        self.weight = torch.cat((weight, weight))
        self.shape = (2 * self.size,)

    def __call__(self, x: Tensor) -> Tensor:
        pair = functional.layer_norm(torch.cat((x, -x), -1), self.shape, self.weight, None, self.eps)
        return pair[..., : self.size]


class _DecoderLayer:
    """One layer; ``x`` is [T, hidden], ``cos`` and ``sin`` [T, 1, D] with sin negated in its first half."""

    def __init__(self, blueprint: Blueprint, weights: Weights, index: int, dtype: torch.dtype, pack: bool) -> None:
        def linear(*names: str) -> Linear:
            return Linear([_linear(weights, f"{prefix}.{name}") for name in names], pack, dtype)

        def norm(name: str) -> _Norm:
            return _Norm(_needed(weights, f"{prefix}.{name}.weight").to(dtype), blueprint)

        prefix = f"model.layers.{index}"
        self.index, self.heads, self.kv_heads, self.dim = index, blueprint.heads, blueprint.kv_heads, blueprint.dim
        self.scale, self.window, self.kind = blueprint.scale, blueprint.windows[index], blueprint.kinds[index]
        self.sandwich = blueprint.sandwich
        self.qkv = linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        self.out = linear("self_attn.o_proj")
        self.gate_up = linear("mlp.gate_proj", "mlp.up_proj")
        self.down = linear("mlp.down_proj")
        self.act = _activation(blueprint.activation)
        self.norm_in = norm("input_layernorm")
        if self.sandwich:
            self.norm_attention = norm("post_attention_layernorm")
            self.norm_mlp = norm("pre_feedforward_layernorm")
            self.norm_out = norm("post_feedforward_layernorm")
        else:
            self.norm_mlp = norm("post_attention_layernorm")
        self.head_norm: Tensor | None = None  # [Hq + Hkv, D]
        self.eps = blueprint.eps
        if blueprint.head_norm:
            q, k = (_needed(weights, f"{prefix}.self_attn.{name}_norm.weight").to(dtype) for name in "qk")
            both = [_norm_weight(q, blueprint)] * self.heads + [_norm_weight(k, blueprint)] * self.kv_heads
            self.head_norm = torch.stack(both)

    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor, step: Step) -> Tensor:
        heads, kv_heads, dim = self.heads, self.kv_heads, self.dim
        qkv = self.qkv(self.norm_in(x)).view(-1, heads + 2 * kv_heads, dim)
        qk = qkv[:, : heads + kv_heads]
        if self.head_norm is not None:
            pair = functional.layer_norm(torch.cat((qk, -qk), -1), (2 * dim,), None, None, self.eps)
            qk = (pair[..., :dim] * self.head_norm).to(x.dtype)
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
        blueprint: of the model.
        weights: of the model, on the CPU, in any dtype; linear ones are released as they are packed.
        dtype: to run in.
        head: name of the head.

    Raises:
        ValueError: a weight is missing.
    """

    def __init__(self, blueprint: Blueprint, weights: Weights, dtype: torch.dtype, head: str = "lm_head") -> None:
        pack = packing_available(dtype)
        self.table = weights.table()
        scale = blueprint.embed_scale
        self.embed_scale: Tensor | None = None if scale is None else torch.tensor(scale).to(dtype)
        # First, when nothing else is there: the largest, it is there twice while it is packed. What it was converted
        # from is gone by then.
        self.head = Linear((_linear(weights, head, dtype),), pack)
        give_back()
        self.layers: list[_DecoderLayer] = []
        for index in range(len(blueprint.kinds)):
            self.layers.append(_DecoderLayer(blueprint, weights, index, dtype, pack))
            if pack:
                weights.release(index)
                if index % _TRIM_EVERY == _TRIM_EVERY - 1:
                    give_back()
        self.norm = _Norm(_needed(weights, "model.norm.weight").to(dtype), blueprint)
        self.softcap = blueprint.softcap
        self._rotary = blueprint.rotary
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
        """(Re)compute the rotary tables for positions [0, length)."""
        self._length = length
        for kind, rotary in self._rotary.items():
            cos, sin = rotary.tables(length, self._dtype)
            sin[:, : sin.shape[-1] // 2].neg_()  # the rotation of halves becomes a roll
            self._tables[kind] = (cos.unsqueeze(1), sin.unsqueeze(1))


def _needed(weights: Weights, name: str) -> Tensor:
    found = weights(name)
    if found is None:
        raise ValueError(f"there is no weight {name}")
    return found


def _linear(weights: Weights, name: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
    weight, bias = _needed(weights, f"{name}.weight"), weights(f"{name}.bias")
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _norm_weight(weight: Tensor, blueprint: Blueprint) -> Tensor:
    return weight.float() + (1.0 if blueprint.sandwich else 0.0)


def _activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation as one operator."""
    return _gelu_tanh if name == "gelu_pytorch_tanh" else functional.silu


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")
