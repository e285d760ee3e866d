"""The branching factor along an answer, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, log

__all__ = ["curve"]

_WIDTH, _HEIGHT, _LEFT = 640, 92, 44
_LEAST = 2  # tokens of which a curve can be drawn


def curve(entropies: Sequence[float | None]) -> str:
    """exp(entropy) by token, on a logarithmic scale; empty where too few tokens have one.

    Args:
        entropies: of each token, in nats.
    """
    known = [(i, entropy) for i, entropy in enumerate(entropies) if entropy is not None]
    if len(known) < _LEAST:
        return ""
    top = max(1, ceil(max(entropy for _, entropy in known) / log(10)))  # decades

    def x(i: int) -> float:
        return _LEFT + (_WIDTH - _LEFT) * i / max(1, len(entropies) - 1)

    def y(entropy: float) -> float:
        return 6 + (_HEIGHT - 24) * (1 - entropy / (top * log(10)))

    points = " ".join(f"{x(i):.1f},{y(entropy):.1f}" for i, entropy in known)
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y(d * log(10)):.1f}" y2="{y(d * log(10)):.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y(d * log(10)) + 4:.1f}">{10**d:,}</text>'
        for d in range(top + 1)
    )
    mean = exp(min(sum(entropy for _, entropy in known) / len(known), 700.0))
    said = f"Branching factor, exp(entropy), of {len(entropies)} tokens; that of the mean entropy is {mean:.2f}"
    return (
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">{grid}'
        f'<polyline points="{points}"/><text class="axis" x="{_LEFT}" y="{_HEIGHT - 4}">'
        "branching factor exp(entropy), by token</text></svg>\n"
    )
