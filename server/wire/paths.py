"""Field paths of a request: as the library names them, and as the proto does.

They differ in little: the proto has everything under ``spec``, and the library's one ``prompt`` is three fields there.
"""

from __future__ import annotations

__all__ = ["library_path", "proto_path"]

_PREFIX = "spec."
_RENAMED = (  # library, proto; longer ones first
    ("prompt.token_ids", "token_ids.ids"),
    ("prompt.messages", "chat.messages"),
    ("top_logprobs", "response.top_logprobs"),
)
_OUTSIDE = frozenset({"mode", "spec"})  # fields of a request message that are not inside its spec


def proto_path(field: str) -> str:
    """Path in ``GenerateRequest`` of a field that the library calls ``field``."""
    if field in _OUTSIDE:
        return field
    for library, proto in _RENAMED:
        if field == library or field.startswith((library + ".", library + "[")):
            return _PREFIX + proto + field[len(library) :]
    return _PREFIX + field


def library_path(path: str) -> str:
    """The inverse of ``proto_path``; a path outside of the spec stays as it is."""
    if not path.startswith(_PREFIX):
        return path
    field = path[len(_PREFIX) :]
    for library, proto in _RENAMED:
        if field == proto or field.startswith((proto + ".", proto + "[")):
            return library + field[len(proto) :]
    return field
