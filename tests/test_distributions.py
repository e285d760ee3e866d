"""Sampled answers of the real engine against the distribution that transformers gives, over every sampling field.

Each token's conditional distribution is computed apart: eager forwards of transformers, its own logits processors, and
the policy's formula. A token's place in that distribution, made uniform (a randomised probability integral transform),
is then uniform on [0, 1], and independent of the places of the tokens before it and of other candidates', if and only
if the engine draws from that distribution. Chi-square tests say whether they are.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_draft_model as drafts
import torch
import transformers as hf
from numpy.typing import NDArray
from scipy import stats

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.methods.draws.length import Confidence, Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.guided import Guided
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.request.events import Completed
from trimtab.decode.request.method import Draw, Policy
from trimtab.decode.request.result import Result
from trimtab.kernels import dispatch

Folder = Callable[..., Path]
Floats = NDArray[np.float64]

WEIGHTS = {"base": ("llama", 0), "twin": ("llama", 0), "draft": ("llama", 1), "chat": ("mistral", 2)}
DRAFT_IDS = torch.arange(1, 300, 2)
PROMPT = [5, 9, 77, 260, 31, 77, 140, 9, 5, 31]
TOKENS = 8
BINS = 16
LEAST = 1e-5  # p-values below it fail; the seeds are fixed


@pytest.fixture(scope="module")
def engine(
    tiny: Any, tiny_folder: Folder, foreign_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """A target; drafts that always agree, seldom agree, know half of its vocabulary, have another one; a helper."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    folders = {name: tiny_folder(kind, seed) for name, (kind, seed) in WEIGHTS.items()}
    folders["subset"], folders["foreign"] = tmp_path_factory.mktemp("subset"), foreign_folder
    subset = drafts.assemble(tiny.make("llama", 0), (0, 2), DRAFT_IDS)
    spec = drafts.DraftSpec(
        target=str(folders["base"]),
        layers=(0, 2),
        vocab_size=tiny.VOCAB,
        hidden_size=48,
        head_blocks=None,
        head_width=None,
    )
    drafts.write_draft(folders["subset"], spec, DRAFT_IDS, subset.state_dict(), None)
    roles: dict[str, Any] = {"subset": "draft"}
    models = {
        name: ModelConfig(source=str(folder), dtype="float32", role=roles.get(name, "base"))
        for name, folder in folders.items()
    }
    with Engine(models, options=EngineOptions(memory_bytes=64 << 20, page_tokens=16)) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------ the reference


@dataclass(frozen=True)
class Case:
    """A request whose answers are sampled many times."""

    name: str
    sampling: Mapping[str, Any]
    policy: Policy = field(default_factory=Base)
    draw: Draw | None = None
    n: int = 1

    def __str__(self) -> str:
        return self.name


