"""The axes on one line: what is written is what is meant, and a mistake is named by option, part and remedy."""

from __future__ import annotations

import contextlib
import json
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.decode.errors import InvalidRequest
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
from trimtab.decode.request.method import AXES, Draw, Policy, Search, methods
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.spec_string import parse_draw, parse_objective, parse_policy, parse_reward, parse_search

HELPFUL = Objective((RewardTerm("helpful"),))
BOTH = Objective((RewardTerm("helpful"), RewardTerm("short", 0.2)))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("base", Base()),
        ("nudged:chat", Nudged("chat")),
        ("nudged:chat,when=entropy:1.5", Nudged("chat", Entropy(1.5))),
        (" nudged : chat , when = top_prob : 0.3 , max_span_tokens = 8 ", Nudged("chat", TopProb(0.3), 8)),
        ("nudged:nudger=chat,when=branching:9,max_span_tokens=none", Nudged("chat", Branching(9.0))),
        ("mixture:chat", Mixture((Weighted("chat"),))),
        ("mixture:chat=1,base2=-1", Mixture((Weighted("chat", 1.0), Weighted("base2", -1.0)))),
        ("mixture:small=-0.5,plausibility=0.1", Mixture((Weighted("small", -0.5),), 0.1)),
        ("guided", Guided()),
        ('guided:2,system="Be rude, please.",plausibility=0.1', Guided(2.0, None, "Be rude, please.", 0.1)),
        ('guided:prompt=""', Guided(prompt="")),
        ("token_reward:helpful", TokenReward("helpful")),
        ("token_reward:helpful,weight=0.5,width=20", TokenReward("helpful", 0.5, 20)),
        ("autoregressive", Autoregressive()),
        ("speculative:draft", Speculative("draft")),
        ("speculative:draft,length=fixed:4", Speculative("draft", Fixed(4))),
        ("speculative:draft,coupled,length=acceptance", Speculative("draft", Acceptance(), True)),
        ("speculative:draft,length=confidence:0.3,coupled=true", Speculative("draft", Confidence(0.3), True)),
        ("speculative:draft,length=(confidence:0.3,max_tokens=8)", Speculative("draft", Confidence(0.3, 8))),
        ("speculative:draft,length=(acceptance:stop=0.4,max_tokens=8)", Speculative("draft", Acceptance(8, 0.4))),
        ("speculative:lookup", Speculative(PromptLookup())),
        ("speculative:lookup:5", Speculative(PromptLookup(5))),
        ("speculative:lookup,length=fixed:4,coupled", Speculative(PromptLookup(), Fixed(4), True)),
        ("speculative:draft=(lookup:max_ngram=2),length=fixed:4", Speculative(PromptLookup(2), Fixed(4))),
        ("speculative:draft=lookups", Speculative("lookups")),
        ("speculative:draft,copying=lookup", Speculative("draft", copying=PromptLookup())),
        (
            "speculative:draft,length=fixed:4,copying=(lookup:2)",
            Speculative("draft", Fixed(4), copying=PromptLookup(2)),
        ),
        ("single", Single()),
        ("best_of_n:16,objective=helpful", BestOfN(16, HELPFUL)),
        ("best_of_n:4,choose=majority", BestOfN(4, choose=Choose.MAJORITY)),
        ("best_of_n:4,choose=majority,extract=letter", BestOfN(4, choose=Choose.MAJORITY, extract="letter")),
        ("best_of_n:4,objective=helpful,choose=weighted", BestOfN(4, HELPFUL, Choose.WEIGHTED)),
        (
            "best_of_n:objective=helpful,reject_fraction=0.5,max_held_tokens=512",
            BestOfN(None, HELPFUL, reject_fraction=0.5, max_held_tokens=512),
        ),
        (
            "segments:helpful,logprob_weight=1,logprob=mean",
            Segments(HELPFUL, logprob_weight=1.0, logprob=Logprob.MEAN),
        ),
        ("reject_segments:helpful,target=1,target_tokens=0", RejectSegments(HELPFUL, 1.0, target_tokens=0)),
        (
            "best_of_n:n=4,objective=(helpful=1,short=0.2),choose=soft,temperature=0.5,threshold=-1",
            BestOfN(4, BOTH, Choose.SOFT, 0.5, threshold=-1.0),
        ),
        (
            "best_of_n:8,objective=helpful,reject_fraction=0.5,check_every_tokens=32",
            BestOfN(8, HELPFUL, reject_fraction=0.5, check_every_tokens=32),
        ),
        ("segments:helpful", Segments(HELPFUL)),
        ("segments:(helpful,short=0.2),beams=2,samples_per_beam=3,diverse", Segments(BOTH, 2, 3, diverse=True)),
        (
            'segments:helpful,delimiter="\\n, (\\"x\\")",lookahead=8',
            Segments(HELPFUL, delimiter='\n, ("x")', lookahead=8),
        ),
        ("segments:helpful,delimiter=.", Segments(HELPFUL, delimiter=".")),
        ("reject_segments:helpful,target=0.8,beta=0", RejectSegments(HELPFUL, 0.8, 0.0)),
        ("evolution:helpful,population=4,mutator=chat", Evolution(HELPFUL, 4, mutator="chat")),
        ("refine:helpful,rounds=3,critic=none", Refine(HELPFUL, 3)),
        ("helpful", HELPFUL),
        ("helpful=1,short=0.2", BOTH),
        (
            "helpful,short=-1e-1,combine=conservative,spread=2",
            Objective((RewardTerm("helpful"), RewardTerm("short", -0.1)), Combine.CONSERVATIVE, 2.0),
        ),
        ('"we,ird"=2', Objective((RewardTerm("we,ird", 2.0),))),
        (
            '"we=ird","combine"=2,"\\u00e9 \\""',
            Objective(tuple(map(RewardTerm, ("we=ird", "combine", 'é "'), (1, 2, 1)))),
        ),
        ('mixture:"a,b"=-1,"plausibility"=2', Mixture((Weighted("a,b", -1.0), Weighted("plausibility", 2.0)))),
        ('"we,ird"=length,at_most=50', ("we,ird", {"type": "length", "at_most": 50})),
        ("short=length,at_most=50", ("short", {"type": "length", "at_most": 50})),
        (
            'j=json,schema={"type": "object", "required": ["a", "b"]},strict=true,note=a b,quoted="x,y"',
            (
                "j",
                {
                    "type": "json",
                    "schema": {"type": "object", "required": ["a", "b"]},
                    "strict": True,
                    "note": "a b",
                    "quoted": "x,y",
                },
            ),
        ),
    ],
)
def test_what_is_written_is_what_is_meant(text: str, meant: Any) -> None:
    if isinstance(meant, Policy):
        assert parse_policy(text) == meant
    elif isinstance(meant, Draw):
        assert parse_draw(text) == meant
    elif isinstance(meant, Search):
        assert parse_search(text) == meant
    elif isinstance(meant, Objective):
        assert parse_objective(text) == meant
    else:
        assert parse_reward(text) == meant


