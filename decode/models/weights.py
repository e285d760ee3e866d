"""Weights by the names that they have in a checkpoint: of a folder, of a loaded module, of a draft."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

__all__ = ["DraftWeights", "FolderWeights", "ModuleWeights", "Weights"]

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYERS = "model.layers."
_OWN = (_LAYERS, "model.norm.")
_STORED = frozenset({"F32", "BF16", "F16"})


class Weights(Protocol):
    """Where a model's weights come from."""

    def __call__(self, name: str) -> Tensor | None:
        """A weight as it is stored; None if the model has none of that name."""
        ...

    def table(self) -> Tensor:
        """The embedding [V, D], which may be in a narrower dtype: only rows of it are ever read."""
        ...

    def release(self, index: int) -> None:
        """A layer's linear weights are not needed any more."""
        ...


class FolderWeights:
    """Weights in a folder's safetensors files, read from the mapped file when they are asked for.

    Args:
        folder: holds ``model.safetensors``, or ``model.safetensors.index.json`` and what that names.
        dtype: to run in; the embedding is never in a wider one.
        layers: of the model.
        tied: whether the head is the embedding.

    Raises:
        ValueError: there are no such files, or what they hold is named otherwise, quantised, or incomplete.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, *, layers: int, tied: bool) -> None:
        self.files = _files(folder)
        self._dtype, self._tied = dtype, tied
        self._layer, self._opened = "", dict[Path, Any]()
        self._where: dict[str, Path] = {}
        stored: set[str] = set()
        try:
            for file in self.files:
                with safe_open(file, "pt") as opened:
                    names: list[str] = opened.keys()
                    self._where |= dict.fromkeys(names, file)
                    stored |= {opened.get_slice(name).get_dtype() for name in names}
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder} holds no weights that can be read: {error}") from error
        needed = {_EMBEDDING, *(f"model.layers.{i}.input_layernorm.weight" for i in range(layers))}
        if missing := (needed if tied else needed | {_HEAD}) - self._where.keys():
            raise ValueError(f"{folder} holds no {sorted(missing)}")
        if not stored <= _STORED:
            raise ValueError(f"{folder} holds weights of type {sorted(stored - _STORED)}")

    def __call__(self, name: str) -> Tensor | None:
        name = _EMBEDDING if name == _HEAD and self._tied else name
        if name not in self._where:
            return None
        return self._of_layer(name) if name.startswith(_LAYERS) else self._alone(name)

    def table(self) -> Tensor:
        found = self._alone(_EMBEDDING)
        return found if found.dtype.itemsize <= self._dtype.itemsize else found.to(self._dtype)

    def release(self, index: int) -> None:
        self._opened = {}

    def _alone(self, name: str) -> Tensor:
        """A tensor in a mapping of its own: what was read of the file is resident as long as the tensor lives."""
        with safe_open(self._where[name], "pt") as opened:
            found: Tensor = opened.get_tensor(name)
        return found

    def _of_layer(self, name: str) -> Tensor:
        """A tensor in the mapping of its layer: to open one takes longer than to read a small tensor."""
        layer, file = name.split(".")[2], self._where[name]
        if layer != self._layer:
            self._layer, self._opened = layer, {}
        if file not in self._opened:
            self._opened[file] = safe_open(file, "pt")
        found: Tensor = self._opened[file].get_tensor(name)
        return found


class ModuleWeights:
    """Weights of a causal LM of transformers, which can't be used once they are released.

    Args:
        model: laid out as Llama is; on the CPU, in the dtype to run in.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, name: str) -> Tensor | None:
        with suppress(AttributeError):
            found: Tensor | None = self._model.get_parameter(name).detach()
            return found
        return None

    def table(self) -> Tensor:
        found: Tensor = self._model.get_parameter(_EMBEDDING).detach()
        return found

    def release(self, index: int) -> None:
        for module in self._model.model.layers[index].modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)


class DraftWeights:
    """Weights of a draft: its own layers and last norm, and of its target the embedding and the kept rows of the head.

    Args:
        target: weights of the target.
        own: the draft's, by name.
        ids: int64 [Vd], the kept rows.
    """

    def __init__(self, target: Weights, own: Mapping[str, Tensor], ids: Tensor) -> None:
        self._target, self._own, self._ids = target, own, ids

    def __call__(self, name: str) -> Tensor | None:
        if name.startswith(_OWN):
            return self._own.get(name)
        found = self._target(name)
        return found.index_select(0, self._ids) if found is not None and name.startswith("lm_head.") else found

    def table(self) -> Tensor:
        return self._target.table()

    def release(self, index: int) -> None:
        pass


def _files(folder: Path) -> list[Path]:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    try:
        names: Iterable[str] = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds no safetensors files: {error}") from error
    return [folder / name for name in sorted(names)]
