"""trimtab's decoding library: requests, answers and errors, and the engine that turns one into the other.

Importing it loads nothing else, so that commands start at once. At the first use of a name all that is plain data of
requests and answers is imported (``trimtab.decode.names``); ``Engine``, the configurations and the classes to make
rewards of each at their own first use. What is heavy, torch and transformers, comes with ``Engine``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "trimtab.decode":  # `import decode` from the repository root would make a second copy of every class
    raise ImportError(f"this package is imported as 'trimtab.decode', not as {__name__!r}")

_MODULES = {
    "config": ("ConfigError", "EngineConfig", "EngineOptions", "ModelConfig"),
    "engine.engine": ("Engine", "EngineStats"),
    "rewards.base": ("EngineReward", "LocalReward", "PairwiseReward", "Reward", "Sample"),
    "version": ("__version__",),
}
_LAZY = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

if TYPE_CHECKING:
    from trimtab.decode.names import *  # noqa: F403
    from trimtab.decode.names import __all__ as __all__
    from trimtab.decode.version import __version__ as __version__
else:  # hidden from type checkers, to which every name would be there

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _LAZY and name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(_LAZY.get(name, f"{__name__}.names"))
        if not hasattr(module, name):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(module, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__"), "__version__"})
