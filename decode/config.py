"""``trimtab.toml``: which models an engine serves and how. Every unknown key is refused, with a suggestion.

The ``[server]`` table belongs to the server layer and is only carried here. Of a table ``[rewards.NAME]`` only its
``type`` and its paths are looked at: the type's own options are checked where rewards are made
(``trimtab.decode.rewards.registry``).
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from trimtab.decode.errors import TrimtabError, Violation
from trimtab.decode.frozen import FrozenDict, freeze_fields
from trimtab.decode.request.info import Limits

if TYPE_CHECKING:
    import os

__all__ = ["ConfigError", "DType", "EngineConfig", "EngineOptions", "ModelConfig", "Role"]

Role = Literal["base", "aligned", "draft", "reward"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_ACCEPTED = "1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit"
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
_MAX_INTEGER = 2**53  # exact in every consumer of the numbers


class ConfigError(TrimtabError, ValueError):
    """The configuration cannot be used as it is; lists all the keys at fault."""

    def __init__(self, violations: Violation | Iterable[Violation], source: str = "configuration") -> None:
        self.violations = (violations,) if isinstance(violations, Violation) else tuple(violations)
        self.source = source
        super().__init__(f"{source}: " + "; ".join(map(str, self.violations)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One table ``[models.NAME]``.

    Attributes:
        source: a bundled model's name, a hub id or a folder. In a file, ``./x``, ``../x`` and ``~/x`` are folders,
            the first two relative to the file.
        role: what the model is for; says nothing about what a request may do with it.
        dtype: of the weights; ``auto`` is the fastest that the device does well.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        memory_share: part of the engine's page memory on its device, in (0, 1]; None shares the rest so that each model
            holds as many tokens.
        context_tokens: cap on the model's own context length.
        template: Jinja template for chat messages in place of the tokenizer's own.
        trust_remote_code: whether code that comes with the model may run.
    """

    source: str
    role: Role = "base"
    dtype: DType = "auto"
    device: str = "auto"
    memory_share: float | None = None
    context_tokens: int | None = None
    template: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """The table ``[engine]``.

    Attributes:
        max_batch_rows: sequences in one forward pass.
        token_budget: tokens read in one tick of the scheduler, prompts and answers together.
        page_tokens: tokens on one page of the cache; None takes the storage's own.
        memory_bytes: memory for all pages together; None measures what is free.
        threads: of torch's CPU kernels; None leaves torch's setting alone.
    """

    max_batch_rows: int = 64
    token_budget: int = 512
    page_tokens: int | None = None
    memory_bytes: int | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """A whole ``trimtab.toml``. The mappings are read-only and keep the order of the file."""

    models: Mapping[str, ModelConfig]
    rewards: Mapping[str, Mapping[str, object]] = field(default_factory=FrozenDict)
    limits: Limits = field(default_factory=Limits)
    engine: EngineOptions = EngineOptions()
    server: Mapping[str, object] = field(default_factory=FrozenDict)

    def __post_init__(self) -> None:
        freeze_fields(self, "models", "rewards", "server")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> EngineConfig:
        """Read a file.

        Raises:
            ConfigError: the file cannot be read, is not TOML, or has a key or value that is not accepted.
        """
        file = Path(path)
        try:
            with file.open("rb") as stream:
                data = tomllib.load(stream)
        except OSError as error:
            violation = Violation.of("path", str(file), f"a readable TOML file ({error.strerror or error})")
            raise ConfigError(violation, str(file)) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(Violation.of("path", str(file), f"valid TOML ({error})"), str(file)) from error
        return cls.from_dict(data, source=str(file), folder=file.parent)

    @classmethod
    def from_dict(
        cls, data: Mapping[str, object], *, source: str = "configuration", folder: Path | None = None
    ) -> EngineConfig:
        """Check the tables of a parsed file; ``folder`` is what relative model folders are relative to.

        Raises:
            ConfigError: naming every key at fault.
        """
        reader = _Reader()
        reader.known("", data, ("models", "rewards", "limits", "engine", "server"))
        models = {
            name: _model(reader, f"models.{name}", table, folder)
            for name, table in reader.named_tables("models", data.get("models", {})).items()
        }
        if not models and not reader.found:
            reader.refuse("models", data.get("models", {}), "at least one table [models.NAME] with a source")
        _check_shares(reader, models)
        rewards = {
            name: _reward(reader, f"rewards.{name}", table, folder)
            for name, table in reader.named_tables("rewards", data.get("rewards", {})).items()
        }
        limits = _integers(reader, "limits", data.get("limits", {}), Limits, minimum=_LIMIT_MINIMUM)
        engine = _integers(reader, "engine", data.get("engine", {}), EngineOptions, minimum={})
        server = reader.table("server", data.get("server", {}))
        if reader.found:
            raise ConfigError(reader.found, source)
        return cls(
            models=FrozenDict(models),
            rewards=FrozenDict(rewards),
            limits=limits,
            engine=engine,
            server=FrozenDict(server),
        )

    @classmethod
    def demo(cls) -> EngineConfig:
        """The bundled pair, the base Gemma 3 270M and the small aligned SmolLM2 135M, and a draft of the latter.

        The two have different vocabularies, the draft has that of its target.
        """
        models = {
            "base": ModelConfig(source="gemma-3-270m", role="base"),
            "chat": ModelConfig(source="smollm2-135m-instruct", role="aligned"),
            "draft": ModelConfig(source="smollm2-135m-draft", role="draft"),
        }
        return cls(models=FrozenDict(models))


_T = TypeVar("_T", Limits, EngineOptions)
_LIMIT_MINIMUM = {"max_top_logprobs": 0, "max_stop": 0}


