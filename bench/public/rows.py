"""Which rows of a public data set are used, in which order, to tune on or to report.

``rows.json`` has, by data set, the ids of its rows and the first letters of their splits, so that everybody measures on
the same ones; and a checksum of what is asked in them, which tells a data set that was changed after it was published.
The rows of ``preferences`` are those of AlpacaEval's instructions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from trimtab.bench.data import prompt_of
from trimtab.bench.public.sets import PublicSet
from trimtab.decode.errors import InvalidRequest

__all__ = ["checksum", "chosen", "is_known", "splits"]

_SPLITS = {"t": "tune", "r": "report"}
_INSTRUCTIONS = "alpaca_eval"  # whose splits the rows of preferences have


def splits(name: str) -> dict[Any, str]:
    """The split of each row that is used, by its id, in the order of the rows; empty where all are used, unsplit."""
    listed = _listed().get(name, {})
    letters = listed.get("splits", "")
    return {key: _SPLITS[letter] for key, letter in zip(listed.get("ids", ()), letters, strict=True)}


def chosen(
    of: PublicSet, published: Iterable[Mapping[str, Any]], instructions: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The rows that benchmarks read, in the order in which they read them.

    Args:
        of: the data set.
        published: its rows, all of them and in the order in which they are published; or rows that were made already.
        instructions: AlpacaEval's by their split, for ``preferences``; read for no other.

    Raises:
        InvalidRequest: a row lacks a field, or a row that is used is not there; names it.
    """
    made = []
    for number, row in enumerate(published):
        try:
            found = of.row(row, number)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidRequest.of(
                f"{of.name}:{number + 1}", sorted(row), f"the fields of {of.source.name} ({error})"
            ) from None
        if found is not None:
            made.append(found)
    if not of.key:
        return made
    if of.name == "preferences":
        return [{**row, "split": instructions[row[of.key]]} for row in made if row[of.key] in instructions]
    by_key = {row[of.key]: row for row in made}
    wanted = splits(of.name)
    missing = [key for key in wanted if key not in by_key]
    if missing:
        there = f"rows with {of.key} {missing[0]!r} and {len(missing) - 1} others that are used"
        raise InvalidRequest.of(of.name, f"{len(made)} rows", f"all rows of {of.source.name}: {there} are missing")
    return [{**by_key[key], "split": split} for key, split in wanted.items()]


def checksum(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of what rows ask, and of answers that are compared."""
    sha256 = hashlib.sha256()
    for row in rows:
        compared = [row.get(name) for name in ("generator", "output", "preference")]
        sha256.update(json.dumps([prompt_of(row), *compared]).encode())
    return sha256.hexdigest()[:16]


def is_known(of: PublicSet, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows ask what the committed figures were measured on."""
    known: str = _listed()[of.name]["checksum"]
    return checksum(rows) == known


def _listed() -> dict[str, dict[str, Any]]:
    listed: dict[str, dict[str, Any]] = json.loads(files(__package__).joinpath("rows.json").read_text(encoding="utf-8"))
    return listed
