"""Several models of one vocabulary as one distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from trimtab.decode.methods.desk import Desk
from trimtab.decode.methods.policies.base import BaseWriter
from trimtab.decode.methods.writer import Writer
from trimtab.decode.ops import Mixed
from trimtab.decode.request.check import Check
from trimtab.decode.request.fields import Many, Model, Range
from trimtab.decode.request.method import Policy
from trimtab.kernels.types import Blend

__all__ = ["Mixture", "Weighted"]


@dataclass(frozen=True, slots=True)
class Weighted:
    """A model of a mixture and its weight, which may be negative."""

    model: Annotated[str, Model()]
    weight: Annotated[float, Range("[-1e6, 1e6]")] = 1.0


@dataclass(frozen=True, slots=True)
class Mixture(Policy):
    """The log-linear mixture ln p = ln p_base + sum of weight x ln p_expert, normalised.

    Proxy tuning (Liu et al., 2024): a small tuned model with weight 1 and its untuned twin with -1. Contrastive
    decoding (Li et al., 2023): a small model with a negative weight, and ``plausibility``. Autoregressive reward models
    (GenARM; Xu et al., 2025): one or several with weights 1 / beta. All models share one vocabulary. Penalty and bias
    apply to the weighted sum of the models' logits.

    Attributes:
        experts: one or several models.
        plausibility: in [0, 1): only tokens with p_base >= plausibility x max p_base can be drawn; None keeps all.
            Where bans leave none of these, all others can.
    """

    experts: Annotated[tuple[Weighted, ...], Many(1, 15)]
    plausibility: Annotated[float | None, Range("[0, 1)")] = None

    def check(self, check: Check) -> None:
        info = check.info
        if not check.fine(self.path, "experts"):
            return
        named = {info.name} if info is not None else set[str]()
        for i, expert in enumerate(self.experts):
            path, found = f"{self.path}.experts[{i}].model", check.models.get(expert.model)
            if found is None:
                continue
            if found.name in named:
                check.refuse(path, expert.model, "a model other than the requested one, named once")
            elif info is not None and not check.same_ids(info.name, found.name):
                pair = f"{found.name!r} mixed with {info.name!r}, whose token ids differ"
                check.unsupport(path, pair, f"a model that shares the vocabulary of {info.name!r}")
            named.add(found.name)

    def writer(self, desk: Desk) -> Writer:
        answer = desk.answer(own_figures=False)
        parts = (desk.open(), *(desk.open(expert.model) for expert in self.experts))
        weights = (1.0, *(expert.weight for expert in self.experts))
        mixed = Mixed(parts, Blend(weights, plausibility=self.plausibility or 0.0))
        return BaseWriter(desk.draws(answer, mixed), answer, desk.team)
