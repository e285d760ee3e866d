"""How tokens are drawn, and when an answer ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from trimtab.decode.frozen import FrozenDict, freeze_fields
from trimtab.decode.request.fields import Range

__all__ = ["Sampling", "Stopping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a token is drawn from a distribution. ``None`` takes the model's own default.

    Attributes:
        temperature: in [0, 10]; 0 is greedy. Without a default in the model's generation config it is 1.
        top_k: keep the k most likely tokens, >= 0; 0 keeps all.
        top_p: keep the smallest set of mass >= top_p, in (0, 1].
        min_p: keep tokens of at least min_p times the top probability, in [0, 1).
        repetition_penalty: in [1e-30, 10]; divides positive and multiplies negative logits of tokens already present.
        logit_bias: token id -> finite number added to its logit; -inf bans it.
        seed: unsigned 32 bits; None draws one, which the answer reports.

    Filters apply in the order of Hugging Face transformers: penalty, bias, temperature, top-k, top-p, min-p.
    """

    temperature: Annotated[float | None, Range("[0, 10]")] = None
    top_k: Annotated[int | None, Range("[0, inf)")] = None
    top_p: Annotated[float | None, Range("(0, 1]")] = None
    min_p: Annotated[float | None, Range("[0, 1)")] = None
    repetition_penalty: Annotated[float | None, Range("[1e-30, 10]")] = None
    logit_bias: Mapping[int, float] = field(default_factory=FrozenDict)
    seed: Annotated[int | None, Range("[0, inf)")] = None

    def __post_init__(self) -> None:
        freeze_fields(self, "logit_bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When an answer ends. Counts are tokens written, whoever wrote them.

    Attributes:
        max_new_tokens: most tokens of an answer.
        min_new_tokens: before so many no token ends the answer, and a stop string is ordinary text.
        stop: texts that end the answer. One that is the name of a special token (``<|im_end|>``) of a model that writes
            stands for that token, too, which has no text in an answer. One that holds such a name beside other text
            can't match and is refused.
        stop_token_ids: ids that end the answer, of the requested model and of models that share its ids.
        eos_token_ids: the requested model's own ends in place of those it comes with; empty leaves it these. Other
            models that write keep theirs.
        ignore_eos: no model's own end ends the answer.
        include_stop: whether the text keeps the stop string. A special token has no text in any case.
        time_budget: seconds from admission; then the answer so far is returned.
    """

    max_new_tokens: Annotated[int, Range("[1, max_new_tokens]")] = 256
    min_new_tokens: Annotated[int, Range("[0, max_new_tokens]")] = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop: bool = False
    time_budget: Annotated[float | None, Range("(0, inf)", "of seconds")] = None
    eos_token_ids: tuple[int, ...] = ()
