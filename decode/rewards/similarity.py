"""Closeness in meaning: cosine similarity of sentence embeddings."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from trimtab.decode.quiet import quiet
from trimtab.decode.rewards.base import LocalReward, Sample, well_formed
from trimtab.decode.rewards.options import OptionError, choice, text, whole

__all__ = ["Similarity", "similarity"]


class Similarity(LocalReward):
    """Cosine, in [-1, 1], of the embeddings of the answer and of what it is compared with.

    Embeddings are the mean of an encoder's last hidden states over the tokens of a text, as in sentence-transformers
    for most of its models.

    Args:
        source: an encoder: a folder or a hub id.
        to: ``reference`` (the closest of the request's references) or ``prompt`` (what was asked).
        pooling: ``mean``, or ``cls`` for models that are trained to put it into the first token.
        batch: texts embedded at a time.
        max_tokens: of a text; the rest is not read. None: what the model takes.

    Raises:
        OptionError: no encoder can be read from ``source``.
    """

    kind = "prefix"

    def __init__(
        self, source: str, to: str = "reference", pooling: str = "mean", batch: int = 32, max_tokens: int | None = None
    ) -> None:
        self.to = choice("to", to, ("reference", "prompt"))
        self.pooling = choice("pooling", pooling, ("mean", "cls"))
        self.batch = whole("batch", batch, 1)
        self.needs_reference = to == "reference"
        self.reads_prompt = to == "prompt"
        self.description = f"similarity to the {to}"
        self._encode = _encoder(text("source", source, "an encoder: a folder or a hub id"), max_tokens)
        self._lock = threading.Lock()  # a tokenizer changes its padding while it works

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        others = [s.references if self.to == "reference" else (s.instruction,) for s in samples]
        texts = list(dict.fromkeys([*(s.text for s in samples), *(o for other in others for o in other)]))
        vectors = dict(zip(texts, self._embedded(texts), strict=True))
        return [
            max(float(vectors[s.text] @ vectors[o]) for o in other) for s, other in zip(samples, others, strict=True)
        ]

    def _embedded(self, texts: Sequence[str]) -> list[Any]:
        """A unit vector per text. Texts of like length share a batch."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: list[Any] = [None] * len(texts)
        with self._lock:
            for start in range(0, len(order), self.batch):
                part = order[start : start + self.batch]
                read = [well_formed(texts[i]) for i in part]
                for i, vector in zip(part, self._encode(read, self.pooling), strict=True):
                    found[i] = vector
        return found


def similarity(
    source: str, to: str = "reference", pooling: str = "mean", batch: int = 32, max_tokens: int | None = None
) -> Similarity:
    """The type ``similarity``."""
    return Similarity(source, to, pooling, batch, max_tokens)


def _encoder(source: str, max_tokens: int | None) -> Any:
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet(source):
            tokenizer: Any = AutoTokenizer.from_pretrained(source)
            model: Any = AutoModel.from_pretrained(source).eval().requires_grad_(False)
    except (OSError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise OptionError("source", source, f"an encoder: a folder or a hub id ({said})") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # masked, so any will do
    positions = int(getattr(model.config, "max_position_embeddings", 512))
    limit = min(positions, tokenizer.model_max_length, max_tokens or positions)

    def encode(texts: list[str], pooling: str) -> Any:
        with torch.inference_mode():
            read = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            hidden = model(**read).last_hidden_state
            mask = read["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(pooled.double(), dim=-1).numpy()

    return encode
