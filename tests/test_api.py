"""What may be asked for: keywords, their validation, and the values they resolve to."""

from __future__ import annotations

import math
import os
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from trimtab.decode.errors import InvalidRequest, NotFound, TrimtabError, UnsupportedRequest
from trimtab.decode.methods.drawing import resolve_sampling
from trimtab.decode.methods.draws.autoregressive import Autoregressive
from trimtab.decode.methods.draws.length import Acceptance, Confidence, Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.guided import Guided
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Branching, Entropy, TopProb
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Logprob, Segments
from trimtab.decode.methods.searches.single import Single
from trimtab.decode.request.generation_config import HARMLESS, MAPPED, NEUTRAL, from_generation_config
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.keywords import request_from_kwargs
from trimtab.decode.request.method import AXES, Draw, Policy, Search, methods
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.decode.request.validate import check_length, validate

NAN, INF = float("nan"), float("inf")


def info(name: str, source: str, vocab_size: int = 100, role: Any = "base") -> ModelInfo:
    return ModelInfo(
        name=name,
        role=role,
        source=source,
        architecture="LlamaForCausalLM",
        dtype="float32",
        device="cpu",
        max_context_tokens=64,
        vocab_size=vocab_size,
        eos_token_ids=(2,),
        acceptance_head=True,
    )


MODELS = {
    m.name: m
    for m in (
        info("base", "b"),
        info("chat", "c"),
        info("twin", "b"),
        info("foreign", "f"),
        info("scorer", "s", role="reward"),
    )
}
REWARDS = {
    r.name: r
    for r in (
        RewardInfo(name="helpful", kind="prefix"),
        RewardInfo(name="cheap", kind="token"),
        RewardInfo(name="whole", kind="sequence"),
        RewardInfo(name="judge", kind="sequence", pairwise=True),
        RewardInfo(name="bleu", kind="prefix", needs_reference=True),
    )
}
GOOD = Request(model="base", prompt="hi")


def same_ids(one: str, other: str) -> bool:
    return "foreign" not in (one, other)


def check(request: Request, limits: Limits | None = None) -> None:
    validate(request, MODELS, limits or Limits(), REWARDS, same_ids)


def axis(value: Any) -> Request:
    """A good request but for the axis that ``value`` belongs to."""
    name = next(n for n, union in (("policy", Policy), ("draw", Draw), ("search", Search)) if isinstance(value, union))
    return replace(GOOD, **{name: value})


# Every variant with every field set, at the bounds where it has some.
VARIANTS: list[Any] = [
    Base(),
    Nudged("chat", Entropy(1.0), 3),
    Mixture((Weighted("chat", -1.5), Weighted("twin")), plausibility=0.0),
    Mixture((Weighted("chat", 0.0),), plausibility=0.999),
    Guided(0.0, "other", plausibility=0.5),
    TokenReward("helpful", -1.0, 2),
    TokenReward("cheap", 0.0, 64),
    Autoregressive(),
    Speculative("chat"),
    Speculative("twin", Fixed(1), coupled=True),
    Speculative("foreign", Fixed(32)),
    Speculative("chat", Confidence(0.001, 1)),
    Speculative("chat", Acceptance(32, 0.5)),
    Speculative(PromptLookup(1)),
    Speculative(PromptLookup(16), Fixed(4)),
    Single(),
    BestOfN(1, "whole"),
    BestOfN(64, {"cheap": 1, "helpful": -0.5}, reject_fraction=0.01, check_every_tokens=1),
    BestOfN(2, "whole", Choose.SOFT, temperature=1e-3, threshold=-1.0),
    BestOfN(2, "whole", Choose.WORST),
    BestOfN(2, choose=Choose.MAJORITY),
    BestOfN(2, choose=Choose.MAJORITY, extract="letter"),
    BestOfN(2, "whole", Choose.WEIGHTED, extract="math"),
    BestOfN(2, choose=Choose.CONSENSUS),
    BestOfN(None, "helpful", reject_fraction=0.5, max_held_tokens=1),
    BestOfN(8, "helpful", reject_fraction=0.5, max_held_tokens=64),
    BestOfN(2, "whole", Choose.CONSENSUS, threshold=0.5),
    BestOfN(2, "judge", Choose.TOURNAMENT),
    BestOfN(2, {"judge": 1.0, "whole": 0.5}, Choose.TOURNAMENT),
    BestOfN(2, "helpful", Choose.TOURNAMENT, reject_fraction=0.5, check_every_tokens=4),
    BestOfN(2, Objective((RewardTerm("whole"),), Combine.CONSERVATIVE, spread=0.0)),
    Segments("helpful"),
    Segments("cheap", 8, 8, 1, "é" * 128, 0.0, 4096, -1.0, 1.0, True, Logprob.MEAN),
    RejectSegments("helpful", -1.0),
    RejectSegments("helpful", 1.0, 0.0, 0.0, 1, 1, 1000, 1.0, 0),
    Evolution("helpful"),
    Evolution("cheap", 64, 64, 1, 0, "chat"),
    Refine("whole"),
    Refine("whole", 0, "chat"),
]


def refused(request: Request, limits: Limits | None = None) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        check(request, limits)
    assert all(v.accepted and v.value for v in caught.value.violations)
    return [v.field for v in caught.value.violations]


