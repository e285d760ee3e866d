"""Writes the reference of the public Python interface, made of its docstrings, into a folder of HTML pages.

``make docs`` runs it. A page has the names of a module's ``__all__`` and nothing else; whatever pdoc warns of ends it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import pdoc.doc
import pdoc.render
import torch

__all__ = ["MODULES", "write"]

# What programs import, in the order in which a reader meets it.
MODULES = (
    "trimtab.decode",
    "trimtab.decode.extending",
    "trimtab.decode.request.as_json",
    "trimtab.server",
    "trimtab.server.client",
    "trimtab.kernels.dispatch",
    "trimtab.kernels.types",
    "trimtab.kernels.results",
)


def write(folder: Path) -> None:
    """Write a page for each of ``MODULES``, an index and what the search reads.

    Raises:
        UserWarning: pdoc can't resolve a name or an annotation.
    """
    pdoc.render.configure(docformat="google", show_source=False, footer_text="trimtab")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Before Python 3.12 a TypedDict doesn't say which class a key is from; its page has the keys all the same.
        warnings.filterwarnings("ignore", r"Cannot determine where \S+Options\.\w+ is taken from")
        modules = {name: _module(name) for name in MODULES}
        pages = {name.replace(".", "/") + ".html": pdoc.render.html_module(m, modules) for name, m in modules.items()}
        pages["index.html"] = pdoc.render.html_index(modules)
        pages["search.js"] = pdoc.render.search_index(modules)
    for name, text in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _module(name: str) -> pdoc.doc.Module:
    """A module with all its names loaded, which those of the packages are at their first use only."""
    module = importlib.import_module(name)
    for public in module.__all__:
        found: Any = getattr(module, public)
        if hasattr(found, "_fields"):  # the constructor of a NamedTuple is in no module that its types are looked up in
            found.__new__.__annotations__ = get_type_hints(found, localns={"torch": torch})
    return pdoc.doc.Module(module)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
