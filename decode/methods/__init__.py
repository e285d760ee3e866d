"""The decoding methods: policies, draws and searches, and what all of them write with.

Methods are coroutines that await the ops of ``trimtab.decode.ops``; they import neither torch nor the engine. A file
among the policies, draws or searches is all that a new one needs: importing this package imports them all.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

for _folder in ("policies", "draws", "searches"):
    _package = import_module(f"{__name__}.{_folder}")
    for _module in iter_modules(_package.__path__):
        import_module(f"{_package.__name__}.{_module.name}")
