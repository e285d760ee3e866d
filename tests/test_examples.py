"""The examples, run as a user runs them, and their package: installed, and served in every way there is."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("nudging", "best_of_n", "speculation", "asyncio_app", "plug_ins")
# All in one process: most of what a short program takes is to import torch and transformers.
RUN = """
import contextlib, io, json, runpy, sys, traceback
printed = {}
for path in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(path, run_name="__main__")
        except BaseException:
            traceback.print_exc(file=out)
    printed[path] = out.getvalue()
json.dump(printed, sys.stdout)
"""


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the examples' package is installed into; it is built from a copy, so the tree stays as it is."""
    source, target = tmp_path_factory.mktemp("source") / "plugins", tmp_path_factory.mktemp("installed")
    ignored = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(repository / "examples" / "plugins", source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(target), str(source)]
    subprocess.run(command, check=True)
    return target


def run(*arguments: str, installed: Path) -> dict[str, Any]:
    """What a Python process prints as JSON, with the examples' package on its path."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# ----------------------------------------------------------------------------------------------------------- programs


def test_every_program_is_run(repository: Path) -> None:
    assert {path.stem for path in (repository / "examples").glob("*.py")} == set(PROGRAMS)


@pytest.mark.real
def test_programs(repository: Path, installed: Path, real_models: Any) -> None:
    paths = [str(repository / "examples" / f"{name}.py") for name in PROGRAMS]
    printed = {Path(path).stem: text for path, text in run("-c", RUN, *paths, installed=installed).items()}
    assert not [text for text in printed.values() if "Traceback" in text], printed
    assert "written by:" in printed["nudging"]
    assert "chat" in printed["nudging"].partition("written by:")[2]
    best = [line for line in printed["best_of_n"].splitlines() if line.startswith("* ")]
    rewards = [float(line[2:].split()[0]) for line in printed["best_of_n"].splitlines() if line[:2] in ("* ", "  ")]
    assert len(best) == 1
    assert float(best[0].split()[1]) == max(rewards)
    assert "one and the same answer: True" in printed["speculation"]
    assert "cancelled" in printed["asyncio_app"]
    assert "first_good" in printed["plug_ins"]
    assert "tries:" in printed["plug_ins"]


# ----------------------------------------------------------------------------------------- a package of its own, served


@pytest.fixture(scope="module")
def found(
    repository: Path, installed: Path, tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    script = str(repository / "tests" / "serving_plug_ins.py")
    return run(script, str(tiny_folder("llama")), str(tmp_path_factory.mktemp("config")), installed=installed)


def test_the_search_stops_at_the_first_good_answer(found: dict[str, Any]) -> None:
    """Its answers are best-of-n's, up to the first one that reaches the threshold."""
    ids, rewards = found["best_of_n"]["ids"], found["best_of_n"]["rewards"]
    assert len(set(rewards)) > 1
    tried = set()
    for bar, result in found["first_good"].items():
        good = [i for i, reward in enumerate(rewards) if reward >= float(bar)]
        last = good[0] if good else len(rewards) - 1
        assert result["ids"] == ids[: last + 1]
        assert result["selected"] == (good[0] if good else rewards.index(max(rewards)))
        assert result["abstained"] == (not good)
        tried.add(last)
    assert len(tried) > 1


def test_the_policy_is_that_of_transformers(found: dict[str, Any]) -> None:
    assert found["no_repeat"] == found["transformers"]
    assert len({tuple(ids) for ids in found["no_repeat"].values()}) > 1


def test_the_policy_holds_under_a_search_that_forks(found: dict[str, Any]) -> None:
    def repeats(answers: list[list[int]]) -> bool:
        pairs = [list(itertools.pairwise(ids)) for ids in answers]
        return any(len(set(found)) < len(found) for found in pairs)

    assert repeats(found["beams"])
    assert not repeats(found["beams without"])


def test_every_way_gives_the_same_answers(found: dict[str, Any]) -> None:
    assert len(found["library"]) == 3
    for way in ("grpc", "command", "command, to a server"):
        assert found[way] == found["library"], way


def test_errors_name_the_field(found: dict[str, Any]) -> None:
    tries, size = "search.first_good.tries", "policy.no_repeat.size"
    assert found["library wrong"] == [size, "search.first_good.threshold", tries]
    assert found["grpc wrong"] == [size, tries]
    assert found["proto wrong"] == ["policy.no_repeat.sise"]
    assert found["json wrong"] == ["policy.sise"]  # the place in the document
    assert found["text wrong"] == ["--search first_good.tries"]
    assert found["greedy"] == [tries]
    assert found["pair"] == ["draw"]


def test_it_is_written_and_read_like_any_other(found: dict[str, Any]) -> None:
    assert found["same"]
    assert found["parsed"]


def test_it_is_listed_with_all_others(found: dict[str, Any]) -> None:
    assert {"search.first_good", "policy.no_repeat", "search.best_of_n", "policy.base"} <= set(found["listed"])
    for name, field in (("first_good", "tries"), ("no_repeat", "size")):
        assert f"  {name} " in found["table"]
        assert f"    {field} " in found["table"]
        assert f"### `{name}`" in found["markdown"]
        assert f"| `{field}` |" in found["markdown"]
