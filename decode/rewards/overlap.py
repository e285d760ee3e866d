"""Overlap with reference answers: BLEU as a reward (BLEUBERI; Chang et al., 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.decode.rewards.base import LocalReward, Sample
from trimtab.decode.rewards.measures import LONGEST_FOR_LIBRARIES, measured
from trimtab.decode.rewards.options import needed, whole

__all__ = ["Bleu", "bleu"]


class Bleu(LocalReward):
    """Sentence BLEU of sacrebleu against the request's references, in [0, 1]; the best over references' n-grams.

    Of each text its first ``measures.LONGEST_FOR_LIBRARIES`` characters are read; 0 where they can't be.

    Args:
        max_ngram: longest n-gram.
    """

    kind = "prefix"
    needs_reference = True
    description = "BLEU against the references"

    def __init__(self, max_ngram: int = 4) -> None:
        whole("max_ngram", max_ngram, 1, 8)
        metrics: Any = needed("sacrebleu.metrics", "rewards")
        self._bleu: Any = metrics.BLEU(effective_order=True, max_ngram_order=max_ngram)

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        return [self._rated(sample) for sample in samples]

    def _rated(self, sample: Sample) -> float:
        references = [reference[:LONGEST_FOR_LIBRARIES] for reference in sample.references]

        def score(text: str) -> float:
            return min(1.0, float(self._bleu.sentence_score(text, references).score) / 100)

        return measured(score, sample.text, 0.0)


def bleu(max_ngram: int = 4) -> Bleu:
    """The type ``bleu``."""
    return Bleu(max_ngram)
