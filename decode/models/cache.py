"""A cache of model folders: an entry is there whole and verified, or it is not there.

``home()/models/NAME`` is one entry: the model's files and ``manifest.json``, which lists them with sizes and sha256.
An entry is made in a temporary folder beside it and renamed into place, under a lock that the operating system drops
if the process dies; so a killed process leaves at most a temporary folder, which the next maker sweeps away, and two
processes that want the same entry make it once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from trimtab.decode.errors import ModelCacheError

__all__ = ["FORMAT", "MANIFEST", "ModelCache", "home"]

FORMAT = 2  # of an entry; a change of the conversion raises it, so that older entries are made anew
MANIFEST = "manifest.json"


def home() -> Path:
    """The folder of all caches: ``$TRIMTAB_CACHE``, else ``trimtab`` in the user's cache folder."""
    if chosen := os.environ.get("TRIMTAB_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG rules say that a relative path there is to be ignored.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "trimtab"


class ModelCache:
    """Model folders by name, each made from a source of known checksum.

    Args:
        folder: where the entries are; ``home()/models`` by default. It is created when the first entry is made.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = home() / "models" if folder is None else folder

    def entry(self, name: str) -> Path:
        """The folder of an entry, whether or not it is there."""
        return self.folder / name

    def fault(self, name: str, source: str, *, full: bool = False) -> str | None:
        """Why an entry cannot be used, or None if it can.

        Args:
            name: the entry.
            source: sha256 of what the entry is made from.
            full: read every byte and compare checksums; else only the manifest and the sizes are looked at.
        """
        entry = self.entry(name)
        if not entry.is_dir():
            return "it is not there"
        try:
            manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
            made_as, made_from = manifest["format"], manifest["source"]
            files = {str(path): (int(f["size"]), str(f["sha256"])) for path, f in manifest["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
        if made_as != FORMAT:
            return f"it has format {made_as}, this version makes format {FORMAT}"
        if made_from != source:
            return "it was made from another source"
        if not files:
            return f"{MANIFEST} lists no files"
        for path, (size, sha256) in sorted(files.items()):
            try:
                found = (entry / path).stat().st_size
                if found != size:
                    return f"{path} has {found} bytes, not {size}"
                if full and _sha256(entry / path) != sha256:
                    return f"{path} has another sha256 than when it was made"
            except OSError as error:
                return f"{path} cannot be read ({error.strerror})"
        return None

    def make(
        self,
        name: str,
        source: str,
        build: Callable[[Path], None],
        *,
        full: bool = False,
        waiting: Callable[[], None] = lambda: None,
    ) -> Path:
        """Makes an entry unless it is there and sound, and returns its folder.

        Args:
            name: the entry.
            source: sha256 of what the entry is made from.
            build: fills the empty folder it is given. The parent of that folder is its scratch space.
            full: judge an entry that is there by its checksums (see :meth:`fault`).
            waiting: called once if another process is making this entry.

        Raises:
            ModelCacheError: if the cache cannot be written, by ``build`` either. What else ``build`` raises passes
                through, and the cache is as it was.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / f".{name}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
            try:
                return self._make_alone(name, source, build, full)
            finally:
                lock.release()
        except OSError as error:
            raise ModelCacheError(
                f"the model cache {str(self.folder)!r} cannot be written ({error}); "
                "free some space, or set TRIMTAB_CACHE to another folder"
            ) from error

    def _make_alone(self, name: str, source: str, build: Callable[[Path], None], full: bool) -> Path:
        """Does the work of :meth:`make`, with the lock held."""
        for stale in self.folder.glob(f".{name}~*.tmp"):  # left by a process that was killed
            shutil.rmtree(stale, ignore_errors=True)
        entry = self.entry(name)
        if self.fault(name, source, full=full) is None:
            return entry
        work = Path(tempfile.mkdtemp(prefix=f".{name}~", suffix=".tmp", dir=self.folder))
        try:
            new = work / "entry"
            new.mkdir()
            build(new)
            _write_manifest(new, source)
            if entry.exists():
                entry.rename(work / "damaged")
            new.rename(entry)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return entry


def _write_manifest(folder: Path, source: str) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
        _sync(path)
    manifest = {"format": FORMAT, "source": source, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Puts a file on the disk, so that after a power cut the name never stands for missing bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
