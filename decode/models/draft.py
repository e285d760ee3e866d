"""Drafts: a few layers between a target's own embedding and a cut of its head.

A draft on disk is a folder with what differs from its target only::

    draft.json         the target's source, the layers that it was started from, the shape of the acceptance head
    model.safetensors  those layers and the last norm, the kept ids, and the acceptance head

The target's embedding and head are not in it: they are read from the target's own files, so a draft of two layers of
a 135M model takes 14 MB. The head has rows for the kept ids only (at 135M the head is a quarter of the model, and of a
small draft it would be nearly all); a token without a row has q = 0, which is exact.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models.acceptance import AcceptanceHead

__all__ = ["DraftFiles", "DraftSpec", "assemble", "read_draft", "write_draft"]

_SPEC, _WEIGHTS = "draft.json", "model.safetensors"
_FORMAT = 1
_IDS, _HEAD = "draft_ids", "acceptance."


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftSpec:
    """What ``draft.json`` says.

    Attributes:
        target: the target's source: a bundled name, a hub id or a folder (relative to the draft's own with ``./``).
        layers: the target's layers that the draft's were started from; decides the type of each (full or sliding).
        vocab_size: of the target; another target is refused.
        hidden_size: of the target.
        head_blocks: residual blocks of the acceptance head; None: there is no head.
        head_width: width of these blocks.
    """

    target: str
    layers: tuple[int, ...]
    vocab_size: int
    hidden_size: int
    head_blocks: int | None = None
    head_width: int | None = None


@dataclass(frozen=True, slots=True)
class DraftFiles:
    """A draft as it was read from its folder.

    Attributes:
        spec: its description.
        ids: int64 [Vd], ascending: the target's id of each row of the head.
        weights: of the layers and the last norm.
        head: weights of the acceptance head; empty if there is none.
        files: where it was read.
    """

    name: str
    spec: DraftSpec
    ids: Tensor
    weights: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    files: tuple[Path, ...] = ()

    def config(self, target: Any) -> Any:
        """The draft's configuration, from its target's.

        Raises:
            UnsupportedModel: the target isn't the one that the draft was made for.
        """
        for field in ("vocab_size", "hidden_size"):
            expected, found = getattr(self.spec, field), getattr(target, field)
            if expected != found:
                raise UnsupportedModel(
                    self.name, f"it drafts for a target whose {field} is {expected}; {self.spec.target!r} has {found}"
                )
        return _config_of(target, self.spec.layers)

    def build(self, target: Any) -> Any:
        """The draft as a causal LM of the target's class, in its dtype, with logits [.., Vd].

        Raises:
            UnsupportedModel: the target isn't the one that the draft was made for.
        """
        self.config(target.config)
        model = assemble(target, self.spec.layers, self.ids)
        missing, unexpected = model.load_state_dict(dict(self.weights), strict=False)
        wrong = [key for key in missing if key.startswith(("model.layers.", "model.norm."))] + unexpected
        if wrong:
            raise UnsupportedModel(self.name, f"its weights don't fit its layers: {', '.join(sorted(wrong)[:4])}")
        return model

    def acceptance(self, device: torch.device) -> AcceptanceHead | None:
        """The trained head, ready to run; None if the draft has none."""
        if self.spec.head_blocks is None or self.spec.head_width is None:
            return None
        head = AcceptanceHead(self.spec.hidden_size + 1, self.spec.head_blocks, self.spec.head_width)
        try:
            head.load_state_dict({key: value.float() for key, value in self.head.items()})
        except RuntimeError as error:
            raise UnsupportedModel(self.name, f"its acceptance head doesn't fit draft.json: {error}") from error
        return head.to(device).eval().requires_grad_(False)


def assemble(target: Any, layers: Sequence[int], ids: Tensor) -> Any:
    """A causal LM of the target's class with copies of some of its layers, sharing its embedding.

    Args:
        target: the target, of any class whose parts are ``model.{embed_tokens, layers, norm}`` and ``lm_head``.
        layers: indices of its layers, in the order in which the draft runs them.
        ids: int64 [Vd], the rows of its head that the draft keeps.

    Raises:
        UnsupportedModel: the target is laid out otherwise, or has no such layers.
    """
    inner: Any = getattr(target, "model", None)
    head: Any = getattr(target, "lm_head", None)
    if not all(hasattr(inner, part) for part in ("embed_tokens", "layers", "norm")) or type(head) is not nn.Linear:
        raise UnsupportedModel(type(target).__name__, "no draft can be cut from it: it isn't laid out as Llama is")
    config = _config_of(target.config, layers)
    with torch.device("meta"):
        model = type(target)(config)
    for name, _ in inner.named_children():
        if name not in ("layers", "norm"):
            setattr(model.model, name, getattr(inner, name))
    model.model.norm = copy.deepcopy(inner.norm)
    model.model.layers = nn.ModuleList(copy.deepcopy(inner.layers[layer]) for layer in layers)
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = index
        for module in layer.modules():  # copies of the target's, and what a model's attention is is written there
            if hasattr(module, "config"):
                module.config = model.config
    weight = head.weight.detach().index_select(0, ids.to(head.weight.device))
    model.lm_head = nn.Linear(weight.shape[1], len(ids), bias=head.bias is not None, device="meta")
    model.lm_head.weight = nn.Parameter(weight, requires_grad=False)
    if head.bias is not None:
        model.lm_head.bias = nn.Parameter(head.bias.detach().index_select(0, ids.to(head.bias.device)), False)
    model.generation_config = target.generation_config
    return model.eval()


def _config_of(target: Any, layers: Sequence[int]) -> Any:
    """The configuration of some of a target's layers, from the target's.

    Raises:
        UnsupportedModel: it has no such layers.
    """
    total = int(target.num_hidden_layers)
    if not layers or any(not 0 <= layer < total for layer in layers):
        named = (getattr(target, "architectures", None) or [target.model_type])[0]
        raise UnsupportedModel(str(named), f"layers {list(layers)} asked for; accepted: 0 to {total - 1}")
    config = copy.deepcopy(target)
    config.num_hidden_layers = len(layers)
    config.tie_word_embeddings = False
    if getattr(config, "layer_types", None):
        config.layer_types = [target.layer_types[layer] for layer in layers]
    return config


def write_draft(
    folder: Path, spec: DraftSpec, ids: Tensor, weights: Mapping[str, Tensor], head: Mapping[str, Tensor] | None = None
) -> None:
    """Write a draft's folder; weights and head are stored in bfloat16.

    Args:
        folder: made if need be; a draft in it is replaced.
        spec: its description.
        ids: int64 [Vd], ascending.
        weights: state of the draft; only layers and the last norm are kept.
        head: state of the acceptance head.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in weights.items() if key.startswith(("model.layers.", "model.norm."))}
    kept |= {_HEAD + key: value for key, value in (head or {}).items()}
    tensors = {key: value.detach().to("cpu", torch.bfloat16).contiguous() for key, value in kept.items()}
    tensors[_IDS] = ids.to(torch.int32).contiguous()
    work = folder / f"{_WEIGHTS}.tmp"
    save_file(tensors, work)
    work.rename(folder / _WEIGHTS)
    (folder / _WEIGHTS).chmod(0o644)  # safetensors leaves it readable by its owner only
    text = {"format": _FORMAT, **asdict(spec)}
    (folder / _SPEC).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")


