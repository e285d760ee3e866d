"""Packages that only a part of trimtab needs, and that are installed with an extra."""

from __future__ import annotations

from importlib.util import find_spec

from trimtab.decode.errors import MissingExtra

__all__ = ["require"]


# Modules that the extras of setup.py bring, where a part can do nothing without them.
_MODULES = {
    "server": ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "google.protobuf", "google.rpc"),
    "models": ("gguf", "accelerate"),
}


def require(extra: str) -> None:
    """Refuse to go on without the modules of an extra; none is imported here, but for packages around it.

    Raises:
        MissingExtra: one is not there; says what to install.
    """
    for module in _MODULES[extra]:
        try:
            found = find_spec(module) is not None
        except ImportError:  # not even the package around it
            found = False
        if not found:
            raise MissingExtra(extra, module)