# ------------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    "request_",
    [
        GOOD,
        replace(GOOD, prompt=(0, 99)),
        replace(GOOD, prompt=[ChatMessage("user", "hi")]),
        replace(GOOD, prompt=[{"role": "user", "content": ""}]),
        replace(GOOD, top_logprobs=20),
        replace(GOOD, sampling=Sampling(temperature=10.0)),
        replace(GOOD, policy=Nudged("chat", max_span_tokens=1)),
        replace(GOOD, policy=Nudged("chat", max_span_tokens=4096)),
        replace(
            GOOD,
            sampling=Sampling(
                temperature=0,
                top_k=1,
                top_p=1,
                min_p=0,
                repetition_penalty=10,
                seed=2**32 - 1,
                logit_bias={0: -INF, 99: 3, 5: -1e9},
            ),
        ),
        replace(
            GOOD,
            stopping=Stopping(
                max_new_tokens=4096,
                min_new_tokens=4096,
                stop=("é" * 128,) * 8,
                stop_token_ids=(0, 99),
                eos_token_ids=(0, 99),
                ignore_eos=True,
                include_stop=True,
                time_budget=1e-6,
            ),
        ),
        *(
            replace(GOOD, policy=Nudged("chat", when=when))
            for when in (None, Entropy(0), Entropy(2.5), TopProb(0), TopProb(1), Branching(1))
        ),
    ],
)
def test_what_is_documented_is_accepted(request_: Request) -> None:
    check(request_)


@pytest.mark.parametrize("value", VARIANTS, ids=repr)
def test_every_variant_is_accepted_up_to_its_bounds(value: Any) -> None:
    check(axis(value))


def test_every_combination_is_accepted_but_one() -> None:
    """Any search x policy x draw; token rewards under speculation are the exception."""
    policies, draws, searches = ([v for v in VARIANTS if isinstance(v, union)] for union in (Policy, Draw, Search))
    for policy in policies:
        for draw in draws:
            for search in searches:
                request = replace(GOOD, policy=policy, draw=draw, search=search)
                if isinstance(policy, TokenReward) and isinstance(draw, Speculative):
                    with pytest.raises(UnsupportedRequest, match=r"draw\.speculative with policy\.token_reward"):
                        check(request)
                else:
                    check(request)


