"""Compiles kernels over logits for sm_90 without a GPU and prints their machine code as JSON; a program of its own.

Not through the interpreter: Triton reads TRITON_INTERPRET when it is imported, so the tests that use this start a
process without it.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trimtab.kernels.triton import build, logits


@triton.jit
def _careless(x, out, V: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Statistics of a tile as one writes them first: with ``exp``, ``where`` and the argmax at once."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    z = tl.load(x + offs, mask=offs < V, other=float("-inf")).to(tl.float32)
    m, at = tl.max(z, 0, return_indices=True)
    w = tl.where(z == float("-inf"), 0.0, tl.exp(z - m))
    d = tl.where(z == float("-inf"), 0.0, z - m)
    tl.store(out, m)
    tl.store(out + 1, tl.sum(w, 0))
    tl.store(out + 2, tl.sum(w * d, 0))
    tl.store(out + 3, at.to(tl.float32))


def careless(vocabulary: int) -> dict[str, Any]:
    block, warps = logits.block_of(vocabulary), logits.warps_of(vocabulary, 1)
    signature = {"x": "*bf16", "out": "*fp32", "V": "constexpr", "BLOCK": "constexpr"}
    divisible = {(i,): [["tt.divisibility", 16]] for i in range(2)}
    source = ASTSource(_careless, signature, constexprs={"V": vocabulary, "BLOCK": block}, attrs=divisible)
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return {"code": build.sass(code.asm["cubin"]), "spills": 0, "elements": block // (32 * warps)}


def kernels(names: list[str], vocabulary: int, models: int, dtype: str) -> dict[str, dict[str, Any]]:
    """By name: machine code, bytes spilled to the stack, logits of one model that a thread works on in a tile."""
    found = {}
    for name, variant in build.variants(vocabulary, models, dtype):
        if name in names:
            built = build.build(variant)
            warps = variant.warps or logits.warps_of(vocabulary, models)
            elements = logits.block_of(vocabulary) // (32 * warps)
            found[name] = {
                "code": build.sass(built.code.asm["cubin"]),
                "spills": built.spills,
                "elements": elements * variant.constants.get("SPAN", 1),
            }
    if "careless" in names:
        found["careless"] = careless(vocabulary)
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps([kernels(*wanted) for wanted in json.loads(sys.argv[1])]))