def read_draft(source: str | Path, name: str = "draft") -> DraftFiles | None:
    """What a folder holds; None if it isn't a draft's.

    Raises:
        UnsupportedModel: it is, but can't be read; says what is wrong.
    """
    folder = Path(source)
    if not (folder / _SPEC).is_file():
        return None
    try:
        found = json.loads((folder / _SPEC).read_text(encoding="utf-8"))
        version = found.pop("format")
        if version != _FORMAT:
            raise UnsupportedModel(name, f"draft.json has format {version!r}; accepted: {_FORMAT}")
        spec = DraftSpec(**{**found, "layers": tuple(found["layers"])})
        tensors = load_file(folder / _WEIGHTS)
        ids = tensors.pop(_IDS).to(torch.int64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UnsupportedModel(name, f"no draft can be read from {folder.name!r}: {error}") from error
    if len(ids) == 0 or int(ids[0]) < 0 or int(ids[-1]) >= spec.vocab_size or bool((ids.diff() <= 0).any()):
        raise UnsupportedModel(name, f"its kept ids must ascend within 0 to {spec.vocab_size - 1}")
    if spec.target.startswith("."):
        spec = DraftSpec(**{**asdict(spec), "target": str((folder / spec.target).resolve())})
    head = {key.removeprefix(_HEAD): value for key, value in tensors.items() if key.startswith(_HEAD)}
    weights = {key: value for key, value in tensors.items() if not key.startswith(_HEAD)}
    return DraftFiles(name, spec, ids, weights, head, (folder / _SPEC, folder / _WEIGHTS))
