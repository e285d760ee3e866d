"""The command gathers subcommands from whatever layers there are, and turns errors into one line and a status."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from trimtab.decode.commands import main
from trimtab.decode.errors import EngineFailed, InvalidRequest, ModelCacheError, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass
class Plugin:
    """An entry point whose function or failure is given."""

    name: str
    register: Callable[[Any], None] | Exception

    def load(self) -> Callable[[Any], None]:
        if isinstance(self.register, Exception):
            raise self.register
        return self.register


def command(name: str, outcome: int | BaseException) -> Plugin:
    """A plugin with one command, which returns or raises ``outcome``."""

    def run(_: object) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def register(subparsers: Any) -> None:
        subparsers.add_parser(name, help=f"does {name}").set_defaults(run=run)

    return Plugin(name, register)


@pytest.mark.parametrize("status", [0, 3])
def test_a_handler_gives_the_status(status: int) -> None:
    assert main(["work"], entry_points=[command("work", status)]) == status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidRequest.of("max_new_tokens", -1, "1 or more"), 2),
        (NotFound("model", "bse", ["base"]), 2),
        (ModelCacheError("no space"), 1),
        (EngineFailed("a fault"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_are_one_line(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["work"], entry_points=[command("work", error)]) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert str(error) in printed.err


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        main(["work"], entry_points=[command("work", ZeroDivisionError())])


def test_a_broken_layer_does_not_break_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    plugins = [Plugin("broken", ModuleNotFoundError("no grpc")), command("work", 0)]
    assert main(["work"], entry_points=plugins) == 0
    assert capsys.readouterr().err == "", "who does not use it need not read of it"
    with pytest.raises(SystemExit) as exit_:
        main(["broken"], entry_points=plugins)
    assert exit_.value.code == 2
    assert "no grpc" in capsys.readouterr().err, "who asks for it is told why it is not there"


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nothing"], ["work", "--colour"]):
        with pytest.raises(SystemExit) as exit_:
            main(arguments, entry_points=[command("work", 0)])
        assert exit_.value.code == 2
    assert "usage: trimtab" in capsys.readouterr().err


def test_models_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["models", "--help"])
    assert exit_.value.code == 0
    assert "pull" in capsys.readouterr().out


def test_models_commands_on_an_empty_cache(model_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    listing = capsys.readouterr().out
    assert listing.count("not fetched") == 2
    assert "4-bit (Q4_1), dequantised to bfloat16; to float32 on a CPU without it" in listing
    assert "Apache-2.0" in listing
    assert "Gemma Terms of Use" in listing
    assert main(["models", "path", "gemma-3-270m"]) == 1
    assert "trimtab models pull gemma-3-270m" in capsys.readouterr().err
    assert main(["models", "path", "gemma"]) == 2
    assert "'gemma-3-270m'" in capsys.readouterr().err
    assert main(["models", "pull", "smollm2-135m-instruct", "gemma"]) == 2
    assert not model_cache.exists(), "a misspelt name is refused before anything is fetched"


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    import subprocess

    reader = "import os, sys; os.read(0, 1)"
    writer = "from trimtab.decode.commands import main; import sys; sys.exit(main(['models', 'list']))"
    with subprocess.Popen(
        [sys.executable, "-u", "-c", writer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as first:
        subprocess.run([sys.executable, "-c", reader], stdin=first.stdout, check=True)
        assert first.stdout is not None
        first.stdout.close()
        assert first.stderr is not None
        assert b"Traceback" not in first.stderr.read()
