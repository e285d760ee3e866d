"""Builds a tokenizer from what a GGUF file says of it.

transformers has converters for this, but what they give depends on its version: 5.17 makes SmolLM2's EOS token its BOS
token and gives Gemma another algorithm, and no version so far knows SmolLM's rule for digits. Token ids must not depend
on the version, so the two kinds that the bundled models need are built here, the same way everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["build_tokenizer"]

_CONTROL, _USER_DEFINED = 3, 4  # token types of the GGUF format
_SPACE = "\u2581"  # how SentencePiece writes a space


def build_tokenizer(fields: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer, with its special tokens and chat template.

    Args:
        fields: the metadata of the file, from key to plain value.

    Raises:
        ValueError: the file has a kind of tokenizer that is not known here.
    """
    from transformers import PreTrainedTokenizerFast

    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    architecture = fields["general.architecture"]
    if kind == ("gpt2", "smollm"):
        tokenizer = _smollm(fields)
    elif kind == ("llama", "default") and architecture == "gemma3":
        tokenizer = _gemma(fields)
    else:
        raise ValueError(
            f"tokenizer {kind} of architecture {architecture!r}: accepted: ('gpt2', 'smollm'), "
            "or ('llama', 'default') of architecture 'gemma3'"
        )
    tokens = fields["tokenizer.ggml.tokens"]
    special = {
        name: tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (
            ("bos_token", "bos"),
            ("eos_token", "eos"),
            ("unk_token", "unknown"),
            ("pad_token", "padding"),
        )
    }
    types = fields["tokenizer.ggml.token_type"]
    for wanted, add in ((_CONTROL, tokenizer.add_special_tokens), (_USER_DEFINED, tokenizer.add_tokens)):
        names = [name for name, type_ in zip(_spelled(tokens), types, strict=True) if type_ == wanted]
        add([AddedToken(name, normalized=False, special=wanted == _CONTROL) for name in names])
    if tokenizer.get_vocab_size(with_added_tokens=True) != len(tokens):
        raise ValueError(f"the vocabulary has {len(tokens)} tokens, the tokenizer {tokenizer.get_vocab_size()}")
    if fields.get("tokenizer.ggml.add_bos_token"):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    if template := fields.get("tokenizer.chat_template"):
        special["chat_template"] = template
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=fields[f"{architecture}.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def _spelled(tokens: list[str]) -> list[str]:
    """The tokens as SentencePiece writes them: GGUF has runs of spaces as real spaces."""
    return [_SPACE * len(token) if len(token) > 1 and not token.strip(" ") else token for token in tokens]


def _smollm(fields: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE; text is cut at every digit first, then by GPT-2's rule.

    The order matters even though the vocabulary has no token of two digits: cut by GPT-2's rule alone, "\\n\\n1" is
    "\\n", "\\n", "1", where the model was trained on "\\n\\n", "1".
    """
    vocabulary = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _gemma(fields: Mapping[str, Any]) -> Tokenizer:
    """SentencePiece's BPE with bytes as the fallback. The whole text is one word; spaces are part of the tokens.

    The file lists no merges. Gemma's vocabulary is in the order in which its merges were learned, so any split of a
    token into two tokens is a merge of that token's rank.
    """
    tokens = _spelled(fields["tokenizer.ggml.tokens"])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (token[:cut], token[cut:])
        for token in tokens
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    unknown = tokens[fields["tokenizer.ggml.unknown_token_id"]]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer
