"""Models of checked families straight from their files, without transformers' modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models.blueprint import Blueprint
from trimtab.decode.models.draft import DraftFiles
from trimtab.decode.models.self_test import fingerprint
from trimtab.decode.models.stack import Stack
from trimtab.decode.models.weights import DraftWeights, FolderWeights, Weights

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model in files that can be read as they are.

    Attributes:
        architecture: class of the model in transformers.
        key: fingerprint of the files.
    """

    architecture: str
    key: str
    blueprint: Blueprint
    weights: Weights
    dtype: torch.dtype

    @classmethod
    def of(
        cls, source: str, config: Any, draft: DraftFiles | None, blueprint: Blueprint, dtype: torch.dtype
    ) -> Checkpoint | None:
        """The model in a folder, or in the hub's cache; None if it is not there, or not in safetensors as they are.

        Args:
            source: a folder or a hub id; of a draft, its target.
            config: that of transformers.
            draft: what of it is its own, if it is a draft.
            blueprint: of the model or the draft.
            dtype: to run in.
        """
        folder = _folder(source)
        named = getattr(config, "architectures", None)
        if folder is None or not named or getattr(config, "quantization_config", None) is not None:
            return None
        layers, tied = int(config.num_hidden_layers), bool(config.tie_word_embeddings)
        try:
            stored = FolderWeights(folder, dtype, layers=layers, tied=tied)
        except ValueError:
            return None
        files = [folder / "config.json", *stored.files]
        weights: Weights = stored
        if draft is not None:
            files += draft.files
            weights = DraftWeights(stored, draft.weights, draft.ids)
        return cls(str(named[0]), fingerprint(files, dtype), blueprint, weights, dtype)

    def stack(self, name: str) -> Stack:
        """Its forward pass.

        Raises:
            UnsupportedModel: a weight is missing.
        """
        try:
            return Stack(self.blueprint, self.weights, self.dtype)
        except ValueError as error:
            raise UnsupportedModel(name, str(error)) from error


def _folder(source: str) -> Path | None:
    if (folder := Path(source)).is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(source, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