BAD_FIELDS: list[tuple[str, Request]] = [
    *(
        (f"sampling.{name}", replace(GOOD, sampling=Sampling(**{name: value})))
        for name, values in {
            "temperature": (NAN, INF, -INF, -0.1, 10.1, True, "1", 10**400),
            "top_k": (-1, 1.0, True, NAN, 2**32),
            "top_p": (0, -0.5, 1.01, NAN, False, "x"),
            "min_p": (-0.1, 1, NAN, INF, True),
            "repetition_penalty": (0, -1, 10.5, NAN, INF, True),
            "seed": (-1, 2**32, 1.0, True, "7"),
            "logit_bias": (3, [(1, 2.0)], None),
        }.items()
        for value in values
    ),
    ("sampling.logit_bias[100]", replace(GOOD, sampling=Sampling(logit_bias={100: 1.0}))),
    ("sampling.logit_bias[True]", replace(GOOD, sampling=Sampling(logit_bias={True: 1.0}))),
    ("sampling.logit_bias['1']", replace(GOOD, sampling=Sampling(logit_bias={"1": 1.0}))),
    *(
        ("sampling.logit_bias[7]", replace(GOOD, sampling=Sampling(logit_bias={7: value})))
        for value in (NAN, INF, "x", True, None)
    ),
    *(
        (f"stopping.{name}", replace(GOOD, stopping=Stopping(**{name: value})))
        for name, values in {
            "max_new_tokens": (0, -1, 4097, 1.0, True, None),
            "min_new_tokens": (-1, 257, True, None),
            "stop": ("abc", 3, None, ("x",) * 9),
            "stop_token_ids": (3, "3", None),
            "eos_token_ids": (3, "3", None),
            "ignore_eos": (1, None),
            "include_stop": ("yes",),
            "time_budget": (0, -1, NAN, INF, True, "1s"),
        }.items()
        for value in values
    ),
    ("stopping.stop[1]", replace(GOOD, stopping=Stopping(stop=("a", "")))),
    ("stopping.stop[0]", replace(GOOD, stopping=Stopping(stop=("é" * 128 + "a",)))),
    ("stopping.stop[0]", replace(GOOD, stopping=Stopping(stop=("\ud800",)))),
    ("stopping.stop[2]", replace(GOOD, stopping=Stopping(stop=("a", "b", b"c")))),
    ("stopping.stop_token_ids[1]", replace(GOOD, stopping=Stopping(stop_token_ids=(1, 100)))),
    ("stopping.eos_token_ids[1]", replace(GOOD, stopping=Stopping(eos_token_ids=(1, -1)))),
    ("prompt_cache", replace(GOOD, prompt_cache=1)),
    ("prompt_cache", replace(GOOD, prompt_cache=None)),
    *(("prompt", replace(GOOD, prompt=value)) for value in ("", (), [], None, 3, b"hi", "\udfff")),
    ("prompt.token_ids[7]", replace(GOOD, prompt=[1] * 7 + [100])),
    ("prompt.token_ids[1]", replace(GOOD, prompt=[1, True])),
    ("prompt.token_ids[1]", replace(GOOD, prompt=[1, 2.0])),
    ("prompt.token_ids[0]", replace(GOOD, prompt=[-1])),
    ("prompt.messages[0].role", replace(GOOD, prompt=[ChatMessage("tool", "x")])),
    ("prompt.messages[1]", replace(GOOD, prompt=[ChatMessage("user", "x"), "x"])),
    *(("top_logprobs", replace(GOOD, top_logprobs=value)) for value in (-1, 21, True, 1.0, None)),
    *(("policy.nudged.nudger", replace(GOOD, policy=Nudged(value))) for value in ("base", "twin", "", 3, None)),
    *(
        ("policy.nudged.max_span_tokens", replace(GOOD, policy=Nudged("chat", max_span_tokens=value)))
        for value in (0, 4097, True, 1.0)
    ),
    *(
        (f"policy.nudged.{field}", replace(GOOD, policy=Nudged("chat", when=kind(value))))
        for field, kind, values in (
            ("entropy_nats_above", Entropy, (NAN, INF, -0.1, True, "2")),
            ("top_prob_below", TopProb, (NAN, -0.1, 1.1, None)),
            ("branching_above", Branching, (NAN, INF, 0.99)),
        )
        for value in values
    ),
    ("policy.nudged.trigger", replace(GOOD, policy=Nudged("chat", when="entropy"))),
    *(
        (f"policy.mixture.{field}", axis(Mixture(experts)))
        for field, experts in (
            ("experts", ()),
            ("experts", None),
            ("experts", "chat"),
            ("experts", (Weighted("chat"),) * 16),
            ("experts[0]", ("chat",)),
            ("experts[0].model", (Weighted("base"),)),
            ("experts[1].model", (Weighted("chat"), Weighted("chat"))),
            ("experts[0].model", (Weighted("scorer"),)),
            ("experts[0].model", (Weighted(""),)),
            *(
                ("experts[0].weight", (Weighted("chat", weight),))
                for weight in (NAN, INF, 1.1e6, -1.1e6, True, None, "1")
            ),
        )
    ),
    *(
        (f"policy.guided.{name}", axis(Guided(**{name: value})))
        for name, values in (
            ("scale", (-0.1, 1.1e6, NAN, INF, True, None, "1")),
            ("prompt", ("", 3, "\ud800")),
            ("system", (3, "for chats alone")),
            ("plausibility", (-0.1, 1, NAN, True, "x")),
        )
        for value in values
    ),
    *(
        ("policy.mixture.plausibility", axis(Mixture((Weighted("chat"),), value)))
        for value in (-0.1, 1, NAN, INF, True, "x")
    ),
    *(
        (f"policy.token_reward.{name}", axis(TokenReward(**{"reward": "helpful", name: value})))
        for name, values in {
            "reward": ("", None, 3),
            "weight": (NAN, INF, True, None, "1"),
            "width": (1, 65, 2.0, True, None),
        }.items()
        for value in values
    ),
    *(("draw.speculative.draft_model", axis(Speculative(value))) for value in ("base", "", None, 3, "scorer")),
    *(("draw.speculative.lookup.max_ngram", axis(Speculative(PromptLookup(value)))) for value in (0, 17, True, None)),
    *(
        (f"draw.speculative.{field}", axis(Speculative("chat", length)))
        for field, lengths in {
            "length": ("fixed", 4, Entropy(1.0)),
            "fixed.tokens": [Fixed(value) for value in (0, 33, 1.0, True, None)],
            "confidence.top_prob_below": [Confidence(value) for value in (0, 1, NAN, True, None)],
            "confidence.max_tokens": [Confidence(max_tokens=value) for value in (0, 33, True)],
            "acceptance.max_tokens": [Acceptance(value) for value in (0, 33, True)],
            "acceptance.stop": [Acceptance(stop=value) for value in (0, 1, NAN, True, "x")],
        }.items()
        for length in lengths
    ),
    *(("draw.speculative.coupled", axis(Speculative("chat", coupled=value))) for value in (1, None, "yes")),
    *(("draw.speculative.copying", axis(Speculative("chat", copying=value))) for value in (3, "lookup", True)),
    ("draw.speculative.copying", axis(Speculative(PromptLookup(), copying=PromptLookup()))),
    *(
        ("draw.speculative.copying.max_ngram", axis(Speculative("chat", copying=PromptLookup(value))))
        for value in (0, 17, 2.0, True)
    ),
    *(
        (f"search.best_of_n.{field}", axis(BestOfN(**{"n": 4, "objective": "whole", **values})))
        for field, values in (
            *(("n", {"n": value}) for value in (0, -1, 65, 1.0, True, None)),
            ("objective", {"objective": None}),
            ("objective", {"objective": None, "choose": Choose.SOFT}),
            ("objective", {"objective": None, "choose": Choose.MAJORITY, "threshold": 0.5}),
            (
                "objective",
                {"objective": None, "choose": Choose.CONSENSUS, "reject_fraction": 0.5, "check_every_tokens": 4},
            ),
            *(("objective", {"objective": value}) for value in (3, ("whole",), True)),
            *(("objective.terms", {"objective": value}) for value in ({}, Objective(()), Objective("whole"))),
            ("objective.terms", {"objective": Objective((RewardTerm("whole"),) * 33)}),
            ("objective.terms[0]", {"objective": Objective(("whole",))}),
            *(("objective.terms[0].reward", {"objective": value}) for value in ("", {3: 1.0}, {"": 1.0})),
            *(("objective.terms[0].weight", {"objective": {"whole": value}}) for value in (NAN, INF, True, None)),
            *(("objective.combine", {"objective": Objective((RewardTerm("whole"),), v)}) for v in ("sum", None)),
            *(
                ("objective.spread", {"objective": Objective((RewardTerm("whole"),), spread=v)})
                for v in (-0.1, NAN, INF, True, None)
            ),
            *(("choose", {"choose": value}) for value in ("best", None, 1)),
            *(("temperature", {"temperature": value}) for value in (0, -1, NAN, INF, True, None)),
            *(
                ("reject_fraction", {"objective": "helpful", "reject_fraction": value, "check_every_tokens": 4})
                for value in (0, 1, NAN, True, "x")
            ),
            *(
                ("check_every_tokens", {"objective": "helpful", "reject_fraction": 0.5, "check_every_tokens": value})
                for value in (None, 0, True, 1.0)
            ),
            ("check_every_tokens", {"check_every_tokens": 4}),
            *(
                ("max_held_tokens", {"objective": "helpful", "reject_fraction": 0.5, "max_held_tokens": value})
                for value in (0, True, 1.0)
            ),
            ("max_held_tokens", {"max_held_tokens": 4}),
            ("max_held_tokens", {"objective": "helpful", "reject_fraction": 0.5, "max_held_tokens": 31}),
            (
                "max_held_tokens",
                {"objective": "helpful", "reject_fraction": 0.5, "check_every_tokens": 4, "max_held_tokens": 64},
            ),
            *(("threshold", {"threshold": value}) for value in (NAN, INF, True, "x")),
            *(("extract", {"choose": Choose.MAJORITY, "extract": value}) for value in ("", "numbers", None, 3)),
            ("extract", {"extract": "letter"}),
            ("objective", {"objective": None, "choose": Choose.WEIGHTED}),
        )
    ),
    *(
        (f"search.segments.{name}", axis(Segments(**{"objective": "helpful", name: value})))
        for name, values in {
            "objective": (None, 3),
            "beams": (0, 65, True, None),
            "samples_per_beam": (0, 65, True, 17),
            "max_tokens": (0, True, None),
            "delimiter": ("", "é" * 128 + "a", "\ud800", 3),
            "entropy_above": (-0.1, NAN, INF, True),
            "lookahead": (-1, 4097, True, None),
            "reward_weight": (NAN, INF, True, None),
            "logprob_weight": (NAN, INF, True, None),
            "diverse": (1, None),
            "logprob": ("sum", None, 1),
        }.items()
        for value in values
    ),
    *(
        (f"search.reject_segments.{name}", axis(RejectSegments(**{"objective": "helpful", "target": 1.0, name: value})))
        for name, values in {
            "objective": (None, 3),
            "target": (NAN, INF, None, True),
            "beta": (-0.1, NAN, INF, True),
            "entropy_above": (-0.1, NAN, INF, None),
            "min_tokens": (0, True, None),
            "max_tokens": (0, 3, True, None),
            "max_tries": (0, 1001, True),
            "start": (-0.1, 1.1, NAN, True),
            "target_tokens": (-1, True, None, 1.0),
        }.items()
        for value in values
    ),
    *(
        (f"search.evolution.{name}", axis(Evolution(**{"objective": "helpful", name: value})))
        for name, values in {
            "objective": (None, 3),
            "population": (0, 65, True),
            "survivors": (0, 9, True),
            "period_tokens": (0, True, None),
            "rounds": (-1, 65, True, None),
            "mutator": ("", 3, "scorer"),
        }.items()
        for value in values
    ),
    *(
        (f"search.refine.{name}", axis(Refine(**{"objective": "helpful", name: value})))
        for name, values in {
            "objective": (None, 3),
            "rounds": (-1, 65, True, None),
            "critic": ("", 3, "scorer"),
        }.items()
        for value in values
    ),
    *(("references", replace(GOOD, references=value)) for value in ("text", None, 3, ("x",) * 65)),
    ("references[1]", replace(GOOD, references=("a", "\ud800"))),
    ("references[0]", replace(GOOD, references=(3,))),
    ("references", axis(BestOfN(2, "bleu"))),
    ("references", axis(TokenReward("bleu"))),
    ("model", replace(GOOD, model="scorer")),
    ("sampling", replace(GOOD, sampling=None)),
    ("stopping", replace(GOOD, stopping={"stop": ()})),
    ("model", replace(GOOD, model="")),
    ("model", replace(GOOD, model=None)),
]


