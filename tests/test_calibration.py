"""Answers that calibrate a reward: random numbers of their own, and nothing remembered for another question."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.channel import results
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import RewardFailed
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.rewards.base import Sample
from trimtab.decode.rewards.calibration import Calibrated, Drawn, DrawnReference, drawn_answers
from trimtab.decode.rewards.functions import Function
from trimtab.decode.rewards.rating import rate

PROMPT = (ChatMessage("user", "say something about the sea"),)


def scattered(samples: Sequence[Sample]) -> list[float]:
    """A number in [0, 1) for each answer and its references, without meaning."""
    return [crc32(f"{sample.references}/{sample.text}".encode()) / 2**32 for sample in samples]


def calibrated() -> Calibrated:
    of = Function(scattered, "sequence")
    of.name = "scattered"
    return Calibrated(of, Drawn("base", samples=16, max_new_tokens=6))


def served(folder: Path, rewards: dict[str, Any]) -> Engine:
    models = {"base": ModelConfig(source=str(folder), dtype="float32")}
    return Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=8 << 20, page_tokens=16))


@pytest.fixture(scope="module")
def engine(tiny_folder: Callable[..., Path]) -> Iterator[Engine]:
    with served(tiny_folder("llama"), {"rank": calibrated()}) as made:
        yield made
        made.check()


def run(engine: Engine, method: Callable[[Any], Any]) -> Any:
    (result,) = results([partial(engine._launch, Request(model="base", prompt="-"), engine.models, method)])
    return result


def ranks(engine: Engine, samples: Sequence[Sample]) -> list[float]:
    return [rating.value for rating in run(engine, lambda context: rate(context, "rank", samples))]


@pytest.mark.parametrize("seed", [0, 5])
def test_no_candidate_is_among_the_answers_that_calibrate(engine: Engine, seed: int) -> None:
    """With one seed for both they used to be: candidate k and answer k were the k-th children of one root."""
    answers = run(engine, lambda context: drawn_answers(context, "base", PROMPT, 8, 12, seed))
    options: Any = {"model": "base", "max_new_tokens": 12, "temperature": 1.0, "search": BestOfN(8, "rank")}
    found = engine.generate(list(PROMPT), seed=seed, references=("a",), **options)
    heads = [tuple(text[:2] for text in texts) for texts in (answers, [c.text for c in found.candidates])]
    assert len(set(answers)) == 8
    assert not set(answers) & {candidate.text for candidate in found.candidates}
    assert sum(a == b for a, b in zip(*heads, strict=True)) <= 1
    again = run(engine, lambda context: drawn_answers(context, "base", PROMPT, 8, 12, seed))
    assert again == answers, "the control: what does share its numbers is equal"


def test_other_references_are_another_question(engine: Engine, tiny_folder: Callable[..., Path]) -> None:
    samples = [Sample(PROMPT, "the sea is deep", references=(said,)) for said in ("e", "x", "the", "e")]
    with served(tiny_folder("llama"), {"rank": calibrated()}) as fresh:
        alone = []
        for sample in samples[:3]:
            fresh._rewards["rank"] = calibrated()
            alone.append(ranks(fresh, [sample])[0])
    assert len(set(alone)) == 3
    assert [ranks(engine, [sample])[0] for sample in samples] == [*alone, alone[0]]
    assert ranks(engine, samples) == [*alone, alone[0]], "nor in one call"


def test_one_reward_in_two_engines_asks_each_one_s_model(tiny_folder: Callable[..., Path]) -> None:
    """What is remembered belongs to the model that said it, not to its name."""
    folders = [tiny_folder("llama"), tiny_folder("llama", 3)]
    samples = [Sample(PROMPT, "the sea is deep"[:n], references=("eai",)) for n in (1, 4, 9, 15)]
    alone = []
    for folder in folders:
        with served(folder, {"rank": calibrated()}) as made:
            alone.append(ranks(made, samples))
    assert alone[0] != alone[1]
    both = calibrated()
    for folder, expected in zip(folders, alone, strict=True):
        with served(folder, {"rank": both}) as made:
            assert ranks(made, samples) == expected


def test_what_is_remembered_is_used(engine: Engine) -> None:
    """The same messages in either form are one question; nothing is drawn for it again."""
    counts: list[int] = []

    async def counted(context: Any, prompt: Any) -> float:
        (rating,) = await rate(context, "rank", [Sample(prompt, "deep", references=("deep",))])
        counts.append(context.counter("base").forward_passes)
        return rating.value

    turns = [{"role": "user", "content": "how deep?"}]
    values = [run(engine, lambda c, p=p: counted(c, p)) for p in (turns, (ChatMessage("user", "how deep?"),), turns)]
    assert values[0] == values[1] == values[2]
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_what_was_asked_can_not_be_changed_afterwards() -> None:
    for reference in (Drawn("base"), DrawnReference("base")):
        with pytest.raises(AttributeError):
            reference.samples = 4  # type: ignore[misc]


def test_it_can_be_sent_elsewhere() -> None:
    """A reward that runs in a process of its own goes there with its reference; what is remembered stays."""
    sent = pickle.loads(pickle.dumps(DrawnReference("base", 4, seed=3, quantile=0.5)))
    assert (sent.model, sent.samples, sent.seed, sent.quantile) == ("base", 4, 3, 0.5)


def test_a_prompt_without_room_for_an_answer_is_refused(engine: Engine) -> None:
    long = (ChatMessage("user", "x" * (engine.models["base"].max_context_tokens - 3)),)
    with pytest.raises(RewardFailed, match=r"'rank' failed.*takes \d+ tokens of model 'base'; accepted: less than \d+"):
        ranks(engine, [Sample(long, "deep", references=("a",))])
