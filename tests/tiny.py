"""Random models of a few thousand weights, one per architecture, each with a tokenizer: small enough to run thousands.

Weights are drawn wide, biases and norms too, so that a wrong mask, position or weight moves every logit visibly.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn

CONTEXT = 4096
VOCAB = 304  # wider than the tokenizer: the last ids have no bytes
WINDOW = 8
SPECIAL = ("<bos>", "<eos>", "<user>", "<bot>")
CHAT = (
    "{{ '<bos>' }}{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }}"
    "{{ m['content'] }}{% endfor %}{{ '<bot>' if add_generation_prompt else '' }}"
)

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}

# Kind -> (configuration class, model class, arguments).
KINDS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _COMMON),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", _COMMON),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**_COMMON, "head_dim": 16}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**_COMMON, "sliding_window": WINDOW}),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {
            **_COMMON,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "query_pre_attn_scalar": 12,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": VOCAB, "n_positions": 512, "n_embd": 48, "n_layer": 2, "n_head": 4},
    ),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {
            "vocab_size": VOCAB,
            "hidden_size": 48,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 48,
        },
    ),
}
# Those that the engine runs as a flat stack of calls rather than through the model's own modules.
STACKED = ("llama", "qwen2", "qwen3", "mistral", "gemma3")


_PAIRS = ("th", "er", "on", "an", "re", "he", "in", "ed", "nd", "ha", "at", "en", "es", "of", "or", "nt", "ea", "ti")


@functools.cache
def tokenizer() -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: all bytes, some merges, four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(pair[0], pair[1]) for pair in _PAIRS]
    merges += [("Ġ", "th"), ("Ġth", "e"), ("Ġ", "a"), ("in", "g"), ("Ġ", "s"), ("an", "d"), ("Ġ", "and"), ("i", "on")]
    merges += [("Ġ", "w"), ("Ġ", "of")]
    vocabulary = {token: i for i, token in enumerate([*alphabet, *dict.fromkeys(a + b for a, b in merges)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    made = hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
    made.chat_template = CHAT
    return made


def make(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A random model in float32; ``changes`` go to its configuration."""
    config_name, model_name, arguments = KINDS[kind]
    own = tokenizer()
    ends = {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id, "pad_token_id": None}
    config = getattr(hf, config_name)(**{**arguments, **ends, **changes})
    model = getattr(hf, model_name)(config).eval()
    randomise(model, seed)
    model.generation_config = hf.GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.eos_token_id
    )
    return model


def randomise(model: nn.Module, seed: int) -> None:
    """Give every weight a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * (1.5 / parameter.shape[-1] ** 0.5))
            else:
                parameter.add_(noise * 0.2)


def save(model: Any, folder: Path) -> Path:
    """Write a model and the tokenizer where the engine can load them."""
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