@pytest.mark.parametrize(("field", "request_"), BAD_FIELDS, ids=[f"{i}-{f}" for i, (f, _) in enumerate(BAD_FIELDS)])
def test_each_bad_field_is_named_alone(field: str, request_: Request) -> None:
    assert refused(request_) == [field]


def test_every_field_is_checked() -> None:
    """A field added to the types without a check here fails this test."""
    named = {field.partition("[")[0] for field, _ in BAD_FIELDS}
    assert {f"sampling.{f.name}" for f in fields(Sampling)} <= named
    assert {f"stopping.{f.name}" for f in fields(Stopping)} <= named
    assert {"model", "prompt", "top_logprobs", "references"} <= named
    for path, cls in {
        "policy.mixture": Mixture,
        "policy.token_reward": TokenReward,
        "policy.guided": Guided,
        "draw.speculative.fixed": Fixed,
        "draw.speculative.confidence": Confidence,
        "draw.speculative.acceptance": Acceptance,
        "draw.speculative.lookup": PromptLookup,
        "search.best_of_n": BestOfN,
        "search.best_of_n.objective": Objective,
        "search.segments": Segments,
        "search.reject_segments": RejectSegments,
        "search.evolution": Evolution,
        "search.refine": Refine,
    }.items():
        assert {f"{path}.{f.name}" for f in fields(cls)} <= named, path


