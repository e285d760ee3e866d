"""The training loop: AdamW, clipped gradients, a cosine, checkpoints that resume bit for bit, and a curve.

A step's batch is a function of the step's number alone, so what a checkpoint holds (weights, optimiser, step) is all
that a run depends on: a run that was cut short and resumed is the run that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.bench.data import append_rows, read_rows
from trimtab.bench.progress import Progress
from trimtab.decode.errors import InvalidRequest, TrimtabError

__all__ = ["Settings", "plot_curve", "train"]

_CHECKPOINT, _CURVE = "checkpoint.pt", "curve.jsonl"

Figures = Mapping[str, float]
Step = Callable[[int], tuple[Tensor, Figures]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of a run; a checkpoint of another run is refused.

    Attributes:
        steps: optimiser steps.
        learning_rate: at its highest, after ``warmup`` of the steps; it falls to a twentieth by a cosine.
        warmup: part of the steps, in [0, 1).
        clip: largest norm of the gradient.
        weight_decay: of AdamW.
        seed: of everything that is random.
        log_every: steps between lines of the curve, each the mean since the last.
        evaluate_every: steps between evaluations; the last step is always followed by one.
    """

    steps: int
    learning_rate: float
    warmup: float = 0.03
    clip: float = 1.0
    weight_decay: float = 0.01
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise InvalidRequest.of(name, getattr(self, name), "1 or more")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidRequest.of(name, getattr(self, name), "a finite number above 0")
        if not 0 <= self.warmup < 1:
            raise InvalidRequest.of("warmup", self.warmup, "a number in [0, 1)")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rising = self.warmup * self.steps
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        part = (step - rising) / max(self.steps - rising, 1)
        return self.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * part)))


def train(
    module: nn.Module,
    step: Step,
    settings: Settings,
    folder: Path,
    *,
    name: str,
    made: Mapping[str, Any],
    evaluate: Callable[[], Figures] | None = None,
    checkpoint_every: float = 300.0,
    stop_after: int | None = None,
) -> Figures:
    """Train the parameters of ``module`` that want gradients; goes on from the folder's checkpoint if it has one.

    Args:
        module: what is trained, in place.
        step: from a step's number, its loss and further figures.
        settings: of the run.
        folder: gets the checkpoint and the curve.
        name: of the run, in lines of progress.
        made: what else the run depends on, JSON values; a checkpoint with other ones is refused.
        evaluate: figures on held-out data.
        checkpoint_every: seconds between checkpoints.
        stop_after: leave after this many steps, with a checkpoint; for tests and short allotments of time.

    Returns:
        The last evaluation's figures; empty without one.

    Raises:
        InvalidRequest: the folder's checkpoint is of another run. TrimtabError: the loss is no longer finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        list(parameters.values()),
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    run = json.loads(json.dumps({**asdict(settings), **made}))
    first, before = _resume(folder, parameters, optimiser, run)
    begun = saved = time.monotonic()
    sums: dict[str, float] = {}
    summed = 0
    last: Figures = {}
    end = settings.steps if stop_after is None else min(settings.steps, first + stop_after)
    with Progress(name, settings.steps, first, "step") as progress:
        for number in range(first, end):
            for group in optimiser.param_groups:
                group["lr"] = settings.rate(number)
            loss, figures = step(number)
            if not math.isfinite(value := float(loss.detach())):
                raise TrimtabError(f"{name}: the loss of step {number} is {value}; try a smaller learning rate")
            module.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
            optimiser.step()
            for key, figure in {"loss": value, "norm": float(norm), **figures}.items():
                sums[key] = sums.get(key, 0.0) + figure
            summed += 1
            now = time.monotonic()
            seconds, note = before + now - begun, ""
            if (number + 1) % settings.log_every == 0 or number + 1 == end:
                means = {key: round(figure / summed, 6) for key, figure in sums.items()}
                row = {"step": number + 1, **means, "rate": settings.rate(number), "seconds": round(seconds, 1)}
                append_rows(folder / _CURVE, [row])
                sums, summed = {}, 0
                note = ", ".join(f"{key} {figure:.4g}" for key, figure in means.items())
            if evaluate is not None and ((number + 1) % settings.evaluate_every == 0 or number + 1 == settings.steps):
                last = evaluate()
                append_rows(
                    folder / _CURVE, [{"step": number + 1, **{f"held_out_{k}": round(v, 6) for k, v in last.items()}}]
                )
                shown = ", ".join(f"{key} {figure:.4g}" for key, figure in last.items())
                progress.line(f"{name}: step {number + 1}, held out: {shown}")
            if now - saved >= checkpoint_every or number + 1 == end:
                saved = now
                _save(folder, parameters, optimiser, run, number + 1, before + time.monotonic() - begun)
            progress.add(note=note)
    return last


def _save(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    run: Mapping[str, Any],
    step: int,
    seconds: float,
) -> None:
    work = folder / f"{_CHECKPOINT}.tmp"
    weights = {key: p.detach() for key, p in parameters.items()}
    state = {"run": run, "step": step, "seconds": seconds, "weights": weights, "optimiser": optimiser.state_dict()}
    torch.save(state, work)
    work.rename(folder / _CHECKPOINT)


def _resume(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    run: Mapping[str, Any],
) -> tuple[int, float]:
    """Steps done and seconds spent; the weights and the optimiser are as they were then."""
    path, curve = folder / _CHECKPOINT, folder / _CURVE
    if not path.exists():
        curve.unlink(missing_ok=True)
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    if state["run"] != run:
        differing = sorted(key for key in run.keys() | state["run"].keys() if run.get(key) != state["run"].get(key))
        found = {key: state["run"].get(key) for key in differing}
        asked = json.dumps({key: run.get(key) for key in differing})
        accepted = f"the settings of the folder's checkpoint (now {asked}), or another folder"
        raise InvalidRequest.of("out", json.dumps(found), accepted)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(state["weights"][key])
    optimiser.load_state_dict(state["optimiser"])
    if curve.exists():  # what came after the checkpoint comes again
        rows = [row for row in read_rows(curve) if row["step"] <= state["step"]]
        curve.unlink()
        append_rows(curve, rows)
    return int(state["step"]), float(state["seconds"])


def plot_curve(folder: Path, path: Path, names: tuple[str, ...] = ("loss",)) -> None:
    """Draw figures of a run's curve against its steps; needs matplotlib (the extra ``bench``).

    Args:
        folder: of the run.
        path: of the picture; its ending says the format.
        names: figures of the curve, one panel each, with the held-out ones of the same name.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TrimtabError("a plot needs matplotlib: pip install 'trimtab[bench]'") from error
    rows = read_rows(folder / _CURVE)
    figure = Figure(figsize=(3.6 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for key, style, label in ((name, "-", "training"), (f"held_out_{name}", "o-", "held out")):
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1)
        axes.set_xlabel("step")
        axes.set_title(name, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None} if path.suffix == ".png" else {})
