"""Reads machine code as cuobjdump prints it: which instructions a thread meets on its way through a kernel."""

from __future__ import annotations

import heapq
import re
import sys
from collections.abc import Iterator
from typing import NamedTuple

VECTOR = "LDG.E.128"
_LINE = re.compile(
    r"^\s*/\*(?P<at>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<op>[A-Z][\w.]*)\s*(?P<rest>[^;]*);", re.M
)
# Jumps to a place that the line does not say; no way through one is counted.
_ELSEWHERE = ("BRX", "BRXU", "CALL", "JMP", "JMX", "KILL", "RET")


class Instruction(NamedTuple):
    """One line: address, whether a predicate guards it, name with modifiers, operands."""

    at: int
    guarded: bool
    op: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    """The instructions of the one kernel of ``text``, in order of their addresses, without padding."""
    found = [Instruction(int(m["at"], 16), bool(m["guard"]), m["op"], m["rest"]) for m in _LINE.finditer(text)]
    return [line for line in found if line.op != "NOP"]


def shortest(text: str, loads: int) -> int | None:
    """Instructions on the shortest way from the start to an end that passes ``loads`` 16-byte loads of memory.

    With the loads of all logits of a tile that is the way of a clean tile: what a special value, an edit or a filter
    needs more is behind branches. Loops count once for each round. None: no way has so many loads, or only one through
    a call.
    """
    lines = instructions(text)
    place = {line.at: i for i, line in enumerate(lines)}

    def following(i: int) -> Iterator[int | None]:
        line = lines[i]
        base = line.op.split(".")[0]
        if base in _ELSEWHERE:
            return
        if base == "BRA":
            yield place[int(re.findall(r"0x[0-9a-f]+", line.rest)[-1], 16)]
        if base == "EXIT":
            yield None
        # The guard of a branch may also be its first operand: BRA P1, 0x40.
        conditional = line.guarded or line.rest.split(",")[0].strip().lstrip("!").startswith(("P", "UP"))
        if base not in ("BRA", "EXIT") or conditional:
            yield i + 1

    best = {(0, 0): 0}
    queue = [(0, 0, 0)]
    while queue:
        count, i, passed = heapq.heappop(queue)
        if count > best[i, passed]:
            continue
        now = min(loads, passed + (lines[i].op.startswith(VECTOR)))
        for j in following(i):
            if j is None:
                if now == loads:
                    return count + 1
            elif j < len(lines) and count + 1 < best.get((j, now), sys.maxsize):
                best[j, now] = count + 1
                heapq.heappush(queue, (count + 1, j, now))
    return None
