"""Distil a draft from its target: a few of the target's own layers, trained on the target's own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.bench.training.attention import TRAINING_ATTENTION
from trimtab.bench.training.corpus import Batch, Corpus
from trimtab.bench.training.loop import Settings, train
from trimtab.bench.training.losses import Loss, Totals, distil
from trimtab.decode.models.draft import assemble

__all__ = ["DraftRun", "evaluate", "hidden_states", "train_draft"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftRun:
    """What a draft is and how it is trained.

    Attributes:
        layers: of the target, that the draft starts from.
        loss: first and main loss, see ``losses``.
        warm_loss: loss of the first ``warm_steps`` steps: an acceptance loss alone is flat where a draft knows nothing.
        dtype: of the products; the weights stay float32.
        settings: of the loop.
    """

    layers: tuple[int, ...]
    loss: Loss
    settings: Settings
    warm_loss: Loss = "kl"
    warm_steps: int = 0
    dtype: torch.dtype = torch.bfloat16


def hidden_states(draft: Any, batch: Batch, dtype: torch.dtype) -> Tensor:
    """What the head reads at the positions that predict an answer, [n, D]."""
    with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
        states = draft.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
    picked: Tensor = states.reshape(-1, states.shape[-1]).index_select(0, batch.where)
    return picked


def train_draft(
    target: Any,
    ids: Tensor,
    run: DraftRun,
    corpus: Corpus,
    held_out: Corpus | None,
    folder: Path,
    *,
    stop_after: int | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> Any:
    """Train a draft of ``target``; returns it, in float32.

    Args:
        target: the target's own module, float32.
        ids: int64 [Vd], the ids that the draft keeps.
        run: what is trained, and how.
        corpus: batches to train on.
        held_out: what it is evaluated on meanwhile.
        folder: gets checkpoint and curve; a run that was cut short goes on there.
        stop_after: leave after this many steps.
        start: weights to start from in place of the target's layers.

    Raises:
        UnsupportedModel: no draft can be cut from the target. InvalidRequest: the folder is another run's.
    """
    draft = assemble(target, run.layers, ids)
    if start is not None:
        draft.load_state_dict(dict(start), strict=False)
    draft.requires_grad_(False)
    draft.model.layers.requires_grad_(True)
    draft.model.norm.requires_grad_(True)
    draft.set_attn_implementation(TRAINING_ATTENTION)
    draft.train()
    head = draft.lm_head.weight.to(run.dtype)

    def step(number: int) -> tuple[Tensor, dict[str, float]]:
        batch = corpus.batch(number)
        totals = Totals()
        kind = run.warm_loss if number < run.warm_steps else run.loss
        loss = distil(hidden_states(draft, batch, run.dtype), head, batch.sparse, kind, totals)
        means = totals.means()
        return loss, {"acceptance": means["acceptance"], "agreement": means["agreement"]}

    def figures() -> dict[str, float]:
        assert held_out is not None
        return evaluate(draft, held_out, run.dtype, run.loss)[""].means()

    made = {
        "layers": run.layers,
        "loss": run.loss,
        "warm_loss": run.warm_loss,
        "warm_steps": run.warm_steps,
        "dtype": str(run.dtype),
        "ids": len(ids),
        "batch_tokens": corpus.batch_tokens,
        "answers": len(corpus.examples),
        "answer_tokens": corpus.answer_tokens,
        "started": start is not None,
    }
    evaluator = figures if held_out is not None else None
    train(draft, step, run.settings, folder, name="draft", made=made, evaluate=evaluator, stop_after=stop_after)
    return draft.eval()


def evaluate(draft: Any, corpus: Corpus, dtype: torch.dtype, loss: Loss = "tv") -> dict[str, Totals]:
    """Totals over a corpus: of everything under "", of each source, and of each source's sampled and greedy answers.

    Acceptance is the probability that one token drawn from the draft at temperature 1 is accepted there; agreement is
    that of greedy drafting. Both are averages over the target's own texts.
    """
    found: dict[str, Totals] = {"": Totals()}
    head = draft.lm_head.weight.detach().to(dtype)
    was = draft.training
    draft.eval()
    with torch.no_grad():
        for examples, batch in corpus.all():
            states = hidden_states(draft, batch, dtype)
            ends = torch.tensor([0, *(len(example.best) for example in examples)]).cumsum(0).tolist()
            for example, begin, end in zip(examples, ends, ends[1:], strict=False):
                sparse = batch.sparse
                first, last = int(sparse.starts[begin]), int(sparse.starts[end])
                own = type(sparse)(
                    sparse.starts[begin : end + 1] - first,
                    sparse.columns[first:last],
                    sparse.probs[first:last],
                    sparse.best[begin:end],
                )
                totals = Totals()
                distil(states[begin:end], head, own, loss, totals)
                kind = "greedy" if example.temperature == 0 else "sampled"
                for key in ("", example.source, f"{example.source}, {kind}"):
                    found.setdefault(key, Totals()).add(totals)
    draft.train(was)
    return found


def names(layers: Sequence[int]) -> str:
    """The layers as a file name's part."""
    return "-".join(map(str, layers))
