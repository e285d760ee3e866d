"""A Node client, made from the .proto alone, reads a stream, cancels, meets a deadline and a rich error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PROTOS = ROOT / "server" / "proto"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="needs node and npm"
)


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The pinned packages, installed once into the folder of build products."""
    folder = ROOT / "build" / "node"
    files = [HERE / "node" / name for name in ("package.json", "package-lock.json")]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    stamp = folder / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(file, folder)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(command, cwd=folder, check=True, timeout=300)
        stamp.write_text(wanted)
    return folder / "node_modules"


def run_node(node_modules: Path, address: str, model: str, max_new_tokens: int) -> dict[str, Any]:
    done = subprocess.run(
        ["node", str(HERE / "node" / "client.js"), str(PROTOS), address, model, str(max_new_tokens)],
        env={**os.environ, "NODE_PATH": str(node_modules)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def check(seen: dict[str, Any], max_new_tokens: int) -> None:
    """What holds for any engine."""
    assert seen["events"][0] == "started"
    assert seen["events"][-1] == "completed"
    assert seen["text"] == seen["unary_text"]
    assert seen["pieces_are_bytes"]
    assert seen["draws"] == ["TOKEN_DRAW_PLAIN"]
    assert seen["finish_reason"].startswith("FINISH_REASON_")
    assert seen["seed"] == 2**32 - 1, "exact in JavaScript"
    assert 0 < seen["usage"]["returned_tokens"] <= max_new_tokens
    assert len(seen["pieces"]) == seen["usage"]["returned_tokens"]
    assert seen["cancelled"] == "CANCELLED"
    # Both sides know the deadline. Where the server's timer is first, its reset of the stream is read as CANCELLED.
    assert seen["late"] in {"DEADLINE_EXCEEDED", "CANCELLED"}, seen["late"]
    assert seen["bad"] == "INVALID_ARGUMENT"
    for part in ("google.rpc.BadRequest", "spec.sampling.temperature", "spec.sampling.top_p", "trimtab.v1"):
        assert part in seen["bad_details"]


@pytest.fixture
def scripted_address() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "scripted_engine.py"), "0.005"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()  # the server drains and ends
        assert process.wait(10) == 0


def test_node_reads_a_scripted_stream(node_modules: Path, scripted_address: str) -> None:
    seen = run_node(node_modules, scripted_address, "base", 40)
    check(seen, 40)
    assert seen["models"] == [["base", "MODEL_ROLE_BASE"], ["chat", "MODEL_ROLE_ALIGNED"]]
    data = b"".join(bytes.fromhex(piece) for piece in seen["pieces"])
    assert data.decode(errors="replace") == seen["text"]
    assert len(seen["pieces"]) == 40
    assert any(not _is_text(bytes.fromhex(piece)) for piece in seen["pieces"]), "no character was cut in two"


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
