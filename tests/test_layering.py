"""Imports point down: server, bench -> decode -> kernels, and inside decode from floor to floor; never in circles.

Between the layers, imports inside functions count, and so do dynamic ones. Of the floors and the circles those count
that run when a module is imported. See docs/architecture.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping
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
# The floors inside decode, lowest first: a module imports from its own floor and from those below it.
FLOORS = (
    {"errors", "extras", "frozen", "plugins", "options", "quiet", "version", "commands"},
    {"request", "config"},
    {"text", "display"},
    {"ops"},
    {"rewards"},
    {"methods"},
    {"extending", "listing", "engine", "models"},
    {"names", "main", "__init__", "__main__"},
)
# What these import on no line at all, but for annotations.
BELOW_THE_ENGINE = ("request", "text", "ops", "methods")
NEVER = ("trimtab.decode.engine", "trimtab.decode.models", "torch")
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


# -------------------------------------------------------------------------- floors inside decode, and circles anywhere


def running(nodes: list[ast.stmt], *, functions: bool) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, with ``functions`` also those that run later; no annotations'."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from running(node.orelse, functions=functions)
            continue
        yield node
        if functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for block in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from running(getattr(node, block, []), functions=functions)


def targets(source: str, package: str, known: Container[str] = (), *, functions: bool = False) -> Iterator[Import]:
    """The modules that a file needs when it is imported, each as exactly as ``known`` modules tell.

    That a module's package is imported before it is left out: a package only gathers its modules.
    """
    for node in running(ast.parse(source).body, functions=functions):
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base, *members = [module for _, module in imports(ast.unparse(node), package)]
            modules = [member for member in members if member in known]
            yield from (Import(node.lineno, module) for module in modules or [base])


def floor_of(module: str) -> int | None:
    """The floor of a module of decode; None of any other module."""
    top, layer, name = [*module.split("."), "", ""][:3]
    if (top, layer) != ("trimtab", "decode"):
        return None
    floors = [i for i, floor in enumerate(FLOORS) if (name or "__init__") in floor]
    assert floors, f"{module}: which floor of decode is it on?"
    return floors[0]


def upward(module: str, imported: Iterable[Import]) -> list[str]:
    """What a module of decode imports from a floor above its own."""
    own = floor_of(module)
    above = [(line, name) for line, name in imported if (floor := floor_of(name)) is not None and floor > (own or 0)]
    return [f"line {line}: {module} must not import {name}, which is above it" for line, name in above]


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Modules of which each imports the next, and the last the first; none if there is no circle."""
    path: dict[str, None] = {}
    done: set[str] = set()

    def visit(module: str) -> list[str]:
        if module in path:
            modules = list(path)
            return modules[modules.index(module) :]
        if module in done or module not in graph:
            return []
        path[module] = None
        found = next(filter(None, map(visit, sorted(graph[module]))), [])
        del path[module]
        done.add(module)
        return found

    return next(filter(None, map(visit, sorted(graph))), [])


def sources(repository: Path) -> dict[str, tuple[str, str]]:
    """Package and source of every module but the generated ones."""
    found = {}
    for path, layer, package, source in files(repository):
        name = path.removesuffix(".py").rpartition("/")[2]
        if layer != "v1":
            found[package if name == "__init__" else f"{package}.{name}"] = (package, source)
    return found


def test_the_floors_of_decode(repository: Path) -> None:
    modules = sources(repository)
    found = [
        fault
        for module, (package, source) in modules.items()
        if floor_of(module) is not None
        for fault in upward(module, targets(source, package, modules))
    ]
    assert not found, "\n".join(found)


def test_nothing_below_the_engine_knows_it(repository: Path) -> None:
    modules = sources(repository)
    below = [f"trimtab.decode.{floor}" for floor in BELOW_THE_ENGINE]
    looked_at = [module for module in modules if module.startswith(tuple(below))]
    assert len(looked_at) > 50
    found = [
        f"{module}: line {line}: {name}"
        for module in looked_at
        for line, name in targets(modules[module][1], modules[module][0], modules, functions=True)
        if name.startswith(NEVER)
    ]
    assert not found, "\n".join(found)


def test_no_modules_import_each_other_in_a_circle(repository: Path) -> None:
    modules = sources(repository)
    graph = {
        module: {name for _, name in targets(source, package, modules)} for module, (package, source) in modules.items()
    }
    assert sum(map(len, graph.values())) > 500
    assert not (found := circle(graph)), " -> ".join([*found, found[0]])


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops", "from trimtab.decode.methods.writer import Writer"),
        ("text.ends", "from trimtab.decode.ops import Read"),
        ("text.ends", "from trimtab.decode import ops"),
        ("request.method", "class A:\n    from trimtab.decode.methods import desk"),
        ("rewards.base", "try:\n    import trimtab.decode.methods.answer\nexcept ImportError:\n    pass"),
        ("methods.build", "if True:\n    from trimtab.decode.engine.loop import Loop"),
        ("engine.loop", "import trimtab.decode"),
    ],
)
def test_the_floors_are_guarded(repository: Path, module: str, source: str) -> None:
    module = f"trimtab.decode.{module}"
    assert upward(module, targets(source, module.rpartition(".")[0], sources(repository)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ops", "from trimtab.decode.text.view import VocabularyView"),
        ("methods.build", "from trimtab.decode.rewards import rating"),
        ("models.load", "from trimtab.decode.engine.storage import Step"),
        ("request.method", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import trimtab.decode.ops"),
        ("rewards.base", "def f():\n    from trimtab.decode.methods.chance import Line"),
    ],
)
def test_the_floors_pass_what_is_right(repository: Path, module: str, source: str) -> None:
    module = f"trimtab.decode.{module}"
    assert not upward(module, targets(source, module.rpartition(".")[0], sources(repository)))


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": ["b"], "b": ["a"]}, {"a", "b"}),
        ({"a": ["b", "d"], "b": ["c"], "c": ["b"], "d": []}, {"b", "c"}),
        ({"a": ["a"]}, {"a"}),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": ["torch"]}, set()),
    ],
)
def test_circles_are_found(graph: dict[str, list[str]], found: set[str]) -> None:
    assert set(circle(graph)) == found


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
