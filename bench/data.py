"""Rows of JSON, one a line: data sets, responses and results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.decode.errors import InvalidRequest

__all__ = ["append_rows", "going_on", "prompt_of", "read_rows", "select"]

_PROMPT_FIELDS = ("prompt", "instruction", "question")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; empty lines are skipped.

    Raises:
        InvalidRequest: the file can't be read, or a line is not a JSON object; names the line.
    """
    try:
        # Not splitlines(), which also splits at U+2028 and its like, and JSON strings may hold those.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest.of("path", path.name, f"a readable JSONL file ({error})") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidRequest.of(f"{path.name}:{number}", line, f"a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise InvalidRequest.of(f"{path.name}:{number}", line, "a JSON object")
        rows.append(row)
    return rows


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows, each in one write, so that a killed process loses at most the row it was writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            stream.flush()


def going_on(path: Path, made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a work file that a run appends to, and goes on with. A last line that was cut short is removed.

    Args:
        path: of the file; there may be none yet.
        made: what every row must say of how it was made.

    Raises:
        InvalidRequest: a row was made otherwise.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    rows = read_rows(path)
    wanted = json.loads(json.dumps(dict(made)))
    for row in rows:
        found = {key: row.get(key) for key in wanted}
        if found != wanted:
            accepted = f"rows made with {json.dumps(wanted)}, or another place for the new ones"
            raise InvalidRequest.of(path.name, json.dumps(found), accepted)
    return rows


def prompt_of(row: Mapping[str, Any]) -> str:
    """The text to answer: the field ``prompt``, ``instruction`` or ``question``, or the first of ``turns``.

    Raises:
        InvalidRequest: the row has none of them.
    """
    for name in _PROMPT_FIELDS:
        if isinstance(row.get(name), str):
            return str(row[name])
    turns = row.get("turns")
    if isinstance(turns, Sequence) and turns and isinstance(turns[0], str):
        return turns[0]
    raise InvalidRequest.of("data", sorted(row), f"rows with one of the fields {', '.join(_PROMPT_FIELDS)}, turns")


def select(rows: Sequence[dict[str, Any]], split: str | None, limit: int | None) -> list[dict[str, Any]]:
    """Rows of one ``split`` (all if None), the first ``limit`` of them.

    Raises:
        InvalidRequest: no row has that split, or the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise InvalidRequest.of("limit", limit, "1 or more")
    chosen = [row for row in rows if split is None or row.get("split") == split]
    if not chosen:
        known = sorted({str(row["split"]) for row in rows if "split" in row})
        raise InvalidRequest.of("split", split, f"one of {', '.join(known) or '(the file has no splits)'}")
    return chosen[:limit]