def test_an_objective_may_stand_beside_the_search() -> None:
    assert parse_search("best_of_n:16", HELPFUL) == BestOfN(16, HELPFUL)
    assert parse_search("segments", BOTH) == Segments(BOTH)
    assert parse_search("segments:beams=4,samples_per_beam=4", BOTH) == Segments(BOTH, 4, 4)
    assert parse_search("reject_segments:target=1", HELPFUL) == RejectSegments(HELPFUL, 1.0)
    assert parse_search("evolution", HELPFUL) == Evolution(HELPFUL)
    assert parse_search("refine:rounds=1", HELPFUL) == Refine(HELPFUL, 1)


@pytest.mark.parametrize(
    ("parse", "text", "field", "accepted"),
    [
        (parse_policy, "nudge:chat", "--x", "did you mean 'nudged'"),
        (parse_policy, "", "--x", "one of base, guided, mixture, nudged, token_reward"),
        (parse_policy, "nudged", "--x nudged.nudger", "nudger=..."),
        (parse_policy, "nudged:chat,when=entropy:x", "--x nudged.when.entropy.above", "a number"),
        (parse_policy, "nudged:chat,when=entrop:1", "--x nudged.when", "did you mean 'entropy'"),
        (parse_policy, "nudged:chat,max_span_tokens=2.5", "--x nudged.max_span_tokens", "a whole number"),
        (parse_policy, "nudged:chat,chat", "--x nudged", "one of nudger, when, max_span_tokens"),
        (parse_policy, "base:1", "--x base", "nothing after the name"),
        (parse_policy, "mixture", "--x mixture", "names and their weights"),
        (parse_policy, "mixture:a=b", "--x mixture a", "a number"),
        (parse_draw, "speculative", "--x speculative.draft", "draft=..."),
        (parse_draw, "speculative:d,length=(fixed:4", "--x", "a closing )"),
        (parse_draw, "speculative:d,length=fixed", "--x speculative.length.fixed.tokens", "tokens=..."),
        (parse_draw, "speculative:d,length=4", "--x speculative.length", "one of fixed, confidence, acceptance"),
        (parse_draw, "speculative:d,coupled=yes", "--x speculative.coupled", "true or false"),
        (parse_draw, "speculative:lookup:x", "--x speculative.draft.lookup.max_ngram", "a whole number"),
        (parse_search, "best_of_n:x,objective=a", "--x best_of_n.n", "a whole number"),
        (parse_search, "best_of_n:4,n=4", "--x best_of_n.n", "one value"),
        (parse_search, "best_of_n:4,objective=a,choose=bst", "--x best_of_n.choose", "best, soft, worst"),
        (parse_search, "segments:beams=2", "--x segments.objective", "an objective beside it"),
        (parse_search, "segments:a,bams=2", "--x segments.bams", "beams"),
        (parse_search, "segments:a,,beams=2", "--x segments", "no empty part"),
        (parse_search, 'segments:a,delimiter="x', "--x", 'a closing "'),
        (parse_search, 'segments:a,delimiter="x"y', "--x segments.delimiter", "double quotes"),
        (parse_search, "reject_segments:a", "--x reject_segments.target", "target=..."),
        (parse_objective, "", "--x", "no empty part"),
        (parse_objective, "combine=min", "--x", "names and their weights"),
        (parse_objective, "a,combine=mean", "--x combine", "sum, log_sigmoid"),
        (parse_objective, "a=1,b=x", "--x b", "a number"),
        (parse_reward, "x", "--x", "NAME=TYPE"),
        (parse_reward, "x=", "--x", "NAME=TYPE"),
        (parse_reward, "x=length,5", "--x x", "KEY=VALUE"),
        # A key that is named twice: which of the two is meant?
        (parse_policy, "mixture:a=1,a=2", "--x mixture a", "one value"),
        (parse_policy, 'mixture:a=1,"a"', "--x mixture a", "one value"),
        (parse_policy, "mixture:a=1,plausibility=0.1,plausibility=0.2", "--x mixture.plausibility", "one value"),
        (parse_objective, "a=1,b=2,a=3", "--x a", "one value"),
        (parse_objective, "a,combine=min,combine=sum", "--x combine", "one value"),
        (parse_objective, "a,spread=1,spread=1", "--x spread", "one value"),
        (parse_reward, "x=length,at_most=5,at_most=6", "--x x.at_most", "one value"),
        (parse_reward, "x=length,type=judge", "--x x.type", "one value"),
        (parse_reward, 'x=json,schema={"a": 1, "a": 2}', "--x x.schema", "one value for each key"),
        # Keys and values that are not there.
        (parse_search, "best_of_n:=16", "--x best_of_n", "a name before ="),
        (parse_search, "best_of_n:n=", "--x best_of_n.n", "a whole number"),
        (parse_search, "segments:a,", "--x segments", "no empty part"),
        (parse_policy, "nudged:", "--x nudged", "no empty part"),
        (parse_objective, "a,", "--x", "no empty part"),
        (parse_objective, "=1", "--x", "a name before ="),
        (parse_objective, '""=1', "--x", "a name before ="),
        (parse_objective, '""', "--x", "a name"),
        (parse_policy, 'mixture:""', "--x mixture", "a name"),
        (parse_reward, "x=length,=5", "--x", "a name before ="),
        (parse_reward, "x=length,", "--x", "no empty part"),
        # Quotes hold all of a text or none of it.
        (parse_objective, 'a"b,c"d=1', "--x", "double quotes"),
        (parse_objective, '"a"b=1', "--x", "double quotes"),
        (parse_policy, 'nudged:a"b"', "--x nudged.nudger", "double quotes"),
        (parse_reward, 'x=regex,pattern="a"b', "--x x.pattern", "double quotes"),
        (parse_objective, r'"a\x"=1', "--x", "double quotes"),
    ],
)
def test_a_mistake_is_named(parse: Any, text: str, field: str, accepted: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text, option="--x")
    (violation,) = caught.value.violations
    assert violation.field == field
    assert accepted in violation.accepted


