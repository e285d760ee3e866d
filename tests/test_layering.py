"""Imports point down: server, bench -> decode -> kernels. Imports inside functions count, and so do dynamic ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What a layer may import besides itself. bench drives the server from outside, so it knows the client and the proto.
MAY_IMPORT = {
    "kernels": set(),
    "decode": {"kernels"},
    "v1": set(),
    "server": {"kernels", "decode", "v1"},
    "bench": {"kernels", "decode", "server", "v1"},
}
FOLDERS = ("kernels", "decode", "server", "bench")
# Plain data and errors, which methods and clients import without an engine.
PLAIN = ("decode/request",)
PLAIN_KERNELS = "trimtab.kernels.types"
# What decoding methods are made of. They run on plain data: see ``decode.ops``.
METHODS = ("ops.py", "methods", "text")
HEAVY = {"torch", "transformers", "tokenizers", "grpc", "trimtab.kernels.dispatch", "trimtab.decode.engine"}


class Import(NamedTuple):
    line: int
    module: str


def imports(source: str, package: str) -> Iterator[Import]:
    """Every module that a file of ``package`` imports, wherever in the file and however it is written.

    ``from a import b`` gives both ``a`` and ``a.b``, which may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            yield Import(node.lineno, module)
            for alias in node.names:
                yield Import(node.lineno, f"{module}.{alias.name}")
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__", "find_spec"} and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield Import(node.lineno, name.value)


def faults(source: str, layer: str, package: str | None = None) -> list[str]:
    """What is wrong with the imports of a file of a layer."""
    found = []
    for line, module in imports(source, package or f"trimtab.{layer}"):
        top, _, rest = module.partition(".")
        if top in FOLDERS:
            found.append(f"line {line}: {module}: that would be a second copy; import trimtab.{module}")
        if top == "trimtab" and rest:
            other = rest.split(".")[0]
            if other != layer and other not in MAY_IMPORT[layer]:
                found.append(f"line {line}: {layer} must not import {module}")
    return found


def files(repository: Path) -> Iterator[tuple[str, str, str, str]]:
    """Path, layer, package and source of every Python file."""
    for layer in FOLDERS:
        for path in sorted((repository / layer).rglob("*.py")):
            relative = path.relative_to(repository)
            if relative.is_relative_to("server/proto/trimtab"):
                yield str(relative), "v1", "trimtab.v1", path.read_text(encoding="utf-8")
            else:
                package = ".".join(("trimtab", *relative.parent.parts))
                yield str(relative), layer, package, path.read_text(encoding="utf-8")


def test_imports_point_down(repository: Path) -> None:
    found = [
        f"{path}: {fault}"
        for path, layer, package, source in files(repository)
        for fault in faults(source, layer, package)
    ]
    assert not found, "\n".join(found)


def test_every_layer_is_looked_at(repository: Path) -> None:
    layers = {layer for _, layer, _, source in files(repository) if source.strip()}
    assert {"kernels", "decode", "server", "v1"} <= layers


def test_plain_data_is_plain(repository: Path) -> None:
    """Importing all that requests consist of, and all errors, loads nothing heavy."""
    plain = [path for name in PLAIN for path in (repository / name).rglob("*.py")]
    assert len(plain) > 10
    modules = [".".join(("trimtab", *path.relative_to(repository).with_suffix("").parts)) for path in plain]
    code = f"import sys, {', '.join(modules)}\nprint(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    )
    assert "trimtab.decode.request.request" in loaded
    assert not {name for name in loaded if any(name == heavy or name.startswith(heavy + ".") for heavy in HEAVY)}


def methods(repository: Path) -> list[Path]:
    """Files of the decoding methods."""
    roots = [repository / "decode" / name for name in METHODS]
    return sorted(file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py")))


def test_methods_import_plain_data_of_the_kernels(repository: Path) -> None:
    for path in methods(repository):
        package = ".".join(("trimtab", *path.relative_to(repository).parent.parts))
        found = {module for _, module in imports(path.read_text(encoding="utf-8"), package)}
        kernels = {m for m in found if m.startswith("trimtab.kernels")}
        assert all(m == PLAIN_KERNELS or m.startswith(PLAIN_KERNELS + ".") for m in kernels), f"{path}: {kernels}"


def test_methods_load_neither_torch_nor_the_engine(repository: Path) -> None:
    names = [path.relative_to(repository).with_suffix("").parts for path in methods(repository)]
    modules = sorted({".".join(("trimtab", *parts)).removesuffix(".__init__") for parts in names})
    assert len(modules) > 20
    code = f"import sys, importlib; [importlib.import_module(name) for name in {modules!r}]; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert PLAIN_KERNELS in loaded
    assert not {"torch", "transformers", "trimtab.decode.engine", "trimtab.decode.models"} & set(loaded)


def test_tests_import_one_copy(repository: Path) -> None:
    for path in sorted((repository / "tests").glob("*.py")):
        tops = {module.partition(".")[0] for _, module in imports(path.read_text(encoding="utf-8"), "")}
        assert not tops & set(FOLDERS), f"{path.name} imports a second copy of {sorted(tops & set(FOLDERS))}"


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("decode", "import trimtab.server"),
        ("decode", "from trimtab import server"),
        ("decode", "from trimtab.v1 import decoding_pb2"),
        ("decode", "def f():\n    from trimtab.bench.timing import time"),
        ("decode", "from .. import bench"),
        ("decode", "from ..server import config"),
        ("decode", "import importlib\nimportlib.import_module('trimtab.server.client')"),
        ("kernels", "if True:\n    import trimtab.decode.request"),
        ("server", "from trimtab.bench import record"),
        ("v1", "import trimtab.server"),
        ("bench", "from decode import Engine"),
        ("server", "def f():\n    import kernels.rng"),
    ],
)
def test_the_checker_finds_faults(layer: str, source: str) -> None:
    assert faults(source, layer)


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("decode", "from trimtab.kernels import rng"),
        ("decode", "from .types import Request"),
        ("decode", "from . import errors"),
        ("server", "from trimtab.v1 import decoding_pb2\nimport trimtab.decode"),
        ("bench", "import trimtab.server.client, trimtab.kernels.rng"),
        ("kernels", "import torch"),
    ],
)
def test_the_checker_passes_what_is_right(layer: str, source: str) -> None:
    assert not faults(source, layer)
