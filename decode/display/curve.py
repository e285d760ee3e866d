"""The branching factor along an answer: a line in SVG that fills its place, with labels that keep their size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from math import ceil, exp, isfinite, log

__all__ = ["curve"]

_LEAST = 2  # tokens of which a curve can be drawn
# Of the drawing where styles are stripped.
_PLAIN = 'width="100%" height="88" fill="none" stroke="currentColor" fill-opacity=".2"'
_HEIGHT = 100  # of the drawing in its own units, which are stretched to the page


def curve(
    entropies: Sequence[float | None],
    classes: Sequence[str] = (),
    trigger: float | None = None,
    base: Sequence[float | None] = (),
) -> str:
    """exp(entropy) by token, on a logarithmic scale; empty where too few tokens have one.

    Args:
        entropies: of each token, in nats.
        classes: of each token that of its author, which tints its place; "" leaves it plain.
        trigger: entropy, in nats, above which another model writes; a dashed line, where it is on the scale.
        base: what the base read at these places, in nats; dots.
    """
    known, read = _known(entropies), _known(base)
    if len(known) < _LEAST:
        return ""
    decades = max(1, ceil(max(entropy for _, entropy in known + read) / log(10)))

    def y(entropy: float) -> float:
        return _HEIGHT * (1 - entropy / (decades * log(10)))

    def level(entropy: float, kind: str) -> str:
        return f'<line class="{kind}" x1="0" x2="{len(entropies)}" y1="{y(entropy):.1f}" y2="{y(entropy):.1f}"/>'

    points = " ".join(f"{i + 0.5},{y(entropy):.1f}" for i, entropy in known)
    lines = [level(d * log(10), "grid") for d in range(decades + 1)]
    labels = [f'<span style="top:{y(d * log(10)):.1f}%">{_short(10**d)}</span>' for d in range(decades + 1)]
    caption = "Branching factor exp(entropy), by token"
    if read:
        dots = "".join(f"M{i + 0.5},{y(entropy):.1f}h0" for i, entropy in read)
        lines.append(f'<path class="base" vector-effect="non-scaling-stroke" d="{dots}"/>')
        caption += "; dots: what the base read"
    if trigger is not None:
        seen = trigger <= decades * log(10)
        lines += [level(trigger, "trigger")] if seen else []
        caption += f"; {'dashed: the trigger' if seen else 'the trigger is higher'}, {exp(min(trigger, 700.0)):.3g}"
    mean = exp(min(sum(entropy for _, entropy in known) / len(known), 700.0))
    said = f"{caption}. {len(entropies)} tokens; that of the mean entropy is {mean:.2f}"
    return (
        f'<figure class="curve"><div class="plot" role="img" aria-label="{escape(said)}">{"".join(labels)}'
        f'<svg viewBox="0 0 {len(entropies)} {_HEIGHT}" preserveAspectRatio="none" aria-hidden="true" {_PLAIN}>'
        f'{"".join(_bands(classes))}{"".join(lines)}<polyline vector-effect="non-scaling-stroke" points="{points}"/>'
        f"</svg></div><figcaption>{caption}</figcaption></figure>\n"
    )


def _known(entropies: Sequence[float | None]) -> list[tuple[int, float]]:
    return [(i, entropy) for i, entropy in enumerate(entropies) if entropy is not None and isfinite(entropy)]


def _short(power: int) -> str:
    """A power of ten in at most four characters, up to billions."""
    for size, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if power >= size:
            return f"{power // size}{name}"
    return str(power)


def _bands(classes: Sequence[str]) -> Iterator[str]:
    """A tint behind each run of tokens of one author."""
    start = 0
    for cls, run in groupby(classes):
        count = len(list(run))
        if cls:
            place = f'x="{start}" width="{count}" height="{_HEIGHT}"'
            yield f'<rect class="{cls}" {place} fill="currentColor" stroke="none"/>'
        start += count
