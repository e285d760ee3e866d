"""Load a Hugging Face model and refuse, with the reason, what can't be served exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.decode.config import ModelConfig
from trimtab.decode.engine.memory import give_back
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models.acceptance import with_confidence
from trimtab.decode.models.blueprint import Blueprint
from trimtab.decode.models.checkpoint import Checkpoint
from trimtab.decode.models.draft import DraftFiles, read_draft
from trimtab.decode.models.linear import packing_available
from trimtab.decode.models.loaded import LoadedModel
from trimtab.decode.models.modules import ModuleForward
from trimtab.decode.models.reading import Reading, recall_reading, remember_reading
from trimtab.decode.models.reward import head_values, is_reward, labels_of, load_reward, reward_forward
from trimtab.decode.models.self_test import Expected, probe, recall, remember, self_test
from trimtab.decode.models.sources import check_source, resolve
from trimtab.decode.models.stack import Stack
from trimtab.decode.models.weights import ModuleWeights
from trimtab.decode.quiet import quiet
from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["LoadedModel", "load"]

# Frequencies of these depend on the longest position in the whole packed batch: one request would change the others.
_REFUSED_ROPE = frozenset({"dynamic", "longrope"})
_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is to be loaded.

    Attributes:
        source: a folder or a hub id; of a draft, its target.
        given: configuration of what ``source`` holds.
        known: what was remembered of it.
        rates: whether it is a reward model.
    """

    name: str
    source: str
    config: ModelConfig
    given: Any
    known: Reading | None
    draft: DraftFiles | None
    rates: bool
    device: torch.device
    dtype: torch.dtype


def load(name: str, config: ModelConfig) -> LoadedModel:
    """Load ``config.source`` (a bundled name, a folder or a hub id).

    Raises:
        UnsupportedModel: the architecture, its positions or its attention can't be served exactly, or the load-time
            self-test differs from the model's own forward.
    """
    check_source(name, config.source)
    source = resolve(config.source)
    draft = read_draft(source, name)
    if draft is not None:
        source = resolve(draft.spec.target)
    known = None if config.trust_remote_code else recall_reading(source)
    if known is not None:
        return _load(name, config, source, draft, known)
    with quiet(source):
        return _load(name, config, source, draft, None)


def _load(name: str, config: ModelConfig, source: str, draft: DraftFiles | None, known: Reading | None) -> LoadedModel:
    given: Any = _config(name, config, source) if known is None else known.config
    _refuse(name, given)
    rates, device = is_reward(given), _device(name, config.device)
    asked = _Asked(name, source, config, given, known, draft, rates, device, _dtype(config.dtype, device))
    # Before the weights: while it is made, a tokenizer takes memory (Gemma's 0.4 GB) that they would come on top of.
    tokenizer = _tokenizer(asked)
    give_back()
    text_config = given.get_text_config()
    vocab_size = int(text_config.vocab_size)
    generation_config = _generation_config(asked)
    eos: Any = generation_config.eos_token_id
    # Some checkpoints name ends that their vocabulary doesn't have; no such token is ever drawn.
    eos_ids = None if eos is None else [i for i in ([eos] if isinstance(eos, int) else eos) if 0 <= i < vocab_size]
    context = int(getattr(text_config, "max_position_embeddings", None) or 2048)
    if config.context_tokens is not None:
        context = min(context, config.context_tokens)
    layers, kv_heads, head_dim = _shapes(name, text_config if draft is None else draft.config(text_config))
    with torch.inference_mode():
        architecture, forward, expected = _forward(asked)
        head = None if draft is None else draft.acceptance(device)
        hidden = None if rates else forward.with_hidden
        loaded = LoadedModel(
            name=name,
            source=config.source,
            architecture=architecture,
            forward=forward,
            vocabulary=Vocabulary(tokenizer, eos_token_ids=eos_ids, name=name, limit=vocab_size),
            generation_config=generation_config,
            vocab_size=vocab_size,
            context=context,
            layers=layers,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=asked.dtype,
            kv_dtype=torch.float32 if device.type == "cpu" else asked.dtype,
            device=device,
            labels=labels_of(given) if rates else None,
            draft_ids=None if draft is None else draft.ids,
            acceptance=head,
            forward_hidden=hidden if head is None or hidden is None else with_confidence(hidden),
        )
        self_test(loaded, expected)
    if known is None and isinstance(forward, Stack) and not rates and not config.trust_remote_code:
        remember_reading(source, given, generation_config, tokenizer)
        give_back()
    return loaded