class Reference:
    """Conditional distributions by transformers alone."""

    def __init__(self, tiny: Any) -> None:
        self._models = {name: tiny.make(kind, seed) for name, (kind, seed) in WEIGHTS.items()}
        self._vocabulary = tiny.VOCAB

    def logits(self, name: str, answers: torch.Tensor, asked: Sequence[int] = PROMPT) -> torch.Tensor:
        """[N, L, V]: before each token of N answers."""
        prompt = torch.tensor(asked).expand(len(answers), -1)
        with torch.inference_mode():
            found: torch.Tensor = self._models[name](torch.cat((prompt, answers), 1)).logits
        return found[:, len(asked) - 1 : -1].double()

    def distribution(self, case: Case, answers: torch.Tensor) -> Floats:
        """p of every token at each place of N answers, [N, L, V]."""
        base = self.logits("base", answers)
        if isinstance(case.policy, Mixture | Guided):
            mixed = base.clone()  # logits, not ln p: a penalty sees their signs
            if isinstance(case.policy, Guided):
                scale = case.policy.scale
                mixed = scale * mixed + (1 - scale) * self.logits("base", answers, PROMPT[-1:])
            else:
                for expert in case.policy.experts:
                    mixed = mixed + expert.weight * self.logits(expert.model, answers)
            if case.policy.plausibility:
                p = base.softmax(-1)
                mixed = mixed.masked_fill(p < case.policy.plausibility * p.amax(-1, keepdim=True), -torch.inf)
            return self._sampled(case, mixed, answers)
        own = self._sampled(case, base, answers)
        if isinstance(case.policy, Nudged):
            helped = self._sampled(case, self.logits(case.policy.nudger, answers), answers)
            assert isinstance(case.policy.when, Entropy)
            entropy = torch.distributions.Categorical(logits=base).entropy().numpy()
            return np.where((entropy > case.policy.when.above)[..., None], helped, own)
        return own

    def _sampled(self, case: Case, logits: torch.Tensor, answers: torch.Tensor) -> Floats:
        """After edits and filters, in the order that ``Sampling`` documents."""
        said = case.sampling
        count, length, vocabulary = logits.shape
        warpers: list[Any] = [hf.TemperatureLogitsWarper(float(said.get("temperature", 1.0)))]
        warpers += [hf.TopKLogitsWarper(said["top_k"])] if "top_k" in said else []
        warpers += [hf.TopPLogitsWarper(said["top_p"])] if "top_p" in said else []
        warpers += [hf.MinPLogitsWarper(said["min_p"])] if "min_p" in said else []
        result = np.empty((count, length, vocabulary))
        for at in range(length):
            seen = torch.cat((torch.tensor(PROMPT).expand(count, -1), answers[:, :at]), 1)
            scores = logits[:, at].clone()
            if "repetition_penalty" in said:
                scores = hf.RepetitionPenaltyLogitsProcessor(float(said["repetition_penalty"]))(seen, scores)
            for token, bias in said.get("logit_bias", {}).items():
                scores[:, token] += bias
            if at < said.get("min_new_tokens", 0):
                scores[:, list(said["stop_token_ids"])] = -torch.inf
            for warp in warpers:
                scores = warp(seen, scores)
            result[:, at] = scores.softmax(-1).numpy()
        return result


