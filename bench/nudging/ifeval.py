"""IFEval: whether an answer keeps the checkable constraints of its prompt (Zhou et al., arXiv:2311.07911).

The constraints are checked by the public checkers of the package lm-eval. Importing that package would import a whole
evaluation framework, and its checkers fetch a sentence splitter over the network; so their three files are loaded
alone, and nltk's splitters are replaced by plain rules while they are loaded and while they run. The plain rules move
a score by less than half a point.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from trimtab.decode.errors import TrimtabError

__all__ = ["Checkers", "CheckersMissing"]

_PACKAGES = ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval")
_MODULES = ("instructions_util", "instructions", "instructions_registry")  # each imports those before it
_INSTALL = "pip install --no-deps lm-eval && pip install nltk langdetect immutabledict"


class CheckersMissing(TrimtabError):
    """The packages that check constraints are not installed."""

    def __init__(self, what: str) -> None:
        super().__init__(f"IFEval's checkers can't be loaded: {what}; get them with: {_INSTALL}")


class Checkers:
    """The public constraint checkers, by name.

    Raises:
        CheckersMissing: a package is not installed, or lm-eval has no checkers where they are expected.
    """

    def __init__(self) -> None:
        found = importlib.util.find_spec("lm_eval")
        if found is None or not found.submodule_search_locations:
            raise CheckersMissing("no package lm_eval")
        folder = Path(found.submodule_search_locations[0]) / "tasks" / "ifeval"
        try:
            with _quiet():
                self._classes: Mapping[str, Any] = _registry(folder)
        except (ImportError, OSError) as error:
            raise CheckersMissing(str(error)) from error

    def followed(self, row: Mapping[str, Any]) -> list[bool]:
        """Whether each constraint of a row (``prompt, instruction_id_list, kwargs, response``) is kept; strict.

        An empty answer keeps none, nor does one that a checker can't read.
        """
        with _quiet():
            return [
                self._keeps(row, name, kwargs or {})
                for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
            ]

    def _keeps(self, row: Mapping[str, Any], name: str, kwargs: Mapping[str, Any]) -> bool:
        checker = self._classes[name](name)
        checker.build_description(**{key: value for key, value in kwargs.items() if value is not None})
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=row["prompt"])
        response = row["response"]
        if not response.strip():
            return False
        try:
            return bool(checker.check_following(response))
        except Exception:  # the checkers raise whatever their parsing raises
            return False


def _sentences(text: str, *_: Any, **__: Any) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def _words(text: str, *_: Any, **__: Any) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


@contextmanager
def _quiet() -> Iterator[None]:
    """nltk without data files, its splitters replaced by plain rules; langdetect, which samples, with a fixed seed."""
    import langdetect  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import nltk  # type: ignore[import-untyped, import-not-found, unused-ignore]
    import nltk.data  # type: ignore[import-untyped, import-not-found, unused-ignore]

    splitter = types.SimpleNamespace(tokenize=_sentences)
    with (
        patch.object(langdetect.DetectorFactory, "seed", 0),
        patch.object(nltk, "download", lambda *_, **__: True),
        patch.object(nltk.data, "find", lambda *_, **__: True),
        patch.object(nltk.data, "load", lambda *_, **__: splitter),
        patch.object(nltk, "sent_tokenize", _sentences),
        patch.object(nltk, "word_tokenize", _words),
        patch.object(nltk.tokenize, "sent_tokenize", _sentences),
        patch.object(nltk.tokenize, "word_tokenize", _words),
    ):
        yield


def _registry(folder: Path) -> Mapping[str, Any]:
    """The checkers' table. The packages that their files believe to be in are gone afterwards."""
    names = [*_PACKAGES, *(f"{_PACKAGES[-1]}.{name}" for name in _MODULES)]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        for name in _PACKAGES:
            package = types.ModuleType(name)
            package.__path__ = [str(folder)]
            sys.modules[name] = package
        for name in _MODULES:
            spec = importlib.util.spec_from_file_location(f"{_PACKAGES[-1]}.{name}", folder / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            setattr(sys.modules[_PACKAGES[-1]], name, module)
            spec.loader.exec_module(module)
        registry: Mapping[str, Any] = module.INSTRUCTION_DICT
        return registry
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)
