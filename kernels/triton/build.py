"""Compiling the kernels for a GPU that need not be there: what continuous integration checks.

Only in a process without TRITON_INTERPRET: Triton decides at import whether functions are compiled or interpreted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trimtab.kernels.triton.draw import CAPACITY, gather, race, settle
from trimtab.kernels.triton.launch import block_of, warps_of, write
from trimtab.kernels.triton.scan import scan, scan_deferred

__all__ = ["Built", "Variant", "build", "sass", "variants"]

_POINTERS = {
    "ints": "*i64",
    "given": "*i64",
    "ids": "*i32",
    "listed_ids": "*i32",
    "counts": "*i32",
    "flags": "*u8",
    "decided": "*u8",
}
_NUMBERS = {"NT": "i32", "R": "i32"}


class Variant(NamedTuple):
    """One specialisation of a kernel.

    Attributes:
        constants: of the launch.
        dtype: Triton's name of the type of the logits.
        aligned: whether row strides are multiples of 16 elements.
        warps: None takes those of ``launch``.
    """

    kernel: Any
    constants: dict[str, Any]
    dtype: str = "bf16"
    aligned: bool = True
    warps: int | None = None


class Built(NamedTuple):
    """Machine code and what the compiler says of it."""

    code: Any
    spills: int
    registers: int


def variants(vocabulary: int, models: int, dtype: str = "bf16") -> Iterator[tuple[str, Variant]]:
    """The kernels as ``launch`` starts them."""
    block = block_of(vocabulary)
    tiles = -(-vocabulary // block)
    bare = {"M": models, "VOCABULARY": vocabulary, "BLOCK": block}
    shape = {**bare, "EDITABLE": True}
    plain = {**bare, "EDITABLE": False}
    steps = triton.next_power_of_2(tiles)
    mixture = models > 1
    aligned = vocabulary % 16 == 0
    yield "scan", Variant(scan, {**plain, "SPAN": 1, "DRAWN": mixture, "TOP": False}, dtype, aligned)
    yield "scan_drawn", Variant(scan, {**shape, "SPAN": 2, "DRAWN": True, "TOP": True}, dtype, aligned)
    yield "scan_deferred", Variant(scan_deferred, {**shape, "TILES": steps, "TOP": True}, dtype, aligned)
    stage = {**shape, "TILES": steps, "MIXTURE": mixture, "TOP": True, "DRAWN": True, "GIVEN": False}
    yield "settle", Variant(settle, stage, dtype, aligned)
    if not mixture:
        stage = {**plain, "TILES": steps, "MIXTURE": False, "TOP": False, "DRAWN": False, "GIVEN": True}
        yield "settle_stats", Variant(settle, stage, dtype, aligned)
        yield "race_nucleus", Variant(race, {**plain, "LIMIT": CAPACITY, "NUCLEUS": True}, dtype, aligned, 8)
    yield "gather", Variant(gather, {**shape, "MIXTURE": mixture, "LIMIT": CAPACITY}, dtype, aligned)
    yield "race", Variant(race, {**shape, "LIMIT": CAPACITY, "NUCLEUS": False}, dtype, aligned, 8)
    if mixture:
        yield "write", Variant(write, {**bare, "TILES": steps}, dtype, aligned)


def build(variant: Variant, capability: int = 90) -> Built:
    """Compile one variant."""
    models = variant.constants["M"]
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    divisible = [["tt.divisibility", 16]]
    for i, name in enumerate(variant.kernel.arg_names):
        if name in variant.constants:
            signature[name] = "constexpr"
        elif name == "xs":
            signature[name] = tuple([f"*{variant.dtype}"] * models)
            attributes |= {(i, j): divisible for j in range(models)}
        elif name == "strides":
            signature[name] = tuple(["i32"] * models)
            attributes |= {(i, j): divisible for j in range(models) if variant.aligned}
        elif name in _NUMBERS:
            signature[name] = _NUMBERS[name]
        else:
            signature[name] = _POINTERS.get(name, "*fp32")
            if variant.kernel in (settle, race) and name == "ids":
                signature[name] = "*i64"
            attributes[(i,)] = divisible
    source = ASTSource(variant.kernel, signature, constexprs=variant.constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    warps = variant.warps or warps_of(variant.constants["VOCABULARY"], models)
    code = triton.compile(source, target=target, options={"num_warps": warps, "enable_fp_fusion": True})
    text = sass(code.asm["cubin"], "--dump-resource-usage")
    registers = int(re.search(r"REG:(\d+)", text)[1])  # type: ignore[index]
    local = sum(int(found) for found in re.findall(r"LOCAL:(\d+)|STACK:(\d+)", text) for found in found if found)
    return Built(code, local, registers)


def sass(cubin: bytes, *options: str) -> str:
    """What cuobjdump says of a cubin: with no options, its instructions."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), *(options or ("--dump-sass",)), file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
