"""Where the source of a model leads: the name of a bundled model or draft, a folder, or a model hub."""

from __future__ import annotations

import difflib
from pathlib import Path

from trimtab.decode.errors import NotFound, UnsupportedModel
from trimtab.decode.models import bundled

__all__ = ["DRAFTS", "bundled_draft", "check_source", "path", "resolve"]

DRAFTS = Path(__file__).parent / "drafts"  # one folder each, see ``models.draft``


def bundled_draft(name: str) -> Path | None:
    """The folder of a draft that comes with this package."""
    folder = DRAFTS / name
    return folder if "/" not in name and (folder / "draft.json").is_file() else None


def path(name: str) -> Path:
    """The folder of a bundled model, which must be in the cache, or of a draft.

    Raises:
        NotFound: there is none of that name.
        ModelCacheError: it is not in the cache, or damaged; says how to get it.
    """
    if folder := bundled_draft(name):
        return folder
    if name not in _names():
        raise NotFound("name", name, _names())
    return bundled.path(name)


def resolve(source: str) -> str:
    """A source as transformers reads it; a bundled model is fetched first if need be.

    Raises:
        ModelCacheError: a bundled model can't be fetched.
    """
    if folder := bundled_draft(source):
        return str(folder)
    if any(source == model.name for model in bundled.bundled()):
        return str(bundled.ensure(source))
    return str(Path(source).expanduser()) if source.startswith("~") else source


def check_source(name: str, source: str) -> None:
    """Refuse a source that can't lead to a model, before a hub is asked for it several times.

    Args:
        name: of the model, for the error.
        source: as it was given.

    Raises:
        UnsupportedModel: it is neither bundled nor a folder nor OWNER/NAME; names the bundled ones that are alike.
    """
    if "/" in source or source in _names() or Path(source).expanduser().exists():
        return
    near = _near(source)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"those are {', '.join(map(repr, _names()))}"
    raise UnsupportedModel(
        name,
        f"no model can be read from {source!r}: there is no such folder and no bundled model of that name ({hint}); "
        "a model of a hub is named OWNER/NAME",
    )


def _names() -> list[str]:
    drafts = sorted(folder.name for folder in DRAFTS.iterdir() if bundled_draft(folder.name)) if DRAFTS.is_dir() else []
    return [*(model.name for model in bundled.bundled()), *drafts]


def _near(source: str) -> list[str]:
    """Bundled names that begin alike, or else are spelled alike."""
    names, given = _names(), source.lower()
    begun = [name for name in names if len(given) >= 3 and (name.startswith(given) or given.startswith(name))]
    return begun or difflib.get_close_matches(given, names, n=2, cutoff=0.5)
