"""Speculation, mixtures and given tokens in the engine, with random models: the answer is that of plain decoding."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine import runner
from trimtab.decode.engine.engine import Engine
from trimtab.decode.engine.loop import tick
from trimtab.decode.engine.plan import Output, Plan
from trimtab.decode.engine.sampler import read
from trimtab.decode.engine.scheduler import Scheduler
from trimtab.decode.engine.work import SHORT
from trimtab.decode.methods.draws.length import Confidence, Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.request.events import Completed
from trimtab.decode.request.result import FinishReason, Result, TokenDraw

Folder = Callable[..., Path]

LENGTHS = (Fixed(1), Fixed(3), Fixed(7), Confidence(0.2, 6))
DRAFTS: tuple[Speculative, ...] = (
    *(Speculative("draft", length) for length in LENGTHS),
    *(Speculative("twin", length) for length in LENGTHS[1:]),
    Speculative(PromptLookup(2), Fixed(4)),
    Speculative(PromptLookup(3)),
    Speculative("draft", Fixed(3), copying=PromptLookup(2)),
    Speculative("draft", Confidence(), copying=PromptLookup(3)),
)


@pytest.fixture(scope="module")
def engine(tiny_folder: Folder) -> Iterator[Engine]:
    """A target, a draft that seldom agrees with it, one that always does, and a helper."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    kinds = {"base": ("llama", 0), "draft": ("llama", 1), "twin": ("llama", 0), "chat": ("mistral", 2)}
    models = {n: ModelConfig(source=str(tiny_folder(k, seed)), dtype="float32") for n, (k, seed) in kinds.items()}
    options = EngineOptions(memory_bytes=64 << 20, page_tokens=16)
    with Engine(models, rewards={"short": lambda prompt, text: -float(len(text))}, options=options) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


def ids(result: Result) -> list[int]:
    return [token.id for token in result.tokens]


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 260, (3 + 9 * i,), generator=generator).tolist() for i in range(count)]


@pytest.mark.parametrize("draw", DRAFTS, ids=str)
@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.3}]
)
def test_speculation_writes_what_plain_decoding_does(
    engine: Engine, draw: Speculative, sampling: dict[str, Any]
) -> None:
    """Greedy, and coupled; alone and in a batch beside plain requests."""
    if sampling["temperature"]:
        draw = replace(draw, coupled=True)
    options: dict[str, Any] = {**sampling, "max_new_tokens": 40, "seed": 3}
    plain = engine.generate(prompts(6), **options)
    alone = [engine.generate(prompt, draw=draw, **options) for prompt in prompts(6)]
    together = engine.generate(prompts(6), draw=draw, **options)
    assert [ids(r) for r in alone] == [ids(r) for r in plain]
    assert [ids(r) for r in together] == [ids(r) for r in plain]
    for result, expected in zip(together, plain, strict=True):
        usage = result.usage
        assert result.finish_reason == expected.finish_reason
        assert result.reproducible
        assert usage.drafted_tokens == usage.accepted_tokens + usage.discarded_tokens
        marked = [t for t in result.tokens if t.draw is TokenDraw.ACCEPTED]
        assert len(marked) <= usage.accepted_tokens
        for token, other in zip(result.tokens, expected.tokens, strict=True):
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
    if draw.draft == "twin" and isinstance(draw.length, Fixed) and not sampling["temperature"]:
        assert all(r.usage.discarded_tokens <= 7 for r in together)
        forwards = {m.model: m.forward_passes for m in together[-1].usage.models}
        assert forwards["base"] <= len(together[-1].tokens) / 2


def test_plain_rows_beside_blocks_write_what_they_do_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are verified in one call with the blocks, as blocks of no tokens."""
    options: dict[str, Any] = {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.3, "seed": 11}
    options |= {"max_new_tokens": 60, "top_logprobs": 3}
    alone = engine.generate(prompts(3), **options)
    empty: list[int] = []

    def watched(logits: Any, windows: Any, piece: Any) -> Any:
        empty.append(sum(not window.tokens for window in windows) * any(window.tokens for window in windows))
        return read(logits, windows, piece)

    monkeypatch.setattr("trimtab.decode.engine.runner.read", watched)
    with ThreadPoolExecutor(1) as pool:
        draw = Speculative("draft", Fixed(3))
        others = pool.submit(
            engine.generate, prompts(5), draw=draw, temperature=1.0, max_new_tokens=200, ignore_eos=True
        )
        while not empty:
            time.sleep(0.001)
        beside = engine.generate(prompts(3), **options)
        others.result()
    assert sum(empty) > 20
    for one, other in zip(beside, alone, strict=True):
        assert ids(one) == ids(other)
        for token, expected in zip(one.tokens, other.tokens, strict=True):
            assert token.draw is expected.draw
            assert token.logprob == pytest.approx(expected.logprob, abs=1e-4)
            assert token.entropy == pytest.approx(expected.entropy, abs=1e-4)
            assert [t.id for t in token.top] == [t.id for t in expected.top]


def test_a_block_that_follows_a_prompt_is_verified_in_the_same_tick(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that joins others loses no round of theirs to what its draft must read."""
    passes: list[int] = []

    def watched(scheduler: Scheduler) -> None:
        before = scheduler.models["base"].forward_passes
        tick(scheduler)
        passes.append(scheduler.models["base"].forward_passes - before)

    monkeypatch.setattr("trimtab.decode.engine.loop.tick", watched)
    (prompt,) = prompts(7)[-1:]
    assert len(prompt) > SHORT
    result = engine.generate(prompt, draw=Speculative("twin", Fixed(3)), temperature=0, max_new_tokens=12)
    assert passes[0] == 1
    forwards = {m.model: m.forward_passes for m in result.usage.models}
    assert (len(result.tokens), forwards["base"]) == (12, 3), "a twin's blocks stand: four tokens each time"