def test_all_bad_fields_at_once() -> None:
    request = Request(
        model="missing",
        prompt="",
        sampling=Sampling(temperature=NAN, top_p=0),
        stopping=Stopping(max_new_tokens=0, stop=("",)),
        policy=Nudged("gone", when=Entropy(-1)),
        top_logprobs=99,
    )
    assert sorted(refused(request)) == sorted(
        [
            "model",
            "prompt",
            "sampling.temperature",
            "sampling.top_p",
            "stopping.max_new_tokens",
            "stopping.stop[0]",
            "policy.nudged.nudger",
            "policy.nudged.entropy_nats_above",
            "top_logprobs",
        ]
    )


@pytest.mark.parametrize(
    "request_",
    [
        replace(GOOD, model="missing"),
        axis(Nudged("missing")),
        axis(Mixture((Weighted("missing"),))),
        axis(Speculative("missing")),
        axis(Evolution("helpful", mutator="missing")),
        axis(Refine("helpful", critic="missing")),
    ],
)
def test_an_unknown_model_alone_is_not_found(request_: Request) -> None:
    with pytest.raises(NotFound, match="'missing': accepted: one of 'base', 'chat', 'foreign', 'scorer', 'twin'"):
        check(request_)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (TokenReward("missing"), "policy.token_reward.reward"),
        (BestOfN(2, {"whole": 1.0, "missing": 1.0}), "search.best_of_n.objective.terms[1].reward"),
        (Segments("missing"), "search.segments.objective.terms[0].reward"),
        (RejectSegments("missing", 1.0), "search.reject_segments.objective.terms[0].reward"),
        (Evolution("missing"), "search.evolution.objective.terms[0].reward"),
        (Refine("missing"), "search.refine.objective.terms[0].reward"),
    ],
)
def test_an_unknown_reward_alone_is_not_found(value: Any, field: str) -> None:
    with pytest.raises(NotFound, match="'missing': accepted: one of 'bleu', 'cheap', 'helpful', 'judge', 'whole'") as e:
        check(axis(value))
    assert e.value.violations[0].field == field


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (Mixture((Weighted("foreign"),)), ("policy.mixture.experts[0].model", "'foreign'", "'base'")),
        (TokenReward("whole"), ("policy.token_reward", "'whole'", "'cheap', 'helpful'")),
        (Segments("whole"), ("search.segments", "'whole'", "prefix or token")),
        (Segments({"helpful": 1, "whole": 1}), ("objective.terms[1].reward", "'whole'")),
        (RejectSegments("whole", 1.0), ("search.reject_segments", "'whole'")),
        (Evolution("whole"), ("search.evolution", "'whole'")),
        (BestOfN(4, "whole", reject_fraction=0.5, check_every_tokens=8), ("best_of_n with reject_fraction", "'whole'")),
        (BestOfN(4, "judge"), ("search.best_of_n", "'judge'", "tournament")),
        (BestOfN(4, "judge", Choose.TOURNAMENT, threshold=0.5), ("threshold with choose=tournament",)),
        (
            BestOfN(4, "judge", Choose.TOURNAMENT, reject_fraction=0.5, check_every_tokens=4),
            ("search.best_of_n", "'judge'", "without reject_fraction"),
        ),
        (
            BestOfN(4, Objective((RewardTerm("judge"),), Combine.MIN), Choose.TOURNAMENT),
            ("objective.combine", "min", "'judge'"),
        ),
        (Segments("judge"), ("search.segments", "'judge'")),
        (Refine("judge"), ("search.refine", "'judge'")),
        (TokenReward("judge"), ("policy.token_reward", "'judge'")),
        (Speculative(PromptLookup(), Confidence()), ("Confidence with PromptLookup", "Fixed, or None")),
        (Speculative(PromptLookup(), Acceptance()), ("Acceptance with PromptLookup", "Fixed, or None")),
    ],
)
def test_what_cannot_be_combined_is_refused_by_pair(value: Any, names: tuple[str, ...]) -> None:
    with pytest.raises(UnsupportedRequest) as caught:
        check(axis(value))
    for name in names:
        assert name in str(caught.value)


