"""Candidates of the same tokens are equally good, whatever rounding says: which goes on must not hang on it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_doubles import Rated

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Logprob, Segments
from trimtab.decode.request.result import Result
from trimtab.decode.rewards.base import Sample

Folder = Callable[..., Path]


NOISE = random.Random(0)


def rounded(sample: Sample) -> float:
    """A value for each text, and what rounding might add to it: another number at every call."""
    return random.Random(sample.text).random() + 1e-9 * NOISE.random()


@pytest.fixture(scope="module")
def engine(tiny_folder: Folder) -> Iterator[Engine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    models = {"base": ModelConfig(source=str(tiny_folder("llama", 0)), dtype="float32")}
    options = EngineOptions(memory_bytes=64 << 20, page_tokens=16)
    with Engine(models, rewards={"rounded": Rated(rounded)}, options=options) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "search",
    [
        RejectSegments("rounded", target=9.0, beta=0.0, entropy_above=1e3, min_tokens=2, max_tokens=2, max_tries=6),
        Segments("rounded", beams=1, samples_per_beam=6, max_tokens=2),
        Segments("rounded", beams=2, samples_per_beam=4, max_tokens=2, logprob_weight=0.1, logprob=Logprob.SUM),
    ],
    ids=["rejecting", "one beam", "two beams"],
)
def test_equal_continuations_go_on_by_their_number(engine: Engine, search: Any) -> None:
    """Two tokens are left, so that most continuations come several times."""
    options: dict[str, Any] = {
        "logit_bias": {token: -math.inf for token in range(304) if token not in (40, 50)},
        "max_new_tokens": 12,
        "ignore_eos": True,
        "search": search,
    }
    for seed in range(4):
        found = set()
        for noise in range(4):
            NOISE.seed(noise)
            result: Result = engine.generate([1, 2], seed=seed, **options)
            found.add(tuple(token.id for token in result.tokens))
        assert len(found) == 1