class _Reader:
    """Collects what is wrong while tables are read, so that one error names everything."""

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def refuse(self, path: str, value: object, accepted: str) -> None:
        self.found.append(Violation.of(path, value, accepted))

    def table(self, path: str, value: object) -> Mapping[str, object]:
        if isinstance(value, Mapping):
            return cast("Mapping[str, object]", value)
        self.refuse(path, value, f"a table [{path}]")
        return {}

    def named_tables(self, path: str, value: object) -> dict[str, Mapping[str, object]]:
        tables: dict[str, Mapping[str, object]] = {}
        for name, inner in self.table(path, value).items():
            if not _NAME.fullmatch(name):
                self.refuse(path, name, f"a name of {_NAME_ACCEPTED}")
            elif not isinstance(inner, Mapping):
                self.refuse(f"{path}.{name}", inner, f"a table [{path}.NAME]")
            else:
                tables[name] = inner
        return tables

    def known(self, path: str, table: Mapping[str, object], names: Iterable[str]) -> None:
        """Refuse keys that are not in ``names``."""
        accepted = tuple(names)
        for key in table:
            if key in accepted:
                continue
            close = difflib.get_close_matches(str(key), accepted, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            self.refuse(f"{path}.{key}" if path else key, table[key], f"one of {', '.join(accepted)}{hint}")

    def choice(self, path: str, table: Mapping[str, object], key: str, choices: tuple[str, ...]) -> str | None:
        value = table.get(key)
        if value is None or (isinstance(value, str) and value in choices):
            return value
        self.refuse(f"{path}.{key}", value, f"one of {', '.join(choices)}")
        return None

    def integer(self, path: str, value: object, minimum: int = 1) -> int | None:
        if isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= _MAX_INTEGER:
            return value
        self.refuse(path, value, f"a whole number >= {minimum}")
        return None


def _model(reader: _Reader, path: str, table: Mapping[str, object], folder: Path | None) -> ModelConfig:
    reader.known(path, table, (f.name for f in fields(ModelConfig)))
    values: dict[str, Any] = {}
    source = table.get("source")
    if isinstance(source, str) and source.strip():
        values["source"] = _located(source, folder)
    else:
        reader.refuse(f"{path}.source", source, "a bundled model's name, a hub id or a folder")
        values["source"] = ""
    values["role"] = reader.choice(path, table, "role", get_args(Role))
    values["dtype"] = reader.choice(path, table, "dtype", get_args(DType))
    for key in table.keys() & {"device", "memory_share", "context_tokens", "template", "trust_remote_code"}:
        value, where = table[key], f"{path}.{key}"
        match key:
            case "device" if not (isinstance(value, str) and _DEVICE.fullmatch(value)):
                reader.refuse(where, value, "auto, cpu, cuda or cuda:N")
            case "memory_share" if not (_is_number(value) and 0 < cast("float", value) <= 1):
                reader.refuse(where, value, "a number in (0, 1]")
            case "context_tokens":
                values[key] = reader.integer(where, value, minimum=2)
            case "template" if not (isinstance(value, str) and value.strip()):
                reader.refuse(where, value, "a Jinja template over 'messages'")
            case "trust_remote_code" if not isinstance(value, bool):
                reader.refuse(where, value, "true or false")
            case _:
                values[key] = value
    return ModelConfig(**{key: value for key, value in values.items() if value is not None})


def _reward(reader: _Reader, path: str, table: Mapping[str, object], folder: Path | None) -> Mapping[str, object]:
    """A reward's table, with folders and files written as such made absolute, and modules beside the file found."""
    kind = table.get("type")
    if not (isinstance(kind, str) and kind):
        reader.refuse(f"{path}.type", kind, "the name of a type of reward, e.g. length or classifier")
    located = {key: _located(value, folder) for key in ("source", "path") if isinstance(value := table.get(key), str)}
    if folder is not None and isinstance(function := table.get("function"), str):
        package = function.partition(":")[0].partition(".")[0]
        if (folder / f"{package}.py").is_file() or (folder / package / "__init__.py").is_file():
            located["function"] = f"{folder.resolve()}/{function}"
    return FrozenDict({**table, **located})


def _located(source: str, folder: Path | None) -> str:
    """Folders written as such become absolute; a bundled name or a hub id stays as it is."""
    if source.startswith("~"):
        return str(Path(source).expanduser())
    if folder is not None and (source in (".", "..") or source.startswith(("./", "../"))):
        return str((folder / source).resolve())
    return source


def _check_shares(reader: _Reader, models: Mapping[str, ModelConfig]) -> None:
    shares: dict[str, float] = {}
    for model in models.values():
        shares[model.device] = shares.get(model.device, 0.0) + (model.memory_share or 0.0)
    for device, share in shares.items():
        if share > 1 + 1e-9:
            accepted = f"shares that add up to at most 1 among the models on device {device!r}"
            reader.refuse("models.*.memory_share", round(share, 9), accepted)
        elif share > 1 - 1e-9 and any(m.memory_share is None and m.device == device for m in models.values()):
            accepted = f"less than 1 together, as another model on device {device!r} has no share of its own"
            reader.refuse("models.*.memory_share", round(share, 9), accepted)


def _integers(reader: _Reader, path: str, value: object, kind: type[_T], minimum: Mapping[str, int]) -> _T:
    """A table whose values are all positive whole numbers, named by the fields of ``kind``."""
    table = reader.table(path, value)
    names = [f.name for f in fields(kind)]
    reader.known(path, table, names)
    read = {key: reader.integer(f"{path}.{key}", table[key], minimum.get(key, 1)) for key in names if key in table}
    return kind(**{key: number for key, number in read.items() if number is not None})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
