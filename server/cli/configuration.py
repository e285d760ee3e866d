"""``trimtab config``: what a ``trimtab.toml`` may say, from what the readers of its tables say of themselves."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from trimtab.decode.config import ConfigError, EngineConfig, EngineOptions, ModelConfig
from trimtab.decode.options import once
from trimtab.decode.request.info import Limits
from trimtab.server.config import ServerConfig

__all__ = ["as_markdown", "as_text", "register"]

_ABOUT = """\
# Configuration

<!-- written by: trimtab config --markdown > docs/configuration.md -->

A `trimtab.toml` says which models an engine serves, with which rewards and within which limits. `trimtab serve --config
FILE` and `trimtab generate --config FILE` read it, and so does `EngineConfig.load`, whose result a program gives to
`Engine.from_config`. At least one model is needed; every other table and key may be left out, and its default holds.
Keys and values that are not accepted end the start with an error that names all of them.

```toml
[models.base]
source = "gemma-3-270m"

[models.chat]
source = "smollm2-135m-instruct"
role = "aligned"

[models.draft]
source = "smollm2-135m-draft"     # for chat: draw = speculative:draft
role = "draft"

[rewards.brief]
type = "length"
at_most = 60

[limits]
max_new_tokens = 1024

[engine]
threads = 2

[server]
port = 50051
```

The name of a model or reward has 1 to 64 letters, digits, `.`, `_` and `-`, the first a letter or a digit; requests ask
for it by that name. A default of `none` is a key that is left out. Times are in seconds. `--host` and `--port` of
`trimtab serve` take the place of the file's.
"""
_REWARDS = """\
## `[rewards.NAME]`

A reward by its `type`; the other keys are the type's own ([rewards](rewards.md#types)), but for `description`,
`timeout` and `reference`, which all types have. A `source` or `path` that begins with `./` or `../` is relative to the
file, and a `function`'s module may lie beside it.
"""
_ENVIRONMENT = """\
## Environment

| variable | meaning |
| --- | --- |
| `TRIMTAB_CACHE` | the folder that keeps bundled models; else `trimtab` in `XDG_CACHE_HOME` or `~/.cache`. |
| `TRITON_INTERPRET` | `1` runs the Triton kernels through their interpreter, which is for tests. |
| `NO_COLOR` | set to anything: the command line prints no colours. |
"""


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the file: its name, what it is for, and the dataclass that it becomes."""

    name: str
    about: str
    cls: type

    @property
    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Key, what is accepted, default and meaning, in the order of the dataclass."""
        from trimtab.decode.methods.table import attributes

        accepted, meanings = _accepted(), attributes(self.cls)
        for field in fields(self.cls):
            yield field.name, accepted[self.name, field.name], _default(field), meanings[field.name]


_TABLES = (
    _Table("models.NAME", "A model to serve; in a program, the first one is the default.", ModelConfig),
    _Table("limits", "Bounds on one request and on the queue.", Limits),
    _Table("engine", "How the engine computes.", EngineOptions),
    _Table("server", "How `trimtab serve` listens and what it bounds.", ServerConfig),
)


def register(subparsers: Any) -> None:
    """Add ``config`` to the ``subparsers`` of ``trimtab``."""
    parser = subparsers.add_parser(
        "config",
        help="list what a trimtab.toml may say",
        description="List the tables and keys of a trimtab.toml: what each accepts, and its default.",
    )
    once(parser)
    parser.add_argument("--markdown", action="store_true", help="as the documentation has it")
    parser.set_defaults(run=_config)


def _config(args: argparse.Namespace) -> int:
    sys.stdout.write(as_markdown() if args.markdown else as_text())
    return 0


def as_text() -> str:
    """For a terminal."""
    lines: list[str] = []
    for table in _TABLES:
        lines.append(f"[{table.name}]")
        lines += [f"  {key:<22}{accepted:<52}  {default}" for key, accepted, default, _ in table.rows]
        lines.append("")
    return "\n".join(lines)


def as_markdown() -> str:
    """For the documentation."""
    from trimtab.decode.methods.table import line

    parts = [_ABOUT]
    for table in _TABLES:
        rows = [(f"`{key}`", accepted, f"`{default}`", meaning) for key, accepted, default, meaning in table.rows]
        lines = [line(row) for row in (("key", "accepts", "default", "meaning"), ("---",) * 4, *rows)]
        parts.append("\n".join([f"## `[{table.name}]`", "", table.about, "", *lines, ""]))
        if table.cls is ModelConfig:
            parts.append(_REWARDS)
    return "\n".join([*parts, _ENVIRONMENT])


def _accepted() -> Mapping[tuple[str, str], str]:
    """What each key accepts, in the words of the error that refuses something else."""
    wrong = {table.name: {field.name: object() for field in fields(table.cls)} for table in _TABLES}
    found: dict[tuple[str, str], str] = {}
    for read in (
        lambda: EngineConfig.from_dict(
            {"models": {"NAME": wrong["models.NAME"]}, "limits": wrong["limits"], "engine": wrong["engine"]}
        ),
        lambda: ServerConfig.from_table(wrong["server"]),
    ):
        try:
            read()
        except ConfigError as error:
            for violation in error.violations:
                table, _, key = violation.field.rpartition(".")
                found[table, key] = violation.accepted
    return found


def _default(field: Field[Any]) -> str:
    if field.default is MISSING:
        return "required"
    if field.default is None or isinstance(field.default, bool):
        return str(field.default).lower()
    return str(field.default)
