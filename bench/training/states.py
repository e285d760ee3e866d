"""Hidden states of answers below the layers that are trained: computed once, kept on disk, read in every epoch.

The layers below are frozen, so what they give never changes. Files are written whole and in a fixed order: a run that
was cut short goes on where it was.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel

from trimtab.bench.progress import Progress
from trimtab.decode.errors import InvalidRequest

__all__ = ["States", "lower", "upper"]

_FILE = 64  # answers in one file
_BATCH_TOKENS = 2048


def lower(model: Any, layers: int) -> Any:
    """The model's body without its last ``layers`` and its last norm; shares its weights."""
    body: Any = copy.copy(model)
    body._modules = dict(model._modules)
    body.layers = nn.ModuleList(list(model.layers)[: len(model.layers) - layers])
    body.norm = nn.Identity()
    return body


def upper(model: Any, layers: int) -> Any:
    """The model's last ``layers`` and its last norm, in float32, as a model that reads hidden states; copies."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[-layers:]
    with torch.device("meta"):
        top: Any = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    top.rotary_emb = copy.deepcopy(model.rotary_emb)
    top.layers = nn.ModuleList(copy.deepcopy(layer) for layer in list(model.layers)[-layers:])
    for index, layer in enumerate(top.layers):
        layer.self_attn.layer_idx = index
    top.norm = copy.deepcopy(model.norm)
    top.embed_tokens = nn.Identity()
    return top.float()


class States:
    """Hidden states [tokens, D] in bfloat16 of token sequences, by the sequence's index.

    Args:
        folder: where they are kept.
        sequences: token ids.
        made: what else they depend on, JSON; states of another run are refused.

    Raises:
        InvalidRequest: the folder holds states of other sequences or another model.
    """

    def __init__(self, folder: Path, sequences: Sequence[Sequence[int]], made: dict[str, Any]) -> None:
        self.folder, self.sequences = folder, sequences
        self.files = -(-len(sequences) // _FILE)
        self._open: dict[int, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        run = json.dumps({**made, "sequences": len(sequences), "tokens": sum(map(len, sequences))}, sort_keys=True)
        note = folder / "states.json"
        if note.exists() and note.read_text(encoding="utf-8") != run:
            raise InvalidRequest.of("out", note.read_text(encoding="utf-8"), f"another folder, or states of {run}")
        note.write_text(run, encoding="utf-8")

    def compute(self, body: Any, stop_after: float | None = None) -> bool:
        """Compute what is missing; False if ``stop_after`` seconds passed before the end."""
        missing = [number for number in range(self.files) if not self._path(number).exists()]
        with Progress("states", self.files, self.files - len(missing), "file") as progress:
            return self._computed(body, missing, stop_after, progress)

    def _computed(self, body: Any, missing: Sequence[int], stop_after: float | None, progress: Progress) -> bool:
        begun = time.monotonic()
        for number in missing:
            indices = range(number * _FILE, min((number + 1) * _FILE, len(self.sequences)))
            states = _hidden(body, [self.sequences[i] for i in indices])
            work = self._path(number).with_suffix(".tmp")
            save_file({str(i): state for i, state in zip(indices, states, strict=True)}, work)
            work.rename(self._path(number))
            progress.add(sum(len(self.sequences[i]) for i in indices))
            if stop_after is not None and time.monotonic() - begun >= stop_after and number + 1 < self.files:
                return False
        return True

    def __getitem__(self, index: int) -> Tensor:
        """[tokens, D], bfloat16.

        Raises:
            InvalidRequest: it isn't there, or its file can't be read.
        """
        number = index // _FILE
        if number not in self._open:
            try:
                self._open[number] = safe_open(self._path(number), "pt")
            except (OSError, SafetensorError) as error:
                raise InvalidRequest.of("states", self._path(number).name, f"a readable file ({error})") from error
        state: Tensor = self._open[number].get_tensor(str(index))
        return state

    def _path(self, number: int) -> Path:
        return self.folder / f"states-{number:05d}.safetensors"


@torch.inference_mode()
def _hidden(body: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """Sequences of like length share a batch; padding is at the end, where causal attention doesn't see it."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    found: list[Tensor] = [torch.empty(0)] * len(sequences)
    while order:
        longest = len(sequences[order[-1]])
        part = [order.pop() for _ in range(min(len(order), max(1, _BATCH_TOKENS // longest)))]
        ids = torch.zeros(len(part), longest, dtype=torch.int64)
        for row, i in enumerate(part):
            ids[row, : len(sequences[i])] = torch.tensor(sequences[i])
        hidden = body(input_ids=ids, use_cache=False).last_hidden_state
        for row, i in enumerate(part):
            found[i] = hidden[row, : len(sequences[i])].to(torch.bfloat16).contiguous()
    return found