def test_a_mistake_is_reported_before_a_pair() -> None:
    assert refused(axis(Segments("whole", beams=0))) == ["search.segments.beams"]
    assert refused(axis(Segments("missing", beams=0))) == [
        "search.segments.beams",
        "search.segments.objective.terms[0].reward",
    ]


def test_references_serve_the_rewards_that_need_them() -> None:
    check(replace(axis(BestOfN(2, "bleu")), references=("an answer",)))


@pytest.mark.parametrize("axis", ["policy", "draw", "search"])
def test_an_unknown_variant_of_an_axis_is_unsupported(axis: str) -> None:
    with pytest.raises(UnsupportedRequest, match=axis):
        check(replace(GOOD, **{axis: object()}))


def test_every_variant_of_the_types_is_known() -> None:
    """A policy, draw or search added to the types and not to validation fails here."""
    assert {type(value) for value in VARIANTS} == {cls for axis in AXES for cls in methods(axis).values()}


def test_limits_are_those_of_the_engine() -> None:
    small = Limits(max_new_tokens=10, max_top_logprobs=1, max_stop=1, max_stop_bytes=2)
    request = replace(GOOD, stopping=Stopping(max_new_tokens=11, stop=("abc", "a")), top_logprobs=2)
    assert refused(request, small) == ["stopping.max_new_tokens", "stopping.stop", "stopping.stop[0]", "top_logprobs"]


def test_sources_are_compared_only_where_there_are_some() -> None:
    models = {name: info(name, "") for name in ("a", "b")}
    validate(Request(model="a", prompt="x", policy=Nudged("b")), models, Limits())


def test_messages_stay_small_however_bad_the_input() -> None:
    request = replace(
        GOOD,
        prompt=[10**6] * 100_000,
        sampling=Sampling(logit_bias=dict.fromkeys(range(1000, 9000), NAN)),
        stopping=Stopping(stop=("",) * 5000),
    )
    with pytest.raises(InvalidRequest) as caught:
        check(request)
    assert len(str(caught.value)) < 4096
    with pytest.raises(InvalidRequest) as caught:
        check(replace(GOOD, prompt=[ChatMessage("tool", "x" * 10_000)] * 1000))
    assert len(str(caught.value)) < 4096


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_nothing_but_typed_errors(data: st.DataObject) -> None:
    """Whatever is in the fields, validation accepts it or raises one of our errors."""

    def some(cls: type) -> Any:
        chosen = data.draw(st.sets(st.sampled_from([f.name for f in fields(cls)]), max_size=2))
        return cls(**{name: data.draw(junk) for name in chosen})

    def spoiled(value: Any) -> Any:
        names = [f.name for f in fields(value)]
        chosen = data.draw(st.sets(st.sampled_from(names), max_size=2)) if names else set()
        return replace(value, **{name: data.draw(junk) for name in chosen})

    def variant(union: Any) -> Any:
        value = spoiled(data.draw(st.sampled_from([v for v in VARIANTS if isinstance(v, union)])))
        for f in fields(value):  # one level down
            inner = getattr(value, f.name)
            if isinstance(inner, Objective | Fixed | Confidence | Acceptance | PromptLookup | Entropy):
                value = replace(value, **{f.name: spoiled(inner)})
        return value

    request = Request(
        model=data.draw(st.sampled_from(["base", "?"]) | junk),
        prompt=data.draw(st.just("hi") | junk),
        sampling=some(Sampling),
        stopping=some(Stopping),
        policy=variant(Policy),
        draw=variant(Draw),
        search=variant(Search),
        references=data.draw(st.one_of(st.just(()), junk)),
        top_logprobs=data.draw(st.just(0) | junk),
    )
    try:
        check(request)
    except TrimtabError:
        return
    resolve_sampling(request.sampling)


def test_prompt_length() -> None:
    assert check_length(10, 5, 64) == 5
    assert check_length(60, 50, 64) == 4  # the answer ends with CONTEXT_FULL
    assert check_length(63, 50, 64) == 1
    for tokens in (64, 65):
        with pytest.raises(InvalidRequest, match="at most 63 tokens"):
            check_length(tokens, 1, 64)
    with pytest.raises(InvalidRequest, match="at least one token"):
        check_length(0, 1, 64)


# --------------------------------------------------------------------------------------------------------- keywords


def test_flat_keywords() -> None:
    request = request_from_kwargs(
        [{"role": "user", "content": "hi"}],
        model="base",
        policy=Nudged("chat"),
        draw=Autoregressive(),
        search=Single(),
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.5,
        logit_bias={1: 2.0},
        seed=7,
        max_new_tokens=9,
        min_new_tokens=1,
        stop="x",
        stop_token_ids=[4],
        eos_token_ids=5,
        ignore_eos=True,
        include_stop=True,
        time_budget=2.0,
        top_logprobs=3,
        references="a reference",
        prompt_cache=False,
    )
    assert request == Request(
        model="base",
        prompt=(ChatMessage("user", "hi"),),
        sampling=Sampling(
            temperature=0.5, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=1.5, logit_bias={1: 2.0}, seed=7
        ),
        stopping=Stopping(
            max_new_tokens=9,
            min_new_tokens=1,
            stop=("x",),
            stop_token_ids=(4,),
            eos_token_ids=(5,),
            ignore_eos=True,
            include_stop=True,
            time_budget=2.0,
        ),
        policy=Nudged("chat"),
        references=("a reference",),
        prompt_cache=False,
        top_logprobs=3,
    )
    check(request)