def places(probabilities: Floats, tokens: NDArray[np.int64], seed: int = 0) -> Floats:
    """Where each token lies in its distribution, made uniform: from p [N, L, V] and ids [N, L]."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, -1)
    rank = np.argmax(order == tokens[..., None], -1)[..., None]
    upto = np.take_along_axis(np.cumsum(ordered, -1), rank, -1)[..., 0]
    own = np.take_along_axis(ordered, rank, -1)[..., 0]
    u: Floats = upto - own * np.random.default_rng(seed).random(own.shape)
    return np.clip(u, 0.0, 1 - 1e-12)


def uniformity(u: Floats) -> float:
    """p-value of a chi-square test that the numbers are uniform on [0, 1]."""
    return float(stats.chisquare(np.bincount((u.ravel() * BINS).astype(int), minlength=BINS)).pvalue)


def independence(u: Floats, v: Floats) -> float:
    """p-value of a chi-square test that pairs are uniform on the square."""
    cells = (u.ravel() * 5).astype(int) * 5 + (v.ravel() * 5).astype(int)
    return float(stats.chisquare(np.bincount(cells, minlength=25)).pvalue)


# ---------------------------------------------------------------------------------------------------------- the engine


def answers(engine: Engine, case: Case, seeds: Sequence[int]) -> list[Result]:
    """One result per seed."""
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "ignore_eos": True, **case.sampling, "policy": case.policy}
    if case.draw is not None:
        options["draw"] = case.draw
    if case.n > 1:
        options["search"] = BestOfN(case.n, choose=Choose.CONSENSUS)
    results: list[Result] = []
    for start in range(0, len(seeds), 200):
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        chunk = seeds[start : start + 200]
        for seed in chunk:
            engine.submit(engine._preparer.request(PROMPT, {**options, "model": "base", "seed": seed}), inbox.put)
        while len(results) < start + len(chunk):
            event = inbox.get(timeout=60)
            assert not isinstance(event, Exception), event
            if isinstance(event, Completed):
                results.append(event.result)
    return results


EVERYTHING: Mapping[str, Any] = {
    "temperature": 1.4,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.01,
    "repetition_penalty": 1.6,
    "logit_bias": {31: 2.0, 77: -float("inf"), 9: -1.5},
    "min_new_tokens": 3,
    "stop_token_ids": (140, 5),
}
FIELDS: tuple[Mapping[str, Any], ...] = (
    {},
    {"temperature": 0.6},
    {"top_k": 8},
    {"top_p": 0.7},
    {"min_p": 0.1},
    # Tokens that come again and again: the penalty has something to do.
    {"top_k": 12, "repetition_penalty": 4.0, "logit_bias": dict.fromkeys((31, 9, 77, 200, 201), 4.0)},
    {"temperature": 0.8, "logit_bias": {31: 3.0, 77: -float("inf"), 200: 4.0}},
    {"top_k": 20, "min_new_tokens": 4, "stop_token_ids": (5, 31, 140)},
    EVERYTHING,
)
POLICIES: tuple[Policy, ...] = (
    Base(),
    Nudged("chat", when=Entropy(above=4.0)),
    Mixture((Weighted("chat", 0.7), Weighted("draft", -0.4)), plausibility=0.02),
    Guided(1.4, plausibility=0.01),
)
DRAWS: tuple[Draw | None, ...] = (
    None,
    Speculative("draft", Fixed(3)),
    Speculative("twin", Fixed(4)),
    Speculative("subset", Fixed(3)),
    Speculative("foreign", Fixed(2)),
    Speculative(PromptLookup(2), Fixed(4)),
    Speculative("draft", Confidence(0.1, 4), copying=PromptLookup(1)),
    Speculative("draft", Fixed(3), coupled=True),
)
# Every policy under every draw, with every third set of fields, in turn; every fourth time as a search of three.
ALL = [
    Case(f"{said}-{type(policy).__name__}-{draw}", said, policy, draw, 3 if (i + j + k) % 4 == 0 else 1)
    for i, said in enumerate(FIELDS)
    for j, policy in enumerate(POLICIES)
    for k, draw in enumerate(DRAWS)
    if (i + j + k) % 3 == 0
]
# Every field, policy and draw at least once, the hard ones together.
SHORT = [
    Case("temperature", FIELDS[1], draw=DRAWS[1]),
    Case("top-k", FIELDS[2], POLICIES[1], DRAWS[3]),
    Case("top-p", FIELDS[3], POLICIES[2], DRAWS[2]),
    Case("min-p", FIELDS[4], draw=DRAWS[5]),
    Case("penalty, identical draft", FIELDS[5], draw=DRAWS[2]),
    Case("penalty, nudged, forked", FIELDS[5], POLICIES[1], DRAWS[1], n=3),
    Case("penalty, subset", FIELDS[5], draw=DRAWS[3]),
    Case("penalty, mixture", FIELDS[5], POLICIES[2]),
    Case("bias, mixture, foreign", FIELDS[6], POLICIES[2], DRAWS[4]),
    Case("stops", FIELDS[7], POLICIES[1], DRAWS[6]),
    Case("penalty, guided", FIELDS[5], POLICIES[3]),
    Case("guided, foreign", FIELDS[4], POLICIES[3], DRAWS[4]),
    Case("everything, plain", EVERYTHING, POLICIES[2]),
    Case("everything, mixture", EVERYTHING, POLICIES[2], DRAWS[1]),
    Case("everything, coupled, forked", EVERYTHING, draw=DRAWS[7], n=3),
]


@pytest.fixture(scope="module")
def reference(tiny: Any) -> Reference:
    return Reference(tiny)


def sampled(reference: Reference, case: Case, results: Sequence[Result]) -> list[Floats]:
    """Per candidate the places of its tokens, [results, TOKENS]; NaN after an end."""
    found = []
    for k in range(case.n):
        tokens = [[token.id for token in result.candidates[k].tokens] for result in results]
        padded = torch.tensor([row + [0] * (TOKENS - len(row)) for row in tokens])
        u = places(reference.distribution(case, padded), padded.numpy(), seed=k)
        u[np.arange(TOKENS) >= np.array([len(row) for row in tokens])[:, None]] = np.nan
        found.append(u)
    return found


def p_values(found: Sequence[Floats]) -> dict[str, float]:
    """Of the tests that places are uniform, and independent along answers and across candidates."""
    whole = np.concatenate(found)
    result = {"uniform": uniformity(whole[~np.isnan(whole)])}
    both = ~np.isnan(whole[:, 1:])
    result["along"] = independence(whole[:, :-1][both], whole[:, 1:][both])
    for k in range(1, len(found)):
        both = ~np.isnan(found[0]) & ~np.isnan(found[k])
        result[f"across {k}"] = independence(found[0][both], found[k][both])
    return result


def check(engine: Engine, reference: Reference, case: Case, count: int) -> None:
    results = answers(engine, case, range(count))
    found = p_values(sampled(reference, case, results))
    assert min(found.values()) > LEAST, found
    if isinstance(case.draw, Speculative) and isinstance(case.draw.length, Fixed):
        assert sum(r.usage.drafted_tokens for r in results) > 0


@pytest.mark.parametrize("case", SHORT, ids=str)
def test_answers_follow_the_distribution_of_their_fields(engine: Engine, reference: Reference, case: Case) -> None:
    check(engine, reference, case, 100 // case.n)


@pytest.mark.full
@pytest.mark.parametrize("case", ALL, ids=str)
def test_answers_follow_the_distribution_of_every_composition(engine: Engine, reference: Reference, case: Case) -> None:
    check(engine, reference, case, 600)


PENALISED = Case("penalty", FIELDS[5], draw=DRAWS[1])


@pytest.fixture(scope="module")
def penalised(engine: Engine) -> list[Result]:
    return answers(engine, PENALISED, range(200))


@pytest.mark.parametrize(
    "wrong",
    [{}, {"temperature": 0.75}, {"top_k": 10}, {"repetition_penalty": 1.0}, {"logit_bias": {31: 3.0, 200: 3.0}}],
    ids=str,
)
def test_another_distribution_is_told_from_the_engines(
    penalised: list[Result], reference: Reference, wrong: Mapping[str, Any]
) -> None:
    other = Case("", {**PENALISED.sampling, **wrong}, draw=PENALISED.draw)
    p = p_values(sampled(reference, other, penalised))
    assert (min(p.values()) < LEAST) == bool(wrong), p


@pytest.mark.parametrize("policy", POLICIES[:2], ids=str)
@pytest.mark.parametrize("said", FIELDS, ids=str)
def test_what_an_identical_draft_proposes_is_always_accepted(
    engine: Engine, said: Mapping[str, Any], policy: Policy
) -> None:
    found = answers(engine, Case("", said, policy, Speculative("twin", Fixed(6))), range(12))
    assert sum(r.usage.accepted_tokens for r in found) == sum(r.usage.drafted_tokens for r in found) > 0


def test_a_mixture_whose_experts_weigh_nothing_answers_as_its_base(engine: Engine) -> None:
    nothing = Mixture((Weighted("chat", 0.0), Weighted("draft", 0.0)))
    for said in (FIELDS[5], EVERYTHING):
        cases = [Case("", said, policy) for policy in (nothing, Base())]
        mixed, alone = (
            sorted([t.id for t in r.candidates[0].tokens] for r in answers(engine, case, range(20))) for case in cases
        )
        assert mixed == alone


def test_verification_that_asks_of_another_draft_is_found(
    engine: Engine, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = dispatch.verify

    def other(logits: Any, windows: Sequence[Any]) -> Any:
        changed = []
        for window in windows:
            if window.draft is not None and window.draft.logits is not None:
                rows = [r._replace(filters=replace(r.filters, temperature=0.3)) for r in window.draft.rows]
                window = window._replace(draft=window.draft._replace(rows=rows, top_probs=None))
            changed.append(window)
        return real(logits, changed)

    monkeypatch.setattr(dispatch, "verify", other)
    case = Case("", FIELDS[2], draw=DRAWS[2])
    p = p_values(sampled(reference, case, answers(engine, case, range(200))))
    assert min(p.values()) < LEAST, p


def test_candidates_that_share_random_numbers_are_found(engine: Engine, reference: Reference) -> None:
    case = Case("", FIELDS[2])
    (found,) = sampled(reference, case, answers(engine, case, range(100)))
    assert independence(found, found) < LEAST
    shifted = np.roll(found, 1, axis=0)
    assert independence(found, shifted) > LEAST
