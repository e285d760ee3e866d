"""Writes the programs of the documents as modules, a page each, so that ``make check`` checks their types.

A page's blocks follow one another, as a reader runs them: a later one may use what an earlier one made.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

__all__ = ["write"]


def write(root: Path, folder: Path) -> None:
    """Write the Python blocks of the pages under ``root`` into ``folder``, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page in [*root.glob("*.md"), *root.glob("docs/**/*.md")]:
        if found := re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            (folder / f"{page.stem}.py").write_text("\n\n".join(found), encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).resolve().parent.parent, Path(sys.argv[1]))
