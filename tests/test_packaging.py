"""What is installed: one namespace, complete, importable from anywhere, and harmless to transformers."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from pathlib import Path

FOLDERS = {
    "decode/main": "trimtab",  # before decode: the longer prefix wins
    "decode": "trimtab/decode",
    "kernels": "trimtab/kernels",
    "server/proto/trimtab/v1": "trimtab/v1",
    "server": "trimtab/server",
    "bench": "trimtab/bench",
}
NOT_SHIPPED = ("server/proto/",)  # but what lies under server/proto/trimtab/v1


def run(code: str, cwd: Path, *, path: Path | None = None, options: tuple[str, ...] = ()) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *options, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from: setuptools leaves a build folder, whose old files would get into the next wheel."""
    folder = tmp_path_factory.mktemp("source") / "trimtab"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "node_modules", "shared")
    shutil.copytree(repository, folder, ignore=ignored)
    shutil.copy(repository / ".pre-commit-config.yaml", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--wheel-dir", str(scratch), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = scratch.glob("trimtab-*.whl")
    return built


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of what a source distribution has."""
    folder = tmp_path_factory.mktemp("sdist")
    code = f"import setuptools.build_meta as b; b.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = folder.glob("trimtab-*.tar.gz")
    with tarfile.open(built) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has the content of the wheel, and nothing else of ours."""
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def shipped_as(path: str) -> str | None:
    """Where a file of the repository is in the wheel; None for one that is not shipped."""
    for folder, package in FOLDERS.items():
        if path.startswith(folder + "/"):
            if folder == "server" and path.startswith(NOT_SHIPPED):
                return None
            return package + path.removeprefix(folder)
    return None


def test_the_wheel_has_every_module(repository: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    missing = []
    for top in ("decode", "kernels", "server", "bench"):
        for path in sorted((repository / top).rglob("*.py")):
            target = shipped_as(path.relative_to(repository).as_posix())
            if target is not None and target not in names:
                missing.append(target)
    assert not missing, f"not in the wheel; is its folder in PACKAGES of setup.py? {missing}"


def test_the_wheel_has_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    typed = {f"trimtab/{part}/py.typed" for part in ("decode", "kernels", "server", "v1", "bench")}
    assert typed <= names
    assert any(name.startswith("trimtab/v1/") and name.endswith(".proto") for name in names)


def test_the_wheel_says_its_licence(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (info,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nAuthor: The trimtab authors\n" in metadata
    assert "Version 2.0, January 2004" in archive.read(f"{info}/licenses/LICENSE").decode()


def test_the_wheel_owns_nothing_but_the_namespace(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"trimtab"}
    inside = {name for name in names if name.startswith("trimtab/") and name.count("/") == 1}
    assert inside == {"trimtab/__main__.py"}, "a namespace package has no __init__"
    assert "trimtab/kernels/__init__.py" not in names
    weights = [name for name in names if name.endswith((".gguf", ".safetensors"))]
    draft = "trimtab/decode/models/drafts/smollm2-135m-draft"
    assert weights == [f"{draft}/model.safetensors"], "no other weights are shipped"


def test_the_source_distribution_has_what_is_kept(repository: Path, source: Path, sdist: set[str]) -> None:
    """All that git has: with it, its tests and its documents can be used, and the same wheel be built."""
    kept = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    made = {name for name in kept if name.startswith(("build/", "trimtab.egg-info/")) or ".egg-info/" in name}
    assert kept - made <= sdist, sorted(kept - made - sdist)
    assert {"docs/architecture.md", "docs/methods.md", "CHANGELOG.md", "tests/conftest.py", "MANIFEST.in"} <= sdist
    assert {"docs/api.py", "SECURITY.md", "CITATION.cff"} <= sdist


def test_every_module_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = f"""
import importlib, pathlib
root = pathlib.Path({str(installed)!r})
for path in sorted((root / "trimtab").rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    if parts[-1] == "__main__" or not all(part.isidentifier() for part in parts):
        continue
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to(root), (name, module.__file__)
print("ok")
"""
    assert run(code, tmp_path, path=installed).split() == ["ok"]


def test_transformers_imports_from_the_root(repository: Path) -> None:
    # transformers looks for a package named "kernels" and finds our folder first when it is run from here.
    code = """
import sys
import transformers.integrations.hub_kernels
from transformers import LlamaForCausalLM
ours = sys.modules.get("kernels")
assert ours is None or getattr(ours, "__file__", None) is None, ours
import trimtab.kernels
print("ok")
"""
    assert run(code, repository).split() == ["ok"]


def test_kernels_is_no_regular_package(repository: Path) -> None:
    assert not (repository / "kernels" / "__init__.py").exists()
    assert not (repository / "trimtab").exists(), "the namespace has no folder"


@pytest.mark.parametrize("folder", ["/", "root"])
def test_the_package_imports_from_anywhere(repository: Path, tmp_path: Path, folder: str) -> None:
    code = "import trimtab.decode, trimtab.kernels.rng; print(trimtab.decode.Request.__module__)"
    assert run(code, repository if folder == "root" else tmp_path).strip() == "trimtab.decode.request.request"


def test_there_is_no_second_copy(repository: Path) -> None:
    code = """
import trimtab.decode
try:
    import decode
except ImportError as error:
    assert "trimtab.decode" in str(error), error
else:
    raise AssertionError(decode)
try:
    import decode.request
except ImportError:
    print("ok")
"""
    assert run(code, repository).split() == ["ok"]


@pytest.mark.parametrize(
    "code",
    [
        "import trimtab.decode as d; assert d.Request and d.InvalidRequest",
        "import trimtab.decode as d; assert 'Engine' in dir(d)",
        "from trimtab.decode.request.request import Request; assert Request(model='m', prompt='p').search.results == 1",
        "import trimtab.decode.commands",
        "import trimtab.decode.commands as c\ntry: c.main(['--help'])\nexcept SystemExit: pass",
        "import trimtab.decode.commands as c; c.main(['models', 'list'])",
        "import trimtab.decode.commands as c; c.main(['models', 'path', 'smollm2-135m-draft'])",
    ],
)
def test_light_things_stay_light(tmp_path: Path, code: str) -> None:
    heavy = "{'torch', 'transformers', 'grpc', 'tokenizers', 'safetensors'}"
    printed = run(f"{code}\nimport sys\nprint('heavy:', sorted({heavy} & set(sys.modules)))", tmp_path)
    assert printed.splitlines()[-1] == "heavy: []"


def test_commands_start_without_numpy(tmp_path: Path) -> None:
    code = "import sys, trimtab.decode.commands as c\ntry: c.main({})\nexcept SystemExit: print('numpy' in sys.modules)"
    for arguments in (["--help"], ["--version"], ["generate", "--help"]):
        assert run(code.format(arguments), tmp_path).splitlines()[-1] == "False"


def test_the_version_is_that_of_the_distribution(installed: Path, wheel: Path, tmp_path: Path) -> None:
    version = wheel.name.split("-")[1]
    assert run("import trimtab.decode as d; print(d.__version__)", tmp_path, path=installed).strip() == version
    for module in ("trimtab", "trimtab.decode"):
        code = f"import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module({module!r}, run_name='__main__')"
        assert run(code, tmp_path, path=installed).strip() == f"trimtab {version}"


def test_everything_public_is_exported() -> None:
    import trimtab.decode
    from trimtab.decode import errors
    from trimtab.decode.request import events, generate_options, objective, request, result, sampling
    from trimtab.decode.request.method import AXES, methods

    for module in (errors, events, generate_options, objective, request, result, sampling):
        for name in module.__all__:
            assert name in trimtab.decode.__all__
            assert getattr(trimtab.decode, name) is getattr(module, name)
    for cls in (cls for axis in AXES for cls in methods(axis, plugins=False).values()):
        assert cls.__name__ in trimtab.decode.__all__
        assert getattr(trimtab.decode, cls.__name__) is cls
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = trimtab.decode.no_such_name  # type: ignore[attr-defined]


def test_what_is_cited_is_this_version(repository: Path) -> None:
    text = (repository / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {importlib.metadata.version('trimtab')}\n" in text
    assert "\nlicense: Apache-2.0\n" in text


PROMISED = {
    "torch": ("2.11.0", "2.13.0"),
    "transformers": ("5.17.0", "5.23.0"),
    "grpcio": ("1.75.1", "1.85.1"),
    "protobuf": ("6.31.1", "7.36.2"),
}


def requirements(extra: str = "") -> dict[str, Requirement]:
    """What is installed with an extra, or without any."""
    found = [Requirement(text) for text in importlib.metadata.requires("trimtab") or []]
    return {r.name: r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})}


def test_requirements_admit_what_is_promised() -> None:
    served = requirements("server")
    for name, versions in PROMISED.items():
        for version in versions:
            assert served[name].specifier.contains(version), f"{name} {version} is refused"
    for name in ("triton", "grpcio", "protobuf", "gguf", "accelerate", "matplotlib", "scikit-learn"):
        assert name not in requirements(), "triton comes with torch, the others with their extras"
    every = [Requirement(text) for text in importlib.metadata.requires("trimtab") or []]
    assert not [str(r) for r in every if r.name == "triton" and r.specifier]


def test_all_is_all_that_a_user_may_want() -> None:
    wanted = [set(requirements(extra)) for extra in ("server", "models", "bench", "rewards", "math")]
    assert set(requirements("all")) == set().union(*wanted)
    assert {"grpcio", "gguf", "matplotlib", "math-verify"} <= set(requirements("all"))


def test_constraints_pin_versions_and_nothing_else(repository: Path) -> None:
    text = (repository / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][0-9a-z.]*", line), line
    pinned = {line.partition("==")[0] for line in lines}
    assert not {name for name in pinned if "triton" in name or name.startswith(("nvidia", "cuda"))}
    extras = {"", "dev", "all"}
    for requirement in map(Requirement, importlib.metadata.requires("trimtab") or []):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            assert requirement.name.lower() in pinned, f"{requirement.name} is not pinned"
            version = text.partition(f"\n{requirement.name.lower()}==")[2].split()[0]
            assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"
