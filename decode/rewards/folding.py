"""Equal samples are rated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.decode.rewards.base import Sample

__all__ = ["fold", "fold_pairs"]


def fold(samples: Sequence[Sample]) -> tuple[list[Sample], list[int]]:
    """The samples that differ, in order, and for each sample which of these it equals.

    Equal samples have one prompt, one text that ends or goes on, one list of references, and the same token ids by the
    same models: then all else that a reward can read of them is the same, up to rounding.
    """
    found: list[Sample] = []
    places: list[int] = []
    alike: dict[tuple[str, bool], list[int]] = {}  # tokens are only looked at where the texts agree
    for sample in samples:
        same = alike.setdefault((sample.text, sample.finished), [])
        place = next((i for i in same if _equal(found[i], sample)), None)
        if place is None:
            place = len(found)
            found.append(sample)
            same.append(place)
        places.append(place)
    return found, places


def fold_pairs(
    pairs: Sequence[tuple[Sample, Sample]],
) -> tuple[list[tuple[Sample, Sample]], list[tuple[int, bool] | None]]:
    """The comparisons that differ, and for each pair which of them it is and whether it is turned; None of equals."""
    samples, places = fold([sample for pair in pairs for sample in pair])
    asked: dict[tuple[int, int], int] = {}
    found: list[tuple[int, bool] | None] = []
    for a, b in zip(places[::2], places[1::2], strict=True):
        if a == b:
            found.append(None)
        elif (b, a) in asked:
            found.append((asked[b, a], True))
        else:
            found.append((asked.setdefault((a, b), len(asked)), False))
    return [(samples[a], samples[b]) for a, b in asked], found


def _equal(one: Sample, other: Sample) -> bool:
    if one is other:
        return True
    return (
        len(one.tokens) == len(other.tokens)
        and all(a.id == b.id and a.author == b.author for a, b in zip(one.tokens, other.tokens, strict=True))
        and tuple(one.references) == tuple(other.references)
        and (one.prompt is other.prompt or one.prompt == other.prompt)
    )