@pytest.mark.parametrize(
    ("text", "accepted"),
    [("single", "a search that has one"), ("refine:short", "one objective"), ("segments:a", "one")],
)
def test_an_objective_too_many_is_named(text: str, accepted: str) -> None:
    with pytest.raises(InvalidRequest, match=accepted):
        parse_search(text, HELPFUL)


# ------------------------------------------------------------------------------------------------- by their own fields

_NAMES = (
    {
        cls: "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__)[1:]
        for axis in AXES
        for cls in methods(axis).values()
    }
    | {Entropy: "entropy", TopProb: "top_prob", Branching: "branching", PromptLookup: "lookup"}
    | {Fixed: "fixed", Confidence: "confidence", Acceptance: "acceptance"}
)


def written(value: Any) -> str:
    """The long form: every field by name."""
    match value:
        case Objective():
            terms = [f"{json.dumps(term.reward)}={term.weight!r}" for term in value.terms]
            return f"({','.join([*terms, f'combine={value.combine.value}', f'spread={value.spread!r}'])})"
        case Mixture():
            parts = [f"{json.dumps(expert.model)}={expert.weight!r}" for expert in value.experts]
            return "mixture:" + ",".join(
                [*parts, *([] if value.plausibility is None else [f"plausibility={value.plausibility}"])]
            )
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Enum():
            return str(value.value)
        case str():
            return json.dumps(value)
        case _ if is_dataclass(value):
            inner = ",".join(f"{f.name}={written(getattr(value, f.name))}" for f in fields(value))
            text = f"{_NAMES[type(value)]}:{inner}" if inner else _NAMES[type(value)]
            return text if isinstance(value, Policy | Draw | Search) else f"({text})"
    return repr(value)


