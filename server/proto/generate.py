"""Generate the Python code of the proto with pinned tools, or check that the committed code is up to date.

The code is made with the oldest supported tools, because a newer protobuf runtime reads older generated code and an
older runtime refuses newer code: grpcio-tools 1.75.1 stamps protobuf 6.31.1 and grpcio 1.75.1, the lower bounds of the
package. The tools live in an environment of their own (``build/proto-venv``), so they constrain nothing else.

Usage: ``python server/proto/generate.py [--check]``. With ``--check`` nothing is written; exit status 1 names the
files that differ.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TOOLS = ("grpcio-tools==1.75.1", "mypy-protobuf==3.6.0", "protobuf==6.33.6", "setuptools==80.9.0")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = ROOT / "build" / "proto-venv"
SOURCE = "trimtab/v1/decoding.proto"
OUTPUTS = ("decoding_pb2.py", "decoding_pb2.pyi", "decoding_pb2_grpc.py", "decoding_pb2_grpc.pyi")


def tools() -> Path:
    """Return the folder of executables of the tools' environment, making the environment on first use."""
    bin_dir = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin")
    stamp = ENVIRONMENT / "tools.txt"
    wanted = "\n".join(TOOLS)
    if not stamp.is_file() or stamp.read_text() != wanted:
        print(f"installing {', '.join(TOOLS)}", flush=True)
        venv.EnvBuilder(with_pip=True, clear=True).create(ENVIRONMENT)
        subprocess.run(
            [bin_dir / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS], check=True
        )
        stamp.write_text(wanted)
    return bin_dir


def generate(target: Path) -> None:
    """Write the generated files under ``target/trimtab/v1``."""
    bin_dir = tools()
    subprocess.run(
        [
            bin_dir / "python",
            "-m",
            "grpc_tools.protoc",
            f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
            f"--proto_path={HERE}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            SOURCE,
        ],
        check=True,
        cwd=HERE,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate the Python code of the proto with pinned tools.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the committed code is out of date")
    check: bool = parser.parse_args().check
    if not check:
        generate(HERE)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        package = Path(SOURCE).parent
        stale = [
            name
            for name in OUTPUTS
            if not (HERE / package / name).is_file()
            or (HERE / package / name).read_bytes() != (Path(folder) / package / name).read_bytes()
        ]
    for name in stale:
        print(f"out of date: server/proto/{package}/{name} (run: python server/proto/generate.py)", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
