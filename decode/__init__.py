"""trimtab's decoding library: requests, answers and errors, and the engine that turns one into the other.

Importing it loads neither torch nor transformers: ``Engine`` is imported at its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "trimtab.decode":  # `import decode` from the repository root would make a second copy of every class
    raise ImportError(f"this package is imported as 'trimtab.decode', not as {__name__!r}")

from trimtab.decode import errors, types
from trimtab.decode.errors import *  # noqa: F403
from trimtab.decode.types import *  # noqa: F403

if TYPE_CHECKING:
    from trimtab.decode.engine.engine import Engine

__all__ = ["Engine"]
__all__ += errors.__all__
__all__ += types.__all__

_LAZY = {"Engine": "trimtab.decode.engine.engine"}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
