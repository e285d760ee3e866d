"""Fetches public data sets, or takes a copy of them, and keeps the rows that benchmarks read in ``build/data``."""

from __future__ import annotations

import gzip
import json
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.bench.data import read_rows
from trimtab.bench.progress import Progress
from trimtab.bench.public.rows import chosen, is_known
from trimtab.bench.public.sets import FOLDER, Hub, PublicSet, Web, find
from trimtab.decode.errors import InvalidRequest, TrimtabError

__all__ = ["DataMissing", "copy_of", "ensure", "published", "read_copy"]

_INSTRUCTIONS = "alpaca_eval"
_TIMEOUT = 60.0  # seconds without an answer
_INSTALL = "pip install 'trimtab[data]'"


class DataMissing(TrimtabError):
    """A public data set can't be fetched."""

    def __init__(self, of: PublicSet, reason: str) -> None:
        reason = " ".join(reason.split())[:300]
        super().__init__(
            f"{of.name} can't be fetched ({reason}); a copy of {of.source.name} is taken with: --data PATH"
        )


def ensure(names: Sequence[str], data: Path | None = None, folder: Path = FOLDER) -> list[Path]:
    """The files of data sets; those that are not there are made.

    Args:
        names: of the data sets.
        data: a copy to make them of, see ``copy_of``; None fetches them. Files that are there are made anew of it.
        folder: of the files.

    Raises:
        InvalidRequest: there is no such data set, the copy can't be read, or rows are missing.
        DataMissing: one can't be fetched; says why, and what else there is.
    """
    paths = []
    for of in map(find, names):
        path = folder / of.file_name
        if data is not None or not path.exists():
            rows = published(of) if data is None else read_copy(copy_of(of, data, alone=len(names) == 1))
            instructions: dict[str, str] = {}
            if of.name == "preferences":
                beside = None if data is None or data.is_file() else data
                (split,) = ensure([_INSTRUCTIONS], beside, folder)
                instructions = {row["instruction"]: row["split"] for row in read_rows(split)}
            kept = chosen(of, rows, instructions)
            if not is_known(of, kept):
                sys.stderr.write(
                    f"trimtab: {of.name}: its rows are not quite those that the documents' figures are of\n"
                )
            _write(path, kept)
        paths.append(path)
    return paths


def published(of: PublicSet) -> list[Mapping[str, Any]]:
    """All rows of a data set as they are published.

    Raises:
        DataMissing: the package that reads them is not installed, or they can't be had.
    """
    return _of_hub(of, of.source) if isinstance(of.source, Hub) else _of_web(of, of.source)


def _of_hub(of: PublicSet, hub: Hub) -> list[Mapping[str, Any]]:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise DataMissing(of, f"datasets is not installed: {_INSTALL}") from error
    try:
        if hub.file:
            found = load_dataset("json", data_files=f"hf://datasets/{hub.path}/{hub.file}", split=hub.split)
        else:
            found = load_dataset(hub.path, hub.config, split=hub.split)
    except Exception as error:  # it raises whatever its many parts raise
        raise DataMissing(of, f"{type(error).__name__}: {error}") from error
    return list(found)


def _of_web(of: PublicSet, web: Web) -> list[Mapping[str, Any]]:
    rows: list[Mapping[str, Any]] = []
    with Progress(of.name, len(web.urls), unit="file") as progress:
        for url in web.urls:
            try:
                with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
                    text = answer.read().decode("utf-8")
            except OSError as error:
                raise DataMissing(of, f"{url}: {error}") from error
            rows += _rows(text, url)
            progress.add()
    return rows


def copy_of(of: PublicSet, data: Path, *, alone: bool) -> Path:
    """The file of a data set's copy: ``data`` itself, or NAME.jsonl, NAME.json, or either with .gz in this folder.

    Args:
        of: the data set.
        data: file or folder.
        alone: whether one set is wanted, which may be given as a file.

    Raises:
        InvalidRequest: there is no such file.
    """
    if data.is_file() and alone:
        return data
    names = [f"{of.name}{ending}" for ending in (".jsonl", ".json", ".jsonl.gz", ".json.gz")]
    for name in names:
        if (data / name).is_file():
            return data / name
    raise InvalidRequest.of("--data", str(data), f"a folder with one of {', '.join(names)}" + " or a file" * alone)


def read_copy(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a file of JSON lines or of one JSON array, perhaps compressed with gzip.

    Raises:
        InvalidRequest: it can't be read; names the line.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidRequest.of("--data", path.name, f"a readable file of JSON ({error})") from error
    return _rows(text, path.name)


def _rows(text: str, where: str) -> list[Mapping[str, Any]]:
    whole = text.lstrip().startswith("[")
    parts = [text] if whole else text.split("\n")
    rows: list[Any] = []
    for number, part in enumerate(parts, start=1):
        if not part.strip():
            continue
        try:
            found = json.loads(part)
        except json.JSONDecodeError as error:
            raise InvalidRequest.of(f"{where}:{number}", part[:80], f"JSON ({error})") from error
        rows += found if whole else [found]
    if not all(isinstance(row, dict) for row in rows):
        raise InvalidRequest.of(where, "a row that is none", "JSON objects")
    return rows


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    work = path.with_name(path.name + ".tmp")
    work.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    work.rename(path)
