"""A transformers ``GenerationConfig`` as sampling and stopping of a request, or refused by name.

Every field is one of: *mapped* (it means the same here), *harmless* (it cannot change the tokens of a run without
beams or an assistant model), *neutral only* (accepted at the value that switches it off). A field that this table does
not know is refused when it is set, so a newer transformers cannot add one that is ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab.decode.errors import InvalidRequest, Violation

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["HARMLESS", "MAPPED", "NEUTRAL", "from_generation_config"]

# Mapped by from_generation_config, in the meaning that generate() gives them.
MAPPED = frozenset(
    {
        "max_new_tokens",
        "min_new_tokens",
        "max_time",
        "stop_strings",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "eos_token_id",
        "suppress_tokens",
        "bad_words_ids",
        "sequence_bias",
    }
)

# Any value is accepted: bookkeeping, speed, what beams or an assistant would use, and a normalisation that softmax
# repeats anyway.
HARMLESS = frozenset(
    {
        "pad_token_id",
        "bos_token_id",
        "decoder_start_token_id",
        "return_dict_in_generate",
        "renormalize_logits",
        "early_stopping",
        "length_penalty",
        "use_cache",
        "cache_config",
        "max_cache_len",
        "low_memory",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "continuous_batching_config",
        "is_assistant",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "assistant_confidence_threshold",
        "assistant_lookbehind",
        "target_lookbehind",
        "max_matching_ngram_size",
        "transformers_version",
    }
)

# Accepted only at these values (None is always accepted), which switch the field off.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "max_length": (20,),  # the default of generate(), which everybody overrides
    "min_length": (0,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "diversity_penalty": (0.0,),
    "use_mtp": (False,),
    "cache_implementation": ("dynamic", "static", "hybrid", "offloaded", "offloaded_static", "paged"),
    "top_h": (),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0, 1.0),
    "eta_cutoff": (0.0, 1.0),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "remove_invalid_values": (False,),
    "exponential_decay_length_penalty": (),
    "begin_suppress_tokens": ([], ()),
    "token_healing": (False,),
    "guidance_scale": (1.0,),
    "watermarking_config": (),
    "num_return_sequences": (1,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_scores": (False,),
    "output_logits": (False,),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "assistant_ensemble_weight": (),
    "speculation_type": (),
    "penalty_alpha": (0.0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
}

_INSTEAD = {
    "max_length": "max_new_tokens, which does not count the prompt",
    "min_length": "min_new_tokens",
    "num_return_sequences": "the search that keeps several candidates",
    "output_scores": "top_logprobs",
    "output_logits": "top_logprobs",
    "prompt_lookup_num_tokens": "draw=",
    "use_mtp": "draw=",
}

_TOP_K_DEFAULT = 50  # GenerationConfig._get_default_generation_params, transformers 5.23


def from_generation_config(
    config: GenerationConfig, model_defaults: GenerationConfig | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of ``Sampling`` and of ``Stopping`` that a generation config sets, as keyword arguments.

    The meaning is that of ``generate(generation_config=config)``: without ``do_sample`` decoding is greedy; with it,
    what is unset takes transformers' defaults (``top_k`` 50), not the model's. ``eos_token_id`` replaces the requested
    model's own end tokens; other models that write, such as a nudger, keep theirs. Unlike ``generate``, the text does
    not keep the stop string (see ``Stopping.include_stop``).

    Args:
        config: the configuration; duck-typed, so that reading one does not import transformers.
        model_defaults: the model's own generation config. ``generate`` fills unset fields from it, and an
            ``eos_token_id`` equal to its own stays an ordinary end of text.

    Raises:
        InvalidRequest: naming *every* field that is set and not supported.
    """
    if not hasattr(config, "do_sample"):
        raise InvalidRequest.of("generation_config", config, "a transformers GenerationConfig")
    values = {name: value for name, value in vars(config).items() if not name.startswith("_") and value is not None}
    own_eos: tuple[int, ...] = ()
    if model_defaults is not None:
        defaults = {n: v for n, v in vars(model_defaults).items() if n in MAPPED and v is not None}
        own_eos = _ids(defaults.get("eos_token_id"))
        values = defaults | values
    refused = _refused(values)
    bias = _logit_bias(values, refused)
    if refused:
        raise InvalidRequest(refused)
    sampling: dict[str, Any] = {}
    if values.get("do_sample"):
        sampling["temperature"] = values.get("temperature", 1.0)
        sampling["top_k"] = values.get("top_k", _TOP_K_DEFAULT)
        sampling["top_p"] = values.get("top_p", 1.0)
        sampling["min_p"] = values.get("min_p", 0.0)
    else:
        sampling["temperature"] = 0.0
    sampling["repetition_penalty"] = values.get("repetition_penalty", 1.0)
    if bias:
        sampling["logit_bias"] = bias
    return sampling, _stopping(values, own_eos)


def _refused(values: Mapping[str, Any]) -> list[Violation]:
    found = []
    for name, value in sorted(values.items()):
        path = f"generation_config.{name}"
        if name in NEUTRAL:
            if name == "max_length" and "max_new_tokens" in values:
                continue  # generate() lets max_new_tokens win
            if not any(value == neutral for neutral in NEUTRAL[name]):
                off = " or ".join(map(repr, NEUTRAL[name][:1])) or "None"
                hint = f"; use {_INSTEAD[name]}" if name in _INSTEAD else ""
                found.append(Violation.of(path, value, f"unset or {off}: not supported{hint}"))
        elif name not in MAPPED and name not in HARMLESS:
            found.append(Violation.of(path, value, "unset: not supported"))
    return found


def _logit_bias(values: Mapping[str, Any], refused: list[Violation]) -> dict[int, float]:
    """Single-token bans and biases as one mapping; a ban wins. Longer sequences are added to ``refused``."""
    bias: dict[int, float] = {}
    for sequence, amount in _sequence_bias(values.get("sequence_bias")):
        if len(sequence) == 1:
            bias[sequence[0]] = bias.get(sequence[0], 0.0) + float(amount)
        else:
            accepted = "sequences of a single token"
            refused.append(Violation.of("generation_config.sequence_bias", list(sequence), accepted))
    eos = _ids(values.get("eos_token_id"))
    for sequence in values.get("bad_words_ids") or ():
        if len(sequence) != 1:
            refused.append(Violation.of("generation_config.bad_words_ids", sequence, "words of a single token"))
        elif sequence[0] not in eos:  # generate() never bans the end token by this field
            bias[sequence[0]] = float("-inf")
    return bias | dict.fromkeys(_ids(values.get("suppress_tokens")), float("-inf"))


def _sequence_bias(value: Any) -> list[tuple[Sequence[int], float]]:
    """Both forms that transformers takes: a mapping from tuples, or a list of [tokens, bias]."""
    if isinstance(value, Mapping):
        return list(value.items())
    return [(tuple(tokens), amount) for tokens, amount in value or ()]


def _stopping(values: Mapping[str, Any], own_eos: tuple[int, ...]) -> dict[str, Any]:
    stopping: dict[str, Any] = {
        ours: values[theirs]
        for ours, theirs in (
            ("max_new_tokens", "max_new_tokens"),
            ("min_new_tokens", "min_new_tokens"),
            ("time_budget", "max_time"),
        )
        if theirs in values
    }
    if strings := values.get("stop_strings"):
        stopping["stop"] = (strings,) if isinstance(strings, str) else tuple(strings)
    eos = _ids(values.get("eos_token_id"))
    if eos and set(eos) != set(own_eos):
        stopping["eos_token_ids"] = eos
    return stopping


def _ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