@pytest.mark.parametrize("objective", ["whole", {"whole": 1.0}, Objective((RewardTerm("whole"),))])
def test_an_objective_in_short_is_written_out(objective: Any) -> None:
    request = request_from_kwargs("hi", model="base", search=BestOfN(4, objective), references=["a", "b"])
    assert request.search == BestOfN(4, Objective((RewardTerm("whole", 1.0),)))
    assert request.references == ("a", "b")
    voted = request_from_kwargs("hi", model="base", search=BestOfN(4, choose=Choose.MAJORITY))
    assert voted.search == BestOfN(4, choose=Choose.MAJORITY, objective=None)
    junk = request_from_kwargs("hi", model="base", search=BestOfN(4, 3))
    assert refused(junk) == ["search.best_of_n.objective"]
    experts = [Weighted("chat")]
    assert request_from_kwargs("hi", model="base", policy=Mixture(experts)).policy == Mixture(tuple(experts))


def test_defaults_and_none() -> None:
    assert request_from_kwargs("hi", model="base") == GOOD
    unset = dict.fromkeys([f.name for f in (*fields(Sampling), *fields(Stopping))])
    assert request_from_kwargs("hi", model="base", **unset, sampling=None, stopping=None) == GOOD


def test_whole_objects() -> None:
    sampling, stopping = Sampling(seed=1), Stopping(stop=("a",))
    request = request_from_kwargs("hi", model="base", sampling=sampling, stopping=stopping)
    assert (request.sampling, request.stopping) == (sampling, stopping)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"temprature": 1, "max_tokens": 3}, {"temprature", "max_tokens"}),
        ({"sampling": Sampling(), "seed": 1, "top_k": 2}, {"seed", "top_k"}),
        ({"stopping": Stopping(), "stop": "x", "nope": 1}, {"stop", "nope"}),
        ({"sampling": {"seed": 1}}, {"sampling"}),
        ({"sampling": Sampling(), "generation_config": GenerationConfig()}, {"sampling"}),
        ({"generation_config": {"do_sample": True}}, {"generation_config"}),
    ],
)
def test_unknown_and_doubled_keywords_are_named(keywords: dict[str, Any], named: set[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        request_from_kwargs("hi", model="base", **keywords)
    assert {v.field for v in caught.value.violations} == named


def test_a_misspelt_keyword_gets_a_suggestion() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'temperature'"):
        request_from_kwargs("hi", model="base", temprature=1)


# ------------------------------------------------------------------------------------------------ generation config


def set_fields(config: GenerationConfig) -> dict[str, Any]:
    return {name: value for name, value in vars(config).items() if not name.startswith("_")}


def test_every_field_of_transformers_is_decided() -> None:
    known = MAPPED | HARMLESS | set(NEUTRAL)
    assert set(set_fields(GenerationConfig())) <= known
    assert len(known) == len(MAPPED) + len(HARMLESS) + len(NEUTRAL)


def test_transformers_own_defaults_are_accepted() -> None:
    defaults = GenerationConfig._get_default_generation_params()
    sampling, stopping = from_generation_config(GenerationConfig(**defaults))
    assert sampling == {"temperature": 0.0, "repetition_penalty": 1.0}
    assert stopping == {}
    sampling, _ = from_generation_config(GenerationConfig(**defaults | {"do_sample": True}))
    unset, _ = from_generation_config(GenerationConfig(do_sample=True))
    assert (
        sampling
        == unset
        == {
            "temperature": 1.0,
            "top_k": defaults["top_k"],
            "top_p": 1.0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
    )


def test_mapped_fields() -> None:
    config = GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=0,
        top_p=0.9,
        min_p=0.05,
        repetition_penalty=1.2,
        max_new_tokens=12,
        min_new_tokens=3,
        max_time=1.5,
        stop_strings="end",
        eos_token_id=[2, 3],
        suppress_tokens=[4],
        bad_words_ids=[[5], [2]],
        sequence_bias={(6,): 1.5, (5,): 9.0},
        num_beams=1,
        pad_token_id=0,
    )
    request = request_from_kwargs("hi", model="base", generation_config=config)
    check(request)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.min_p, sampling.repetition_penalty) == (0.7, 0.9, 0.05, 1.2)
    assert sampling.top_k == 0  # keeps every token, and must not become the model's default
    assert sampling.logit_bias == {4: -INF, 5: -INF, 6: 1.5}  # transformers never bans an end token as a bad word
    assert request.stopping == Stopping(
        max_new_tokens=12,
        min_new_tokens=3,
        stop=("end",),
        eos_token_ids=(2, 3),
        time_budget=1.5,
    )


def test_keywords_override_the_generation_config() -> None:
    config = GenerationConfig(max_new_tokens=5, do_sample=True, top_p=0.5)
    request = request_from_kwargs("hi", model="base", generation_config=config, max_new_tokens=7, top_k=4)
    assert (request.stopping.max_new_tokens, request.sampling.top_k, request.sampling.top_p) == (7, 4, 0.5)


def test_the_models_own_config_fills_what_is_unset() -> None:
    own = GenerationConfig(do_sample=True, top_k=7, temperature=0.6, eos_token_id=[2, 1])
    sampling, stopping = from_generation_config(GenerationConfig(temperature=0.9, eos_token_id=[1, 2]), own)
    assert (sampling["temperature"], sampling["top_k"]) == (0.9, 7)
    assert stopping == {}  # the model's own end tokens end the answer as EOS
    _, stopping = from_generation_config(GenerationConfig(eos_token_id=2), own)
    assert stopping == {"eos_token_ids": (2,)}


REFUSED: dict[str, Any] = {
    "max_length": 30,
    "min_length": 3,
    "num_beams": 4,
    "num_beam_groups": 2,
    "diversity_penalty": 0.5,
    "use_mtp": True,
    "cache_implementation": "quantized",
    "top_h": 0.4,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "encoder_repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "encoder_no_repeat_ngram_size": 3,
    "forced_bos_token_id": 1,
    "forced_eos_token_id": 1,
    "remove_invalid_values": True,
    "exponential_decay_length_penalty": (1, 1.1),
    "begin_suppress_tokens": [1],
    "token_healing": True,
    "guidance_scale": 1.5,
    "watermarking_config": {"bias": 1.0},
    "num_return_sequences": 2,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_scores": True,
    "output_logits": True,
    "prompt_lookup_num_tokens": 3,
    "assistant_early_exit": 2,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
    "penalty_alpha": 0.6,
    "dola_layers": "high",
    "constraints": ["x"],
    "force_words_ids": [[1]],
    "bad_words_ids": [[1, 2]],
    "sequence_bias": {(1, 2): 1.0},
    "a_field_of_a_later_transformers": 1,
}


def test_unsupported_fields_are_refused_all_at_once() -> None:
    assert set(NEUTRAL) <= set(REFUSED)
    config = GenerationConfig()
    for name, value in REFUSED.items():  # set afterwards: transformers refuses some of the combinations
        setattr(config, name, value)
    with pytest.raises(InvalidRequest) as caught:
        request_from_kwargs("hi", model="base", generation_config=config, typo=1)
    named = [v.field for v in caught.value.violations]
    assert sorted(named) == sorted([f"generation_config.{name}" for name in REFUSED] + ["typo"])


@pytest.mark.parametrize("name", REFUSED)
def test_each_unsupported_field_is_refused_alone(name: str) -> None:
    config = GenerationConfig()
    setattr(config, name, REFUSED[name])
    with pytest.raises(InvalidRequest, match=f"generation_config.{name} = "):
        from_generation_config(config)


def test_max_length_gives_way_to_max_new_tokens() -> None:
    assert from_generation_config(GenerationConfig(max_length=99, max_new_tokens=5))[1] == {"max_new_tokens": 5}


# ------------------------------------------------------------------------------------------------------- resolution


def test_defaults_without_a_sampling_model_config() -> None:
    for config in (None, GenerationConfig(), GenerationConfig(do_sample=False, temperature=0.1, top_k=5)):
        drawing = resolve_sampling(Sampling(seed=3), config)
        resolved = drawing.filters
        assert (resolved.temperature, resolved.top_k, resolved.top_p, resolved.min_p) == (1.0, 0, 1.0, 0.0)
        assert (resolved.repetition_penalty, drawing.key.seed, drawing.greedy) == (1.0, 3, False)


def test_a_sampling_model_config_fills_what_is_unset() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.1)
    resolved = resolve_sampling(Sampling(top_p=1.0), config).filters
    assert (resolved.temperature, resolved.top_k, resolved.top_p) == (0.6, 20, 1.0)
    assert resolved.repetition_penalty == 1.1
    assert (
        resolve_sampling(Sampling(), GenerationConfig(do_sample=True)).filters.top_k == 0
    )  # only what the model names


