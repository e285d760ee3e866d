"""Compiling the kernels over logits for a GPU that need not be there: what continuous integration checks.

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

from trimtab.kernels.triton.acceptance import Outcome, Side, Windows, accept, choose, residual
from trimtab.kernels.triton.filters import gather, race
from trimtab.kernels.triton.logits import block_of, warps_of, write
from trimtab.kernels.triton.rows import Lists, Results, Scratch, Source
from trimtab.kernels.triton.scan import scan, scan_base
from trimtab.kernels.triton.settle import CAPACITY, settle

__all__ = ["Built", "Variant", "build", "sass", "variants", "verification"]

_DIVISIBLE = [["tt.divisibility", 16]]


class Variant(NamedTuple):
    """One specialisation of a kernel.

    Attributes:
        constants: of the launch.
        dtype: Triton's name of the type of the logits.
        aligned: whether row strides are multiples of 16 elements.
        warps: None takes those of ``logits``.
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
    """The kernels as ``logits`` starts them."""
    block = block_of(vocabulary)
    tiles = triton.next_power_of_2(-(-vocabulary // block))
    mixture, aligned = models > 1, vocabulary % 16 == 0
    bare = {"M": models, "VOCABULARY": vocabulary, "BLOCK": block}
    plain = {**bare, "TILES": tiles, "EDITABLE": False, "LIMITED": False, "MASKED": False}
    every = {**bare, "TILES": tiles, "EDITABLE": True, "LIMITED": True, "MASKED": mixture, "DRAWN": True}
    listing = {**bare, "EDITABLE": True, "LIMIT": CAPACITY.value}
    found = {
        "scan": Variant(scan, {**plain, "SPAN": 1, "DRAWN": mixture}),
        "scan_drawn": Variant(scan, {**every, "SPAN": 2}),
        "settle": Variant(settle, {**every, "GIVEN": False}),
        "gather": Variant(gather, listing),
        "race": Variant(race, listing, warps=8),
    }
    if mixture:
        found["scan_masked"] = Variant(scan, {**plain, "SPAN": 1, "DRAWN": True, "MASKED": True})
        found["scan_base"] = Variant(scan_base, bare)
        found["write"] = Variant(write, {**bare, "TILES": tiles, "MASKED": True})
    else:
        found["settle_stats"] = Variant(settle, {**plain, "DRAWN": False, "GIVEN": True})
    for name, variant in found.items():
        yield name, variant._replace(dtype=dtype, aligned=aligned)


def verification(vocabulary: int, drafted: int, dtype: str = "bf16") -> Iterator[tuple[str, Variant]]:
    """The kernels of ``acceptance`` after a draft of ``drafted`` tokens of the vocabulary."""
    block = block_of(vocabulary)
    which = {"HAS_DRAFT": True, "HAS_COLUMN": drafted < vocabulary}
    whole = {"V": vocabulary, "VD": drafted, "BLOCK": block, **which}
    slots = triton.next_power_of_2(-(-vocabulary // block))
    aligned = vocabulary % 16 == 0 and drafted % 16 == 0
    yield "accept", Variant(accept, {"LONGEST": 4, **which}, dtype, aligned, 4)
    yield "residual", Variant(residual, whole, dtype, aligned, 8)
    yield "choose", Variant(choose, {"SLOTS": slots, **whole}, dtype, aligned, 4)


def _types(variant: Variant) -> dict[str, Any]:
    """Types of the arguments of all kernels."""
    models, logits = variant.constants.get("M", 1), f"*{variant.dtype}"
    side = Side(logits, "i32", "*i64", "*fp32", "i32", "*fp32", "*i64")
    return {
        "source": Source((logits,) * models, ("i32",) * models),
        "lists": Lists("*i64", "*fp32", "*i32", "*fp32"),
        "scratch": Scratch._make(["*fp32"] * 6 + ["*i32", "*fp32", "*i32"]),
        "results": Results("*fp32", "*i64", "*u8", "*fp32"),
        "given": "*i64",
        "result": "*fp32",
        "target": side,
        "draft": side,
        "windows": Windows("*i64", "*i64", "*i64"),
        "outcome": Outcome._make(["*i64"] * 4 + ["*fp32", "*i32"]),
        **dict.fromkeys(("R", "NT", "VD"), "i32"),
    }


def _divisible(kind: Any, path: tuple[int, ...], aligned: bool, inside: bool = False) -> dict[tuple[int, ...], Any]:
    """Pointers, and strides and widths (the numbers inside tuples), which are multiples of 16."""
    if isinstance(kind, tuple):
        parts = (_divisible(part, (*path, i), aligned, True) for i, part in enumerate(kind))
        return {place: what for part in parts for place, what in part.items()}
    return {path: _DIVISIBLE} if kind[0] == "*" or (inside and aligned) else {}


def build(variant: Variant, capability: int = 90) -> Built:
    """Compile one variant."""
    types = _types(variant)
    names = variant.kernel.arg_names
    signature = {name: "constexpr" if name in variant.constants else types[name] for name in names}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(names):
        if name not in variant.constants:
            attributes |= _divisible(types[name], (i,), variant.aligned)
    source = ASTSource(variant.kernel, signature, constexprs=variant.constants, attrs=attributes)
    target = GPUTarget("cuda", capability, 32)
    warps = variant.warps or warps_of(variant.constants["VOCABULARY"], variant.constants["M"])
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
