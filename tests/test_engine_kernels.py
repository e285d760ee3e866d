"""Tokens, statistics and decisions of the engine come from ``kernels/``: recorded there, and followed when changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy, TopProb
from trimtab.decode.request.result import Result, Token, TokenDraw
from trimtab.kernels import dispatch, paths
from trimtab.kernels.paths import Call
from trimtab.kernels.results import Stats

Folder = Callable[..., Path]
Change = Callable[[Stats], Stats]

PROMPT = [5, 9, 2, 7, 7, 1]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="module", params=["cpu", GPU])
def engine(request: pytest.FixtureRequest, tiny_folder: Folder) -> Iterator[Engine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    kinds = {"base": ("llama", 0), "draft": ("llama", 1), "twin": ("llama", 0), "chat": ("mistral", 2)}
    models = {
        name: ModelConfig(source=str(tiny_folder(kind, seed)), dtype="float32", device=request.param)
        for name, (kind, seed) in kinds.items()
    }
    options = EngineOptions(memory_bytes=64 << 20, page_tokens=16)
    with Engine(models, options=options) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


class Seen(NamedTuple):
    """One row that an operation answered: what it says of the row, as a token reports it."""

    op: str
    logprob: float
    entropy: float
    top_prob: float


class Spy:
    """Listens to the dispatcher on whatever thread, and may change what it answers.

    Attributes:
        calls: operations with the path that ran each.
        rows: of all answers, in order.
        change: applied to the statistics of every answer.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Call] = []
        self.rows: list[Seen] = []
        self.change: Change = lambda stats: stats
        for op in ("pick", "mix", "verify", "stats", "blend", "top_logprobs"):
            monkeypatch.setattr(dispatch, op, self._wrapped(op, getattr(dispatch, op)))

    def _wrapped(self, op: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            with paths.record() as calls:
                answer = call(*args, **options)
            self.calls += calls
            if isinstance(answer, Stats):
                answer = self.change(answer)
                self._note(op, answer)
            elif hasattr(answer, "stats"):
                answer = answer._replace(stats=self.change(answer.stats))
                self._note(op, answer.stats)
            return answer

        return wrapped

    def _note(self, op: str, stats: Stats) -> None:
        columns = (stats.logprob.tolist(), stats.entropy.tolist(), stats.top_prob.tolist())
        self.rows += [Seen(op, *row) for row in zip(*columns, strict=True)]

    @property
    def ops(self) -> set[str]:
        return {call.op for call in self.calls}

    def said(self, token: Token, *ops: str) -> bool:
        """Whether one of these operations said exactly this of a row."""
        return any(row.op in ops and row[1:] == (token.logprob, token.entropy, token.top_prob) for row in self.rows)


@pytest.fixture
def spy(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    made = Spy(monkeypatch)
    yield made
    path = "triton" if engine.models["base"].device.startswith("cuda") else "torch"
    found = {call.path for call in made.calls}
    assert found == {path}, "another path than the device's fastest"


def run(engine: Engine, **options: Any) -> Result:
    return engine.generate(PROMPT, model="base", **{"max_new_tokens": 24, "seed": 4, "ignore_eos": True, **options})


def ids(result: Result) -> list[int]:
    return [token.id for token in result.tokens]


SAMPLINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.9, "top_p": 0.9, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.2, "logit_bias": {3: -1.0}},
)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_plain_decoding(engine: Engine, spy: Spy, sampling: dict[str, Any]) -> None:
    result = run(engine, **sampling, top_logprobs=2)
    assert spy.ops == {"pick", "top_logprobs"}
    assert len(result.tokens) == 24
    assert all(spy.said(token, "pick") for token in result.tokens)


