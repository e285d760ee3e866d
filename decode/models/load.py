"""Load a Hugging Face model and refuse, with the reason, what can't be served exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from trimtab.decode.config import ModelConfig
from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.engine.memory import give_back
from trimtab.decode.engine.storage import Step, Storage
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models import bundled
from trimtab.decode.models.acceptance import AcceptanceHead, HiddenForward, with_confidence
from trimtab.decode.models.draft import DraftFiles, bundled_draft, read_draft
from trimtab.decode.models.linear import packing_available
from trimtab.decode.models.modules import ModuleForward, UnsupportedAttention
from trimtab.decode.models.reward import head_values, is_reward, labels_of, load_reward, reward_forward
from trimtab.decode.models.stack import FAMILIES, Stack
from trimtab.decode.quiet import quiet
from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["Forward", "LoadedModel", "load", "resolve"]

# Frequencies of these depend on the longest position in the whole packed batch: one request would change the others.
_REFUSED_ROPE = frozenset({"dynamic", "longrope"})
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
_SELF_TEST_PAGE = 8
# Mean absolute difference to the model's own forward, in standard deviations of its logits. Measured: 3e-6 in float32,
# 0.02 to 0.03 in bfloat16; a wrong mask or position gives 0.3 and more.
_SELF_TEST_BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


class Forward(Protocol):
    """tokens, positions int64 [T], rows int64 [n] -> logits [n, V]."""

    def __call__(self, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, and the shapes that its cache needs.

    Attributes:
        labels: names of the outputs of a reward model's head, which ``forward`` then gives in place of logits.
        draft_ids: int64 [Vd], of a draft with a reduced vocabulary: the id that each of its logits stands for.
        acceptance: of a draft with a trained head: its states [n, S], and which of them are decoded greedily,
            -> the probability, float32 [n], that the target accepts a token drawn from them.
        forward_hidden: as ``forward``, but it gives these states too; without a head, the hidden states [n, D].
    """

    name: str
    source: str
    architecture: str
    forward: Forward
    vocabulary: Vocabulary
    generation_config: GenerationConfig
    vocab_size: int
    context: int
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device
    labels: tuple[str, ...] | None = None
    draft_ids: Tensor | None = None
    acceptance: AcceptanceHead | None = None
    forward_hidden: HiddenForward | None = None

    @property
    def bytes_per_token(self) -> int:
        """Memory that one position takes in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_dtype.itemsize

    def storage(self, pages: int, page_tokens: int) -> Storage:
        return Storage(self.layers, pages, page_tokens, self.kv_heads, self.head_dim, self.kv_dtype, self.device)


def load(name: str, config: ModelConfig) -> LoadedModel:
    """Load ``config.source`` (a bundled name, a folder or a hub id).

    Raises:
        UnsupportedModel: the architecture, its positions or its attention can't be served exactly, or the load-time
            self-test differs from the model's own forward.
    """
    source = resolve(config.source)
    draft = read_draft(source, name)
    if draft is not None:
        source = resolve(draft.spec.target)
    with quiet(source):
        return _load(name, config, source, draft)


def _load(name: str, config: ModelConfig, source: str, draft: DraftFiles | None) -> LoadedModel:
    try:
        hf_config: Any = AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(name, f"no model can be read from {config.source!r}: {_first_line(error)}") from error
    _refuse(name, hf_config)
    device = _device(name, config.device)
    dtype = _dtype(config.dtype, device)
    # Before the weights: while it is made, a tokenizer takes memory (Gemma's 0.4 GB) that they would come on top of.
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    give_back()
    model = _read(name, source, dtype, config, hf_config)
    if draft is not None:
        model = draft.build(model)
    if not getattr(model, "_supports_attention_backend", False) or not model._can_set_attn_implementation():
        raise UnsupportedModel(
            name, f"{type(model).__name__} does not take its attention from transformers' AttentionInterface"
        )
    model = model.to(device).eval().requires_grad_(False)
    own = getattr(model, "generation_config", None)
    generation_config: GenerationConfig = own or GenerationConfig()  # type: ignore[no-untyped-call]
    eos: Any = generation_config.eos_token_id
    text_config = model.config.get_text_config()
    vocab_size = int(text_config.vocab_size)
    # Some checkpoints name ends that their vocabulary doesn't have; no such token is ever drawn.
    eos_ids = None if eos is None else [i for i in ([eos] if isinstance(eos, int) else eos) if 0 <= i < vocab_size]
    vocabulary = Vocabulary(tokenizer, eos_token_ids=eos_ids, name=name, limit=vocab_size)
    context = int(getattr(text_config, "max_position_embeddings", None) or 2048)
    if config.context_tokens is not None:
        context = min(context, config.context_tokens)
    rates = is_reward(hf_config)
    with torch.inference_mode():
        probe = _probe_tokens(vocab_size)
        expected = [(head_values(model, ids) if rates else _logits(model, ids)).float().cpu() for ids in probe]
        architecture = type(model).__name__
        layers, kv_heads, head_dim = _shapes(name, model, text_config)
        stacked = device.type == "cpu" and _is_checked_family(model)
        forward: Forward
        forward_hidden = head = None
        if rates:
            forward = reward_forward(model, stacked)
        else:
            forward = Stack(model, _stored_table(model, source, config)) if stacked else ModuleForward(model)
            head = None if draft is None else draft.acceptance(device)
            forward_hidden = forward.with_hidden if head is None else with_confidence(forward.with_hidden)
        loaded = LoadedModel(
            name=name,
            source=config.source,
            architecture=architecture,
            forward=forward,
            vocabulary=vocabulary,
            generation_config=generation_config,
            vocab_size=vocab_size,
            context=context,
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            kv_dtype=torch.float32 if device.type == "cpu" else dtype,
            device=device,
            labels=labels_of(hf_config) if rates else None,
            draft_ids=None if draft is None else draft.ids,
            acceptance=head,
            forward_hidden=forward_hidden,
        )
        _self_test(loaded, probe, expected)
    return loaded


def _read(name: str, source: str, dtype: torch.dtype, config: ModelConfig, hf_config: Any) -> Any:
    """The model of a checkpoint, with its weights."""
    try:
        if is_reward(hf_config):
            return load_reward(name, source, dtype, config.trust_remote_code)
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(name, _first_line(error)) from error


def _stored_table(model: Any, source: str, config: ModelConfig) -> Tensor | None:
    """The embedding as the checkpoint holds it, where that is narrower than the model as loaded; None elsewhere.

    It stays in the mapped file, of which only the rows that are used are ever read: of Gemma 3 270M in float32 that
    saves 671 of 1,742 MB.
    """
    own: Tensor = model.get_input_embeddings().weight
    if own.dtype is not torch.float32:
        return None
    stored: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", trust_remote_code=config.trust_remote_code)
    table: Tensor = stored.get_input_embeddings().weight.detach()
    some = slice(None, None, max(1, len(own) // 512))
    same = table.shape == own.shape and torch.equal(table[some].float(), own[some])
    return table if same and table.dtype.itemsize < own.dtype.itemsize else None


def _logits(model: Any, ids: list[int]) -> Tensor:
    """[T, V] of the model's own forward."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits


