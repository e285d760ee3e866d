"""Compiles kernels for sm_90 without a GPU and prints what became of them, as JSON; run as a program of its own.

Not through the interpreter: Triton reads TRITON_INTERPRET when it is imported, so the tests that use this start a
process without it.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trimtab.kernels import paging
from trimtab.kernels.triton import build as logits
from trimtab.kernels.triton import paged

TARGET = GPUTarget("cuda", 90, 32)
TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_SCALARS = {"scale": "fp32", "cap": "fp32", "inside": "fp32", "plane": "i64"}


def build(
    kernel: Any, tensors: Mapping[str, str], constants: Mapping[str, Any], odd: tuple[str, ...] = (), **options: Any
) -> Any:
    """Compile; scalars are int32 unless named in ``_SCALARS``, and divisible by 16 unless named in ``odd``."""
    signature, divisible = {}, {}
    for i, name in enumerate(kernel.arg_names):
        kind = "constexpr" if name in constants else tensors.get(name) or _SCALARS.get(name, "i32")
        signature[name] = kind
        if kind[0] in "*i" and name not in odd:
            divisible[(i,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=divisible)
    return triton.compile(source, target=TARGET, options={"enable_fp_fusion": False, **options})


def report(compiled: Any) -> dict[str, Any]:
    """Registers, bytes spilled to the stack, shared memory, and how often each instruction occurs."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([TOOL, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    names = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code)
    return {
        "registers": int(found[1]),
        "spilled": int(found[2]),
        "shared": compiled.metadata.shared,
        "instructions": dict(collections.Counter(names)),
    }


def attention(dtype: str, dim: int, heads: int, group: int, long: bool, window: bool, softcap: bool) -> Any:
    torch_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32
    rows = paging.tile_rows(group, dim * torch_dtype.itemsize)[long]
    tensors = dict.fromkeys(("Q", "POOL", "OUT"), f"*{dtype}")
    tensors |= {"PARTS": "*fp32", "SUMS": "*fp32", "SPANS": "*i32", "PAGES": "*i32", "WORK": "*i32"}
    constants = {
        "WINDOW": window,
        "SOFTCAP": softcap,
        "HEADS": heads,
        "GROUP": group,
        "PAGE": 64,
        "DIM": dim,
        "SPLIT": paging.LONG_SPLIT if long else paging.SHORT_SPLIT,
        "BLOCK_M": rows,
        "BLOCK_N": paged._positions(dim, torch_dtype),
        "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "LONG": long,
        "WIDE": False,
    }
    stages = paged._stages(torch_dtype, long)
    return build(paged._attend, tensors, constants, num_warps=8 if rows == 128 else 4, num_stages=stages)


def merge(dim: int, heads: int) -> Any:
    tensors = {"PARTS": "*fp32", "SUMS": "*fp32", "OUT": "*bf16", "MERGES": "*i32"}
    return build(paged._merge, tensors, {"HEADS": heads, "DIM": dim, "BLOCK_D": dim}, num_warps=4)


def write(dim: int, heads: int) -> Any:
    constants = {"HEADS": heads, "DIM": dim, "PAGE": 64, "BLOCK_H": 2 * heads, "BLOCK_D": dim}
    return build(paged._write, {"POOL": "*bf16", "KV": "*bf16", "SLOTS": "*i32"}, constants, num_warps=4)


def verification(dtype: str, vocabulary: int, drafted: int) -> Iterator[tuple[str, Any]]:
    """Acceptance and residual; ``drafted`` tokens of the vocabulary are the draft's."""
    for name, variant in logits.verification(vocabulary, drafted, dtype):
        yield name, logits.build(variant).code


def kernels(name: str) -> Iterator[tuple[str, Any]]:
    """What each test wants to know about."""
    if name == "paged":
        yield "decode", attention("bf16", 128, 8, 4, long=False, window=False, softcap=False)
        yield "prefill", attention("bf16", 128, 8, 4, long=True, window=False, softcap=False)
        yield "merge", merge(128, 32)
        yield "write", write(128, 8)
    elif name == "paged-all":
        for dim, heads, group in ((64, 3, 3), (128, 8, 8), (256, 1, 4), (256, 1, 8)):
            for long in (False, True):
                yield f"bf16 {dim} {group} {long}", attention("bf16", dim, heads, group, long, True, dim == 128)
        yield "fp32 64", attention("fp32", 64, 3, 3, long=True, window=True, softcap=False)
        yield "fp32 256", attention("fp32", 256, 1, 4, long=True, window=True, softcap=False)
    elif name == "verify":
        yield from verification("bf16", 151936, 151936)
    elif name == "verify-all":
        for dtype in ("bf16", "fp32"):
            for vocabulary, drafted in ((151936, 32000), (50257, 50257)):
                for kind, compiled in verification(dtype, vocabulary, drafted):
                    yield f"{kind} {dtype} {vocabulary}", compiled
    else:
        raise ValueError(f"{name}: no such kernels")


if __name__ == "__main__":
    sys.stdout.write(json.dumps({name: report(compiled) for name, compiled in kernels(sys.argv[1])}))
