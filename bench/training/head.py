"""Train the head that predicts acceptance, on hidden states of a frozen draft that are computed once and kept.

What a head is taught, for the state that yields the distribution q where the target has p:

============  =====================================================  ==============================================
target        label                                                  what it costs
============  =====================================================  ==============================================
``analytic``  sum min(p, q): the acceptance probability itself       nothing: both distributions are known
``drawn``     min(1, p(Y) / q(Y)) of one Y drawn from q (SpecDec++)  noise; its mean is the analytic label
============  =====================================================  ==============================================

A head may also be given ln q(Y) of the drawn token, or read the draft's highest probability alone: what a rule that
stops below a threshold of confidence knows. Beside acceptance under sampling at temperature 1, every head
learns the probability that both models have the same most likely token: acceptance under greedy decoding.

The draft must not have been trained on these texts: where it was, it agrees more than it will.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.bench.training.corpus import Corpus
from trimtab.bench.training.draft import hidden_states
from trimtab.bench.training.loop import Settings, train
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.models.acceptance import AcceptanceHead, confidence

__all__ = [
    "LABELS",
    "Features",
    "HeadRun",
    "Labels",
    "Reliability",
    "features",
    "reliability",
    "soft_bce",
    "train_head",
]

Labels = Literal["analytic", "drawn"]
Reads = Literal["hidden", "hidden and top probability", "hidden and ln q(Y)", "top probability"]
LABELS: tuple[Labels, ...] = get_args(Labels)
_BLOCK = 512
_BINS = 10


@dataclass(frozen=True, slots=True)
class Features:
    """What a head sees and learns, at n positions.

    Attributes:
        hidden: bfloat16 [n, D].
        accepted: float32 [n], sum min(p, q).
        agreed: float32 [n], 1 where p and q have the same most likely id.
        drawn: float32 [n], min(1, p(Y) / q(Y)) of a Y drawn from q.
        log_q: float32 [n], ln q(Y).
        top: float32 [n], max q.
        text: int64 [n], number of the text that a position is in; positions of a text follow one another.
        greedy: bool [n], whether the text was written greedily.
    """

    hidden: Tensor
    accepted: Tensor
    agreed: Tensor
    drawn: Tensor
    log_q: Tensor
    top: Tensor
    text: Tensor
    greedy: Tensor

    def labels(self, kind: Labels) -> Tensor:
        """Labels of both outputs, float32 [n, 2]: acceptance under sampling and under greedy decoding."""
        return torch.stack((self.accepted if kind == "analytic" else self.drawn, self.agreed), -1)


def features(draft: Any, corpus: Corpus, dtype: torch.dtype, seed: int) -> Features:
    """Features of every answer position of a corpus.

    Args:
        draft: the trained draft's module.
        corpus: answers that it was not trained on, in its columns.
        dtype: of the products, as the draft will run.
        seed: of the drawn tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    head = draft.lm_head.weight.detach().to(dtype)
    parts: list[tuple[Tensor, ...]] = []
    text = 0
    with torch.no_grad():
        for examples, batch in corpus.all():
            states = hidden_states(draft, batch, dtype)
            for begin in range(0, len(states), _BLOCK):
                parts.append(_labelled(states[begin : begin + _BLOCK], head, batch.sparse, begin, generator))
            lengths = torch.tensor([len(example.best) for example in examples])
            numbers = torch.arange(text, text + len(examples)).repeat_interleave(lengths)
            greedy = torch.tensor([e.temperature == 0 for e in examples]).repeat_interleave(lengths)
            text += len(examples)
            blocks = range(0, len(states), _BLOCK)
            for offset, begin in enumerate(blocks, start=len(parts) - len(blocks)):
                parts[offset] += (numbers[begin : begin + _BLOCK], greedy[begin : begin + _BLOCK])
    return Features(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _labelled(states: Tensor, head: Tensor, sparse: Any, begin: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """hidden, accepted, agreed, drawn, log_q, top of one block of positions from ``begin``."""
    end = begin + len(states)
    first, last = int(sparse.starts[begin]), int(sparse.starts[end])
    logits = functional.linear(states.to(head.dtype), head).float()
    q = torch.softmax(logits, -1)
    row = torch.repeat_interleave(sparse.starts[begin + 1 : end + 1] - sparse.starts[begin:end])
    p = torch.zeros_like(q)
    p[row, sparse.columns[first:last]] = sparse.probs[first:last]
    accepted = torch.minimum(p, q).sum(-1)
    agreed = (logits.argmax(-1) == sparse.best[begin:end]).float()
    token = torch.multinomial(q, 1, generator=generator)
    q_drawn = q.gather(1, token).squeeze(1)
    drawn = (p.gather(1, token).squeeze(1) / q_drawn).clamp_max(1)
    return states.to(torch.bfloat16), accepted, agreed, drawn, q_drawn.log(), q.amax(-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRun:
    """A head and how it is trained.

    Attributes:
        blocks, width: of ``AcceptanceHead``.
        labels: what it is taught.
        reads: what it is given. A head that reads ln q(Y) must be asked after the draw, not before.
        reject_weight: weight of what is rejected in the loss (``weight_mismatch`` of SpecDec++); above 1 the head
            errs on the side of stopping, and is no longer calibrated.
        batch: positions in a step.
        settings: of the loop.
    """

    blocks: int
    width: int
    settings: Settings
    labels: Labels = "analytic"
    reads: Reads = "hidden and top probability"
    reject_weight: float = 1.0
    batch: int = 1024

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise InvalidRequest.of("labels", self.labels, f"one of {', '.join(LABELS)}")
        if self.reads not in get_args(Reads):
            raise InvalidRequest.of("reads", self.reads, f"one of {', '.join(get_args(Reads))}")
        if not 0 < self.reject_weight < float("inf"):
            raise InvalidRequest.of("reject_weight", self.reject_weight, "a finite number above 0")
        for name in ("width", "batch"):
            if getattr(self, name) < 1:
                raise InvalidRequest.of(name, getattr(self, name), "1 or more")
        if self.blocks < 0:
            raise InvalidRequest.of("blocks", self.blocks, "0 or more")


def soft_bce(logits: Tensor, labels: Tensor, reject_weight: float = 1.0) -> Tensor:
    """Weighted cross-entropy with labels in [0, 1]: logits and labels [..] -> a number (SpecDec++, section 3.2)."""
    rejected = reject_weight * (1 - labels)
    loss = rejected * functional.softplus(logits) + labels * functional.softplus(-logits)
    return loss.sum() / (rejected.sum() + labels.sum())


def train_head(
    run: HeadRun, found: Features, held_out: Features | None, folder: Path, *, stop_after: int | None = None
) -> AcceptanceHead:
    """Train a head; goes on from the folder's checkpoint if it has one.

    Raises:
        InvalidRequest: no positions to learn from, or the folder is another run's.
    """
    if not len(found.hidden):
        raise InvalidRequest.of("answers", 0, "at least one answer that the draft was not trained on")
    torch.manual_seed(run.settings.seed)
    head = AcceptanceHead(inputs(found, run.reads, slice(0, 1)).shape[1], run.blocks, run.width)
    with torch.no_grad():  # starts at the mean, so that the first steps aren't spent on it
        mean = found.labels(run.labels).mean(0).clamp(0.01, 0.99)
        head.out.bias.copy_(torch.logit(mean))
        head.out.weight.mul_(0.1)
    labels = found.labels(run.labels)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        draw = np.random.default_rng((run.settings.seed, number))
        chosen = torch.from_numpy(draw.integers(len(labels), size=run.batch))
        logits = head.logits(inputs(found, run.reads, chosen))
        return soft_bce(logits, labels[chosen], run.reject_weight), {}

    def figures() -> Mapping[str, float]:
        assert held_out is not None
        return score(head, held_out, run.reads)

    made = {
        "blocks": run.blocks,
        "width": run.width,
        "labels": run.labels,
        "reads": run.reads,
        "reject_weight": run.reject_weight,
        "batch": run.batch,
        "positions": len(labels),
    }
    evaluator = figures if held_out is not None else None
    train(head, step, run.settings, folder, name="head", made=made, evaluate=evaluator, stop_after=stop_after)
    return head.eval()


def inputs(found: Features, reads: Reads, chosen: Tensor | slice = slice(None)) -> Tensor:
    """What a head reads, float32 [n, D], [n, D + 1] or [n, 1]."""
    hidden = found.hidden[chosen].float()
    match reads:
        case "top probability":
            return confidence(found.top[chosen, None])
        case "hidden and top probability":
            return torch.cat((hidden, confidence(found.top[chosen, None])), -1)
        case "hidden and ln q(Y)":
            return torch.cat((hidden, found.log_q[chosen, None]), -1)
    return hidden


def predict(head: nn.Module, found: Features, reads: Reads) -> Tensor:
    """Probabilities of both outputs, float32 [n, 2]."""
    blocks = [inputs(found, reads, slice(i, i + 8192)) for i in range(0, len(found.hidden), 8192)]
    with torch.no_grad():
        return torch.cat([torch.sigmoid(head.logits(block)) for block in blocks])  # type: ignore[operator]


def score(head: nn.Module, found: Features, reads: Reads = "hidden") -> dict[str, float]:
    """Cross-entropy and expected calibration error, against the analytic, drawn and greedy labels."""
    predicted = predict(head, found, reads)
    result: dict[str, float] = {}
    for name, column, labels in (("", 0, found.accepted), ("drawn_", 0, found.drawn), ("greedy_", 1, found.agreed)):
        p = predicted[:, column].clamp(1e-6, 1 - 1e-6)
        bce = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
        result |= {f"{name}bce": float(bce), f"{name}ece": reliability(p, labels).error}
    return result


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted against observed, in bins of equal width.

    Attributes:
        rows: of each bin that isn't empty: its positions, mean prediction, mean label.
        error: expected calibration error: the mean of |prediction - label| of the bins, weighted by positions.
    """

    rows: tuple[tuple[int, float, float], ...]
    error: float


def reliability(predicted: Tensor, labels: Tensor, bins: int = _BINS) -> Reliability:
    """The table of predictions in [0, 1] and their labels, both float [n]."""
    of = (predicted * bins).long().clamp_(0, bins - 1)
    count, mean, seen = (torch.zeros(bins, dtype=torch.float64) for _ in range(3))
    count.index_add_(0, of, torch.ones_like(predicted, dtype=torch.float64))
    mean.index_add_(0, of, predicted.double())
    seen.index_add_(0, of, labels.double())
    rows = tuple(
        (int(n), float(m / n), float(s / n))
        for n, m, s in zip(count.tolist(), mean.tolist(), seen.tolist(), strict=True)
        if n
    )
    error = sum(n * abs(m - s) for n, m, s in rows) / max(len(predicted), 1)
    return Reliability(rows, error)


def cumulated(predicted: Tensor, observed: Tensor, text: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Products over ``length`` positions in a row of one text, [m] each: of predictions, and of what was observed."""
    count = len(text) - length + 1
    inside = text[:count] == text[length - 1 :]
    windows = [x.unfold(0, length, 1).prod(-1)[inside] for x in (predicted, observed)]
    return windows[0], windows[1]