def test_a_models_repetition_penalty_holds_without_sampling() -> None:
    assert resolve_sampling(Sampling(), GenerationConfig(repetition_penalty=1.3)).filters.repetition_penalty == 1.3


def test_explicit_zero_is_greedy() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.6)
    assert resolve_sampling(Sampling(temperature=0), config).greedy


def test_values_out_of_range_in_a_models_file_count_as_unset() -> None:
    config = GenerationConfig(do_sample=True)
    for name, value in {"temperature": 0.0, "top_k": -1, "top_p": 0.0, "min_p": NAN, "repetition_penalty": -2}.items():
        setattr(config, name, value)
    assert resolve_sampling(Sampling(seed=0), config) == resolve_sampling(Sampling(seed=0))


def test_seeds() -> None:
    assert resolve_sampling(Sampling(), None, rng=lambda n: b"\x01\x02\x03\xff"[:n]).key.seed == 0xFF030201
    assert resolve_sampling(Sampling(seed=0), None, rng=os.urandom).key.seed == 0
    drawn = {resolve_sampling(Sampling()).key.seed for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < 2**32 for seed in drawn)


def test_resolved_values_do_not_follow_the_callers_mapping() -> None:
    bias = {1: 1.0}
    request = request_from_kwargs("hi", model="base", logit_bias=bias)
    drawing = resolve_sampling(Sampling(logit_bias=bias))
    bias[2] = math.inf
    assert request.sampling.logit_bias == drawing.filters.bias == {1: 1.0}