@pytest.mark.parametrize("kind", ["nudged", "mixture"])
@pytest.mark.parametrize("draw", [Speculative("draft", Fixed(4)), Speculative(PromptLookup(2), Fixed(3))], ids=str)
def test_under_other_policies(engine: Engine, kind: str, draw: Speculative) -> None:
    policy = {
        "nudged": Nudged("chat", when=Entropy(above=3.0)),
        "mixture": Mixture((Weighted("chat", 0.7), Weighted("draft", -0.3)), plausibility=0.01),
    }[kind]
    options: dict[str, Any] = {"temperature": 0, "max_new_tokens": 30, "policy": policy}
    plain = engine.generate(prompts(4), **options)
    fast = engine.generate(prompts(4), draw=draw, **options)
    assert [ids(r) for r in fast] == [ids(r) for r in plain]
    assert [[t.author for t in r.tokens] for r in fast] == [[t.author for t in r.tokens] for r in plain]
    assert sum(r.usage.drafted_tokens for r in fast) > 0


def test_a_mixture_is_what_its_formula_says(engine: Engine) -> None:
    """Differences of ln p of the first token against the models' own."""
    prompt = [{"role": "user", "content": "the cat and the other"}]  # each model reads it in its own template
    weights = {"base": 1.0, "chat": 0.6, "draft": -0.4}
    policy = Mixture((Weighted("chat", 0.6), Weighted("draft", -0.4)))
    mixed = engine.generate(prompt, policy=policy, max_new_tokens=1, temperature=0, top_logprobs=20)
    top = [t for t in mixed.tokens[0].top if t.piece.isascii() and t.piece.decode().isprintable() and len(t.piece) == 1]
    assert len(top) >= 2
    logs = {name: [engine.score([(prompt, t.piece.decode())], model=name)[0] for t in top] for name in weights}
    assert all([s.tokens[0].id for s in scored] == [t.id for t in top] for scored in logs.values())
    for i in range(1, len(top)):
        expected = sum(w * (logs[n][i].value - logs[n][0].value) for n, w in weights.items())
        assert top[i].logprob - top[0].logprob == pytest.approx(expected, abs=1e-3)


def test_scores_are_sums_of_logprobs(engine: Engine) -> None:
    """Of given answers, by the model that wrote them."""
    prompt = "the cat and the other"
    result = engine.generate(
        prompt,
        temperature=0,
        max_new_tokens=6,
        ignore_eos=True,
        logit_bias=dict.fromkeys(range(256, 304), -100.0) | dict.fromkeys(range(128, 256), -100.0),
    )
    (scored,) = engine.score([(prompt, result.text)], model="base")
    (rated,) = engine.score([(prompt, result.text)], reward="short")
    assert rated.value == -len(result.text)
    again = [t.id for t in scored.tokens]
    if again == ids(result):  # otherwise the text is spelled in another way
        assert scored.value == pytest.approx(result.chosen.sum_logprob, abs=1e-3)
    assert scored.value == pytest.approx(sum(t.logprob or 0.0 for t in scored.tokens))
    assert scored.token_count == len(scored.tokens) > 0


def test_limits_and_stops_inside_a_block(engine: Engine) -> None:
    prompt = prompts(4)[3]
    text = engine.generate(prompt, temperature=0, max_new_tokens=60, ignore_eos=True)
    for length in range(1, 14):
        plain = engine.generate(prompt, temperature=0, max_new_tokens=length, ignore_eos=True)
        fast = engine.generate(
            prompt, temperature=0, max_new_tokens=length, ignore_eos=True, draw=Speculative("twin", Fixed(5))
        )
        assert ids(fast) == ids(plain) == ids(text)[:length]
        assert fast.finish_reason == plain.finish_reason == FinishReason.MAX_NEW_TOKENS
    for token in dict.fromkeys(ids(text)[:12]):
        options: dict[str, Any] = {
            "temperature": 0,
            "max_new_tokens": 60,
            "ignore_eos": True,
            "stop_token_ids": [token],
        }
        plain = engine.generate(prompt, **options)
        fast = engine.generate(prompt, draw=Speculative("twin", Fixed(5)), **options)
        assert (ids(fast), fast.text, fast.finish_reason) == (ids(plain), plain.text, plain.finish_reason)