numbers = st.floats(allow_nan=False)
counts = st.integers()
texts = st.text()
names = st.text(min_size=1) | st.sampled_from(
    ["combine", "plausibility", "none", "lookup", "a,b", "(a)", 'a"b', "a=b", " a"]
)
objectives = st.builds(
    Objective,
    st.lists(st.builds(RewardTerm, names, numbers), min_size=1, max_size=3, unique_by=lambda t: t.reward).map(tuple),
    st.sampled_from(Combine),
    numbers,
)
maybe = st.none() | numbers
policies = st.one_of(
    st.builds(Nudged, texts, st.none() | st.builds(Entropy, numbers) | st.builds(TopProb, numbers), st.none() | counts),
    st.builds(
        Mixture,
        st.lists(st.builds(Weighted, names, numbers), min_size=1, max_size=3, unique_by=lambda w: w.model).map(tuple),
        maybe,
    ),
    st.builds(TokenReward, texts, numbers, counts),
)
lengths = st.one_of(
    st.none(), st.builds(Fixed, counts), st.builds(Confidence, numbers, counts), st.builds(Acceptance, counts, maybe)
)
draws = st.builds(Speculative, texts | st.builds(PromptLookup, counts), lengths, st.booleans())
searches = st.one_of(
    st.builds(
        BestOfN,
        st.none() | counts,
        objectives,
        st.sampled_from(Choose),
        numbers,
        maybe,
        st.none() | counts,
        maybe,
        st.none() | counts,
        texts,
    ),
    st.builds(
        Segments,
        objectives,
        counts,
        counts,
        counts,
        st.none() | texts,
        maybe,
        counts,
        numbers,
        numbers,
        st.booleans(),
        st.sampled_from(Logprob),
    ),
    st.builds(RejectSegments, objectives, numbers, numbers, numbers, counts, counts, counts, numbers, counts),
    st.builds(Evolution, objectives, counts, counts, counts, counts, st.none() | texts),
    st.builds(Refine, objectives, counts, st.none() | texts),
)


@settings(max_examples=150, deadline=None)
@given(policies, draws, searches)
def test_every_value_can_be_written(policy: Any, draw: Any, search: Any) -> None:
    assert parse_policy(written(policy)) == policy
    assert parse_draw(written(draw)) == draw
    assert parse_search(written(search)) == search


@settings(max_examples=300, deadline=None)
@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["nudged", "speculative", "segments", "best_of_n", "mixture", "objective", "lookup", "none", "1"]
        )
        | st.sampled_from(':,=()"[]\\ a'),
        max_size=12,
    ).map("".join)
)
def test_nothing_but_typed_errors(text: str) -> None:
    for parse in (parse_policy, parse_draw, parse_search, parse_objective, parse_reward):
        with contextlib.suppress(InvalidRequest):
            parse(text)