def resolve(source: str) -> str:
    if folder := bundled_draft(source):
        return str(folder)
    if any(source == model.name for model in bundled.bundled()):
        return str(bundled.ensure(source))
    return str(Path(source).expanduser()) if source.startswith("~") else source


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _refuse(name: str, config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(name, "it is an encoder-decoder model, only decoder-only models are served")
    text = config.get_text_config()
    rope: dict[str, Any] = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    kinds = [rope, *(v for v in rope.values() if isinstance(v, Mapping))]
    for kind in kinds:
        rope_type = kind.get("rope_type", kind.get("type"))
        if rope_type in _REFUSED_ROPE:
            raise UnsupportedModel(
                name,
                f"its rotary positions are of type {rope_type!r}: their frequencies depend on the longest request in a "
                "batch, so one request would change another's answer",
            )
    other = set(getattr(text, "layer_types", None) or ()) - _LAYER_TYPES
    if other:
        raise UnsupportedModel(name, f"it has layers of type {', '.join(sorted(other))}; served are full and sliding")


def _device(name: str, wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UnsupportedModel(name, f"device {wanted!r} is not available here; accepted: 'auto', 'cpu'")
    return device


def _dtype(wanted: str, device: torch.device) -> torch.dtype:
    if wanted != "auto":
        found = getattr(torch, wanted)
        assert isinstance(found, torch.dtype)
        return found
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast and packing_available(torch.bfloat16) else torch.float32
    return torch.bfloat16


def _is_checked_family(model: Any) -> bool:
    layers = list(getattr(getattr(model, "model", None), "layers", None) or ())
    return bool(layers) and all(type(layer).__name__ in FAMILIES for layer in layers)


def _shapes(name: str, model: Any, config: Any) -> tuple[int, int, int]:
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    layers = int(config.num_hidden_layers)
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModel(name, "its layers share keys and values with one another")
    return layers, kv_heads, dim


def _probe_tokens(vocab_size: int) -> list[list[int]]:
    """Two sequences of unequal length whose ids spread over the vocabulary."""
    return [[(7919 * (i + 1) + 104729 * k) % vocab_size for i in range(n)] for k, n in enumerate((21, 10))]


def _self_test(model: LoadedModel, probe: list[list[int]], expected: list[Tensor]) -> None:
    """Both sequences packed, in two pieces over scattered pages, against the model's own forward."""
    storage = model.storage(16, _SELF_TEST_PAGE)
    pages = [[9, 2, 12], [4, 7]]
    parts: list[list[Tensor]] = [[], []]
    try:
        for begins, ends in (((0, 0), (18, 4)), ((18, 4), (21, 10))):
            spans = [Span(probe[k][begins[k] : ends[k]], begins[k], pages[k], ends[k] - begins[k]) for k in (0, 1)]
            batch = RaggedBatch.pack(spans, _SELF_TEST_PAGE)
            tensors = (torch.from_numpy(a).to(model.device) for a in (batch.tokens, batch.positions))
            tokens, positions = tensors
            logits = model.forward(
                tokens, positions, storage.begin(batch), torch.from_numpy(batch.rows).to(model.device)
            )
            first = ends[0] - begins[0]
            parts[0].append(logits[:first])
            parts[1].append(logits[first:])
    except UnsupportedAttention as error:
        raise UnsupportedModel(model.name, str(error)) from error
    for part, truth in zip(parts, expected, strict=True):
        found = torch.cat(part).float().cpu()
        difference = float((found - truth).abs().mean() / truth.std())
        if not difference < _SELF_TEST_BOUND[model.dtype]:
            raise UnsupportedModel(
                model.name,
                f"the self-test at load differs from {model.architecture}'s own forward by {difference:.3g} standard "
                "deviations: its attention does something this engine doesn't know",
            )