def _config(name: str, config: ModelConfig, source: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UnsupportedModel(name, f"no model can be read from {config.source!r}: {_first_line(error)}") from error


def _tokenizer(asked: _Asked) -> Any:
    if asked.known is not None:
        return asked.known.tokenizer()
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(asked.source, trust_remote_code=asked.config.trust_remote_code)


def _forward(asked: _Asked) -> tuple[str, Any, Expected]:
    """The class of the model, its forward pass here, and what its own gives for the self-test."""
    run = asked.given if asked.draft is None else asked.draft.config(asked.given)
    blueprint = Blueprint.of(run) if asked.device.type == "cpu" else None
    checkpoint = _checkpoint(asked, blueprint)
    expected = None if checkpoint is None else recall(checkpoint.key)
    if checkpoint is not None and expected is not None:
        return checkpoint.architecture, checkpoint.stack(asked.name), expected
    with quiet(asked.source):
        model = _own(asked)
    architecture = type(model).__name__
    read = head_values if asked.rates else _logits
    sequences = probe(int(asked.given.get_text_config().vocab_size))
    expected = Expected.of([read(model, ids) for ids in sequences])
    checkpoint = checkpoint or _checkpoint(asked, blueprint)  # what comes from a hub is there by now
    if checkpoint is not None:
        remember(checkpoint.key, expected)
        del model
        give_back()
        return architecture, checkpoint.stack(asked.name), expected
    if asked.rates:
        return architecture, reward_forward(model, blueprint), expected
    if blueprint is not None:
        return architecture, Stack(blueprint, ModuleWeights(model), asked.dtype), expected
    return architecture, ModuleForward(model), expected


def _checkpoint(asked: _Asked, blueprint: Blueprint | None) -> Checkpoint | None:
    if blueprint is None or asked.rates:
        return None
    return Checkpoint.of(asked.source, asked.given, asked.draft, blueprint, asked.dtype)


def _own(asked: _Asked) -> Any:
    """The model of transformers, with its weights."""
    from transformers import AutoModelForCausalLM

    name, source, remote = asked.name, asked.source, asked.config.trust_remote_code
    try:
        model: Any = (
            load_reward(name, source, asked.dtype, remote)
            if asked.rates
            else AutoModelForCausalLM.from_pretrained(source, dtype=asked.dtype, trust_remote_code=remote)
        )
    except (OSError, ValueError) as error:
        raise UnsupportedModel(name, _first_line(error)) from error
    if asked.draft is not None:
        model = asked.draft.build(model)
    if not getattr(model, "_supports_attention_backend", False) or not model._can_set_attn_implementation():
        raise UnsupportedModel(
            name, f"{type(model).__name__} does not take its attention from transformers' AttentionInterface"
        )
    return model.to(asked.device).eval().requires_grad_(False)


def _generation_config(asked: _Asked) -> Any:
    """That of the model's files, else what its configuration says."""
    if asked.known is not None:
        return asked.known.generation_config
    from transformers import GenerationConfig

    if asked.rates:
        return GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        return GenerationConfig.from_pretrained(asked.source)
    except OSError:
        return GenerationConfig.from_model_config(asked.given)


def _logits(model: Any, ids: list[int]) -> Tensor:
    """[T, V] of the model's own forward."""
    logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device)).logits[0]
    return logits


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


def _shapes(name: str, config: Any) -> tuple[int, int, int]:
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    layers = int(config.num_hidden_layers)
    if getattr(config, "num_kv_shared_layers", 0):
        raise UnsupportedModel(name, "its layers share keys and values with one another")
    return layers, kv_heads, dim
