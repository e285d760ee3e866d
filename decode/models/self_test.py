"""The self-test at load: a model as it will run against its own forward in transformers.

What that forward gives is remembered, of files that have not changed since: it takes transformers' modules to compute,
which take longer to import and to fill than everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models import remembered
from trimtab.decode.models.loaded import LoadedModel
from trimtab.decode.models.modules import UnsupportedAttention

__all__ = ["Expected", "fingerprint", "probe", "recall", "remember", "self_test"]

_KIND, _FORMAT = "self-tests", 1  # of what is remembered, and of what it is compared with
_PAGE = 8
# Logits of a position that are compared, at most: spread over the vocabulary.
_SAMPLE = 512
# Mean absolute difference to the model's own forward, in standard deviations of its logits. Measured: 3e-6 in float32,
# 0.02 to 0.03 in bfloat16; a wrong mask or position gives 0.3 and more.
_BOUND = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


class Expected:
    """What a model's own forward gives for both sequences of the probe.

    Attributes:
        logits: float32, [21, S] and [10, S]: of each position, a sample.
        deviation: standard deviation of all logits of each sequence.
    """

    def __init__(self, logits: Sequence[Tensor], deviation: Sequence[float]) -> None:
        self.logits, self.deviation = tuple(logits), tuple(deviation)

    @classmethod
    def of(cls, logits: Sequence[Tensor]) -> Expected:
        """From all logits of each sequence, [T, V]."""
        whole = [part.float().cpu() for part in logits]
        return cls([_sample(part) for part in whole], [float(part.std()) for part in whole])


def probe(vocab_size: int) -> list[list[int]]:
    """Two sequences of unequal length whose ids spread over the vocabulary."""
    return [[(7919 * (i + 1) + 104729 * k) % vocab_size for i in range(n)] for k, n in enumerate((21, 10))]


def _sample(logits: Tensor) -> Tensor:
    size = logits.shape[-1]
    return logits if size <= _SAMPLE else logits[:, torch.linspace(0, size - 1, _SAMPLE).long()].contiguous()


def self_test(model: LoadedModel, expected: Expected) -> None:
    """Both sequences packed, in two pieces over scattered pages, against the model's own forward.

    Raises:
        UnsupportedModel: they differ.
    """
    sequences = probe(model.vocab_size)
    storage = model.storage(16, _PAGE)
    pages = [[9, 2, 12], [4, 7]]
    parts: list[list[Tensor]] = [[], []]
    try:
        for begins, ends in (((0, 0), (18, 4)), ((18, 4), (21, 10))):
            spans = [Span(sequences[k][begins[k] : ends[k]], begins[k], pages[k], ends[k] - begins[k]) for k in (0, 1)]
            batch = RaggedBatch.pack(spans, _PAGE)
            tokens, positions, rows = (
                torch.from_numpy(a).to(model.device) for a in (batch.tokens, batch.positions, batch.rows)
            )
            logits = model.forward(tokens, positions, storage.begin(batch), rows)
            first = ends[0] - begins[0]
            parts[0].append(logits[:first])
            parts[1].append(logits[first:])
    except UnsupportedAttention as error:
        raise UnsupportedModel(model.name, str(error)) from error
    for part, truth, deviation in zip(parts, expected.logits, expected.deviation, strict=True):
        found = _sample(torch.cat(part).float().cpu())
        same = found.shape == truth.shape
        # A reward model that says the same of everything deviates by nothing: then only the same is no difference.
        difference = float((found - truth).abs().mean()) / max(deviation, 1e-30) if same else float("inf")
        if not difference < _BOUND[model.dtype]:
            raise UnsupportedModel(
                model.name,
                f"the self-test at load differs from {model.architecture}'s own forward by {difference:.3g} standard "
                "deviations: its attention does something this engine doesn't know",
            )


# --------------------------------------------------------------------------------------------------- what is remembered


def fingerprint(files: Iterable[Path], dtype: torch.dtype) -> str:
    """Of a model's files, and of what its own forward depends on besides."""
    return remembered.fingerprint(files, _FORMAT, torch.__version__, remembered.installed("transformers"), dtype)


def recall(key: str) -> Expected | None:
    """What was remembered under a fingerprint; None if nothing was, or it can't be read."""
    try:
        found = load(remembered.recall(_KIND, f"{key}.safetensors") or b"")
        return Expected([found["0"], found["1"]], found["deviation"].tolist())
    except (SafetensorError, KeyError):
        return None


def remember(key: str, expected: Expected) -> None:
    """Keep it."""
    tensors = {str(i): part for i, part in enumerate(expected.logits)}
    tensors["deviation"] = torch.tensor(expected.deviation)
    remembered.remember(_KIND, f"{key}.safetensors", save(tensors))
