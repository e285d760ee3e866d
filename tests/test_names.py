"""Every name of the library that a document mentions can be imported from where it says, and that stays light."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trimtab.decode
from trimtab.decode import extending

# Of others: transformers, and the language.
FOREIGN = {"Annotated", "AttentionInterface", "Attributes", "GenerationConfig", "False", "True", "None"}
# Documents for those who work on the project, which name its inside too.
INSIDE = ("architecture.md", "CONTRIBUTING.md")
# What users make, catch or subclass beside the types and errors.
ENGINE = ("Engine", "EngineConfig", "EngineOptions", "EngineStats", "ModelConfig", "ConfigError")
REWARDS = ("EngineReward", "LocalReward", "PairwiseReward", "Reward", "Sample")


@pytest.fixture(scope="module")
def documents(repository: Path) -> dict[str, str]:
    paths = [repository / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    paths += sorted((repository / "docs").glob("*.md"))
    return {path.name: path.read_text(encoding="utf-8") for path in paths}


def programs(text: str) -> list[ast.Module]:
    return [ast.parse(block) for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)]


def test_what_programs_import_is_there(documents: dict[str, str]) -> None:
    count = 0
    for name, text in documents.items():
        for program in programs(text):
            for node in ast.walk(program):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trimtab"):
                    module = importlib.import_module(node.module or "")
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{name}: {node.module} has no {alias.name}"
                        count += 1
    assert count > 10


def test_what_programs_use_they_import(documents: dict[str, str]) -> None:
    """Of the library's own names; prompts and the like are left to the reader."""
    for name, text in documents.items():
        for program in programs(text):
            imported = {a.asname or a.name for n in ast.walk(program) if isinstance(n, ast.ImportFrom) for a in n.names}
            used = {n.id for n in ast.walk(program) if isinstance(n, ast.Name)} & set(trimtab.decode.__all__)
            assert used <= imported, f"{name}: {sorted(used - imported)}"


@pytest.fixture(scope="module")
def classes(repository: Path) -> dict[str, str]:
    """The module of every class of the project."""
    found: dict[str, str] = {}
    for folder in ("decode", "kernels", "server", "bench"):
        for path in (repository / folder).rglob("*.py"):
            module = ".".join(("trimtab", *path.relative_to(repository).with_suffix("").parts))
            text = path.read_text(encoding="utf-8")
            found |= dict.fromkeys(re.findall(r"^class (\w+)", text, re.MULTILINE), module)
    return found


def test_what_is_named_in_passing_is_there(documents: dict[str, str], classes: dict[str, str]) -> None:
    count = 0
    for name, text in documents.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", prose):
            for mentioned in re.findall(r"(?<![\w.\-/])([A-Z][a-z]+[A-Za-z]*(?:\.\w+)*)", code):
                first, *attributes = mentioned.split(".")
                if first in FOREIGN:
                    continue
                if first in trimtab.decode.__all__:
                    found = getattr(trimtab.decode, first)
                elif first in extending.__all__:
                    found = getattr(extending, first)
                else:
                    assert name in INSIDE, f"{name}: `{code}` names {first}"
                    assert first in classes, f"{name}: `{code}` names {first}"
                    found = getattr(importlib.import_module(classes[first]), first)
                for attribute in attributes:
                    fields = getattr(found, "__dataclass_fields__", {})
                    assert attribute in fields or hasattr(found, attribute), f"{name}: `{code}`"
                count += 1
        for module in re.findall(r"`(trimtab(?:\.\w+)+)`", prose):
            if module not in (
                "trimtab.toml",
                *(f"trimtab.{group}" for group in ("rewards", "extractors", "policies", "draws", "searches")),
                "trimtab.commands",
                "trimtab.v1",
            ):
                importlib.import_module(module)
    assert count > 30


@pytest.mark.parametrize("name", [*ENGINE, *REWARDS])
def test_what_users_make_comes_from_one_place(name: str) -> None:
    assert name in trimtab.decode.__all__
    assert getattr(trimtab.decode, name).__name__ == name
    assert getattr(trimtab.decode, name).__module__.startswith("trimtab.decode.")


def test_everything_that_is_exported_is_there() -> None:
    assert len(set(trimtab.decode.__all__)) == len(trimtab.decode.__all__)
    for name in trimtab.decode.__all__:
        assert getattr(trimtab.decode, name) is not None
    assert set(trimtab.decode.__all__) <= set(dir(trimtab.decode))
    with pytest.raises(AttributeError, match="has no attribute 'Engin'"):
        trimtab.decode.Engin  # type: ignore[attr-defined]  # noqa: B018


def test_configurations_and_rewards_come_without_what_is_heavy() -> None:
    code = (
        f"import sys, trimtab.decode as d; [getattr(d, n) for n in {[*ENGINE[1:3], *ENGINE[4:], *REWARDS]!r}]; "
        "sys.exit(bool({'torch', 'transformers', 'grpc', 'tokenizers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
