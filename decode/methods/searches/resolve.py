"""A search with every value known, or refused because it would do one thing several times."""

from __future__ import annotations

from dataclasses import replace

from trimtab.decode.errors import InvalidRequest
from trimtab.decode.request.info import Limits
from trimtab.decode.request.methods import (
    BestOfN,
    RejectSegments,
    Search,
    Segments,
)

__all__ = ["resolve_search"]

_SAMPLED = "or sampling.temperature > 0: at 0, {} are all the same"


def resolve_search(search: Search, limits: Limits, greedy: bool) -> Search:
    """The search as it will run.

    Args:
        search: checked by ``validate``.
        limits: bounds on one request.
        greedy: whether every token is the most likely one, by the request or by the model's own default.

    Raises:
        InvalidRequest: a greedy search would write the same text again and again.
    """
    if isinstance(search, BestOfN) and search.n is None:
        search = replace(search, n=min(limits.max_n, search.candidates))
    if greedy:
        _refuse_equals(search)
    return search


def _refuse_equals(search: Search) -> None:
    """``Evolution`` and ``Refine`` vary the prompt instead, and leave out what they have done already."""
    match search:
        case BestOfN() if search.candidates > 1:
            path, value, what = "best_of_n.n", search.candidates, "candidates"
        case Segments() if search.beams * search.samples_per_beam > 1:
            path, value, what = "segments.samples_per_beam", search.samples_per_beam, "continuations"
            if search.samples_per_beam == 1:
                path, value = "segments.beams", search.beams
        case RejectSegments() if search.max_tries > 1:
            path, value, what = "reject_segments.max_tries", search.max_tries, "draws of a segment"
        case _:
            return
    raise InvalidRequest.of(f"search.{path}", value, f"1, {_SAMPLED.format(what)}")
