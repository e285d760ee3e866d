"""Methods of other packages that are broken are left out, and the log says why; the others stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.decode.request import method
from trimtab.decode.request.method import Policy, Search, methods


def _unfinished() -> type[Any]:
    @dataclass(frozen=True)
    class Unfinished(Policy):
        pass

    return Unfinished


def _undescribed() -> type[Any]:
    class Undescribed(Policy):
        def writer(self, desk: Any) -> Any:
            return None

    return Undescribed


def _misplaced() -> type[Any]:
    @dataclass(frozen=True)
    class Misplaced(Search):
        async def run(self, setting: Any) -> Any:
            return None

    return Misplaced


def _missing() -> type[Any]:
    raise ImportError("no such module")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The register is as it was afterwards."""
    known = {axis: dict(found) for axis, found in method._known.items()}
    monkeypatch.setattr(method, "_known", known)
    method._load_plugins.cache_clear()
    yield
    method._load_plugins.cache_clear()


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("name", "load", "why"),
    [
        ("unfinished", _unfinished, "does not define writer"),
        ("undescribed", _undescribed, "not a dataclass of Policy"),
        ("misplaced", _misplaced, "not a dataclass of Policy"),
        ("another", _unfinished, "not a dataclass of Policy with the name 'another'"),
        ("missing", _missing, "no such module"),
    ],
)
def test_a_broken_one_is_left_out(
    name: str,
    load: Callable[[], type[Any]],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = methods("policy", plugins=False)
    entries = {"trimtab.policies": {name: SimpleNamespace(load=load)}}
    monkeypatch.setattr(method, "installed", lambda group: entries.get(group, {}))
    assert name not in methods("policy")
    assert set(before) <= set(methods("policy"))
    assert f"the policy {name!r} of another package can't be used" in caplog.text
    assert why in caplog.text