def test_statistics_of_tokens_are_the_kernels_own(engine: Engine, spy: Spy) -> None:
    """Changed in the kernels' answer, they change in the engine's, and the tokens don't."""
    plain = run(engine, temperature=0)
    spy.change = lambda stats: stats._replace(
        entropy=stats.entropy + 3, top_prob=stats.top_prob / 2, logprob=stats.logprob - 1
    )
    changed = run(engine, temperature=0)
    assert ids(changed) == ids(plain)
    for token, other in zip(changed.tokens, plain.tokens, strict=True):
        assert other.entropy is not None
        assert other.top_prob is not None
        assert other.logprob is not None
        assert (token.entropy, token.top_prob, token.logprob) == pytest.approx(
            (other.entropy + 3, other.top_prob / 2, other.logprob - 1), rel=1e-6
        )


def test_nudging_decides_by_the_kernels_statistics(engine: Engine, spy: Spy) -> None:
    """Who writes follows from what the dispatcher says of the base, and from nothing else."""
    for when, sure, unsure in (
        (Entropy(above=3.0), {"entropy": 0.1}, {"entropy": 9.0}),
        (TopProb(below=0.3), {"top_prob": 0.9}, {"top_prob": 0.01}),
    ):
        policy = Nudged("chat", when=when, max_span_tokens=3)
        spy.rows.clear()
        spy.change = lambda stats: stats
        result = run(engine, policy=policy, temperature=0)
        assert all(spy.said(token, "pick") for token in result.tokens)
        for values, author in ((sure, "base"), (unsure, "chat")):
            spy.change = lambda stats, values=values: stats._replace(
                **{name: torch.full_like(getattr(stats, name), value) for name, value in values.items()}
            )
            changed = run(engine, policy=policy, temperature=0)
            assert changed.tokens[0].author == author
            assert sum(token.author == author for token in changed.tokens) >= 12


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_mixtures(engine: Engine, spy: Spy, sampling: dict[str, Any]) -> None:
    policy = Mixture((Weighted("chat", 0.6), Weighted("draft", -0.3)), plausibility=0.01)
    result = run(engine, policy=policy, **sampling)
    assert "mix" in spy.ops
    assert all(spy.said(token, "mix") for token in result.tokens)


@pytest.mark.parametrize("policy", [None, Mixture((Weighted("chat", 0.6),))], ids=["base", "mixture"])
@pytest.mark.parametrize("draft", ["draft", "twin", PromptLookup(2)], ids=["draft", "twin", "lookup"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
def test_verification(
    engine: Engine, spy: Spy, policy: Mixture | None, draft: str | PromptLookup, sampling: dict[str, Any]
) -> None:
    options = {"policy": policy} if policy else {}
    result = run(engine, draw=Speculative(draft, Fixed(3)), **options, **sampling)
    if result.usage.drafted_tokens:
        assert "verify" in spy.ops
    else:
        assert isinstance(draft, PromptLookup)
    assert ("blend" in spy.ops) == (policy is not None and "verify" in spy.ops)
    for token in result.tokens:
        if token.draw is TokenDraw.PLAIN:
            assert spy.said(token, "pick", "mix", "verify")
        else:
            assert spy.said(token, "verify"), token


def test_the_accepted_prefix_is_the_kernels_own(engine: Engine, spy: Spy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification that refuses everything is obeyed."""
    draw = Speculative("twin", Fixed(3))
    assert run(engine, draw=draw, temperature=0).usage.accepted_tokens >= 12
    verify = dispatch.verify

    def refuse(logits: torch.Tensor, windows: Any, **options: Any) -> Any:
        answer = verify(logits, windows, **options)
        first = torch.tensor([0, *(len(window.rows) for window in windows)]).cumsum(0)[:-1].to(logits.device)
        return answer._replace(accepted=torch.zeros_like(answer.accepted), token=logits.argmax(-1)[first])

    plain = run(engine, temperature=0)
    monkeypatch.setattr(dispatch, "verify", refuse)
    refused = run(engine, draw=draw, temperature=0)
    assert refused.usage.accepted_tokens == 0 < refused.usage.drafted_tokens
    assert ids(refused) == ids(plain)


def test_scores(engine: Engine, spy: Spy) -> None:
    (scored,) = engine.score([("the cat", " sat")], model="base")
    assert spy.ops == {"stats"}
    assert all(spy.said(token, "stats") for token in scored.tokens)