def test_sampled_speculation_follows_the_target(engine: Engine) -> None:
    """Chi-square of the second and third token, drafted by a model that disagrees, against plain sampling."""
    prompt, count = prompts(2)[1], 1500
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 6, "max_new_tokens": 3, "ignore_eos": True}
    plain = _count(engine, prompt, options, range(count))
    fast = _count(engine, prompt, {**options, "draw": Speculative("draft", Fixed(3))}, range(10_000, 10_000 + count))
    assert _p_value(plain, fast) > 1e-4
    hot = _count(engine, prompt, {**options, "temperature": 1.6}, range(20_000, 20_000 + count))
    assert _p_value(plain, hot) < 1e-4  # the test can tell


def _count(engine: Engine, prompt: list[int], options: dict[str, Any], seeds: range) -> dict[tuple[int, ...], int]:
    """How often each pair of second and third token comes."""
    found: dict[tuple[int, ...], int] = {}
    for start in range(seeds.start, seeds.stop, 50):
        inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for seed in range(start, start + 50):
            engine.submit(engine._preparer.request(prompt, {**options, "seed": seed}), inbox.put)
        ended = 0
        while ended < 50:
            event = inbox.get(timeout=60)
            assert not isinstance(event, Exception)
            if isinstance(event, Completed):
                ended += 1
                pair = tuple(ids(event.result)[1:])
                found[pair] = found.get(pair, 0) + 1
    return found


def _p_value(a: dict[tuple[int, ...], int], b: dict[tuple[int, ...], int]) -> float:
    """Two-sample chi-square of samples of one size; rare bins are pooled."""
    pairs = [(a.get(k, 0), b.get(k, 0)) for k in {**a, **b}]
    common = [pair for pair in pairs if sum(pair) >= 20]
    rest = [pair for pair in pairs if sum(pair) < 20]
    common.append((sum(x for x, _ in rest), sum(y for _, y in rest)))
    value = sum((x - y) ** 2 / (x + y) for x, y in common if x + y)
    return float(torch.special.gammaincc(torch.tensor((len(common) - 1) / 2), torch.tensor(value / 2)))


@pytest.mark.parametrize("draw", [None, Speculative("draft", Fixed(3)), Speculative("twin", Fixed(3))], ids=str)
def test_best_of_n_over_every_draw(engine: Engine, draw: Speculative | None) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "max_new_tokens": 12, "seed": 4}
    if draw is not None:
        options["draw"] = draw
    result = engine.generate(prompts(2)[1], search=BestOfN(8, "short"), **options)
    assert len(result.candidates) == 8
    assert result.chosen.rewards["short"] == max(c.rewards["short"] for c in result.candidates)
    assert len({tuple(t.id for t in c.tokens) for c in result.candidates}) > 1
    one = engine.generate(prompts(2)[1], search=BestOfN(1, "short"), **options)
    assert ids(one) == ids(engine.generate(prompts(2)[1], **options))


PLAIN: dict[str, Any] = {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.3, "seed": 7, "max_new_tokens": 20}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"draw": Speculative(PromptLookup(2), Fixed(3))},
        {"policy": Mixture((Weighted("chat", 0.5),), plausibility=0.01)},
        {"policy": Mixture((Weighted("chat", 0.5),)), "draw": Speculative(PromptLookup(2), Fixed(3))},
        {"policy": Nudged("chat", when=Entropy(above=3.0)), "top_logprobs": 2},
    ],
    ids=["plain", "lookup", "mixture", "mixture, lookup", "nudged"],
)
def test_a_plan_that_is_run_twice_gives_the_same(
    engine: Engine, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a pass needs is in its plan; nothing is kept from one to the next, and nothing is used up."""
    expected = engine.generate(prompts(5), **PLAIN, **options)
    run, count = runner.run, 0

    def twice(plan: Plan) -> Output:
        nonlocal count
        first, second = run(plan), run(plan)
        assert not first.failures
        assert first.answers == second.answers
        assert first.reads == second.reads
        assert first.rows.keys() == second.rows.keys()
        count += 1
        return second

    monkeypatch.setattr(runner, "run", twice)
    found = engine.generate(prompts(5), **PLAIN, **options)
    assert count > 10
    assert [ids(result) for result in found] == [ids(result) for result in expected]


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_joined_as_if_they_were_copied(seed: int) -> None:
    """Neighbours in memory, the same in another order, with gaps, from several passes, of padded rows."""
    generator = torch.Generator().manual_seed(seed)
    passes = [torch.randn(9, 16, generator=generator)[:, :11] for _ in range(2)]
    pieces = [part for logits in passes for part in logits.split_with_sizes([1, 2, 1, 4, 1])]
    for count in range(1, len(pieces)):
        for _ in range(20):
            chosen = [pieces[i] for i in torch.randperm(len(pieces), generator=generator)[:count].tolist()]
            assert torch.equal(runner._joined(chosen), torch.cat(chosen))
        assert torch.equal(runner._joined(pieces[:count]), torch.cat(pieces[:count]))
    whole = runner._joined(pieces[:5])
    assert whole.data_ptr() == passes[0].data_ptr(), "what lies in order is not copied"
