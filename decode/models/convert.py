"""Converts a GGUF file to a folder that Hugging Face transformers loads: safetensors in bfloat16, and the tokenizer.

Run as a program of its own (``python -m trimtab.decode.models.convert``): reading GGUF takes several times the
model's size in memory, which goes back to the system when the program ends, and it may change transformers' state.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

from trimtab.decode.errors import ModelCacheError
from trimtab.decode.models.progress import Progress

__all__ = ["convert"]


def convert(gguf: Path, out: Path, progress: Progress) -> None:
    """Converts a GGUF file in a separate process.

    Args:
        gguf: the file.
        out: an existing empty folder. It gets config.json, generation_config.json, model.safetensors, the
            tokenizer's files and, if the model has one, its chat template.
        progress: gets a line at each stage.

    Raises:
        ModelCacheError: if the conversion fails; with the last lines it wrote.
    """
    # -P: the current folder must not be searched. From a checkout of this repository, transformers would take our
    # kernels/ for a package of its own.
    command = [sys.executable, "-P", "-m", "trimtab.decode.models.convert", str(gguf), str(out)]
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    last: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | quiet,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(_MARK):
                    progress.line("  " + line.removeprefix(_MARK).strip())
                elif line.strip():
                    last.append(line.strip())
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0:
        why = "it was killed, perhaps for memory" if process.returncode < 0 else " / ".join(last)
        raise ModelCacheError(f"{gguf.name} could not be converted: {why}")


_MARK = "\x1eprogress "


def _say(text: str) -> None:
    sys.stdout.write(f"{_MARK}{text}\n")
    sys.stdout.flush()


def _convert_here(gguf: Path, out: Path) -> None:
    # We and transformers (config, weights) read the file three times; one parse of a vocabulary of 262k takes 8 s of
    # pure Python, so all share one. The cyclic garbage collector adds half as much again and finds nothing.
    gc.disable()
    _say("reading the file")
    import gguf as gguf_package
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from trimtab.decode.models.gguf_tokenizer import build_tokenizer

    read = functools.cache(gguf_package.GGUFReader)
    setattr(gguf_package, "GGUFReader", read)  # noqa: B010  # mypy forbids to assign to a type

    _say("building the tokenizer")
    fields = read(str(gguf)).fields
    tokenizer = build_tokenizer({key: field.contents() for key, field in fields.items()})

    _say("dequantising the weights")
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # The weights are plain tensors now; left in place, the quantiser would refuse to save them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
    )

    _say("writing safetensors in bfloat16")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.copymode(out / "config.json", out / "model.safetensors")  # safetensors leaves it readable by its owner only


def _main() -> None:
    parser = argparse.ArgumentParser(description="convert a GGUF file to safetensors in bfloat16")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    _convert_here(args.gguf, args.out)


if __name__ == "__main__":
    _main()
