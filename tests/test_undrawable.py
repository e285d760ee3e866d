"""Requests that leave nothing to draw are refused before anything runs, naming the fields that exclude one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.request.result import FinishReason

Folder = Callable[..., Path]

VOCAB = 304


@pytest.fixture(scope="module")
def engine(tiny_folder: Folder, foreign_folder: Path) -> Iterator[Engine]:
    folders = {"base": tiny_folder("llama", 0), "chat": tiny_folder("llama", 1), "foreign": foreign_folder}
    # The last is padded further than the others, as small and large models of a family are.
    folders["wide"] = tiny_folder("llama", 4, vocab_size=VOCAB + 16)
    models = {name: ModelConfig(source=str(folder), dtype="float32") for name, folder in folders.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a tiny model is slower on two
    with Engine(models, options=EngineOptions(memory_bytes=64 << 20, page_tokens=16)) as made:
        yield made
        made.check()
    torch.set_num_threads(threads)


def bans(*spared: int) -> dict[int, float]:
    return {token: -math.inf for token in range(VOCAB) if token not in spared}


BOS, EOS = 284, 285  # of the tiny tokenizer


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"logit_bias": bans()}, "sampling.logit_bias"),
        ({"logit_bias": bans(EOS), "min_new_tokens": 1}, "stopping.min_new_tokens"),
        ({"logit_bias": bans(5, 6), "stop_token_ids": (5, 6), "min_new_tokens": 1}, "stopping.min_new_tokens"),
        ({"logit_bias": bans(5), "eos_token_ids": (5,), "min_new_tokens": 2}, "stopping.min_new_tokens"),
        ({"logit_bias": bans(EOS), "ignore_eos": True, "policy": Nudged("foreign")}, "sampling.logit_bias"),
        ({"logit_bias": bans(EOS), "min_new_tokens": 1, "policy": Nudged("chat")}, "stopping.min_new_tokens"),
        ({"logit_bias": bans(BOS), "stop": ["<bos>"], "min_new_tokens": 1}, "stopping.min_new_tokens"),
    ],
    ids=["all", "all-but-eos", "all-but-stops", "all-but-named-ends", "text-only", "nudged", "all-but-a-named-stop"],
)
def test_what_leaves_nothing_is_refused(engine: Engine, options: dict[str, Any], field: str) -> None:
    vocabulary = engine._loop.scheduler.models["base"].vocabulary
    assert vocabulary.eos_token_ids == (EOS,)
    assert vocabulary.piece(BOS) == b"<bos>"
    passes = engine.stats().forward_passes
    with pytest.raises(InvalidRequest) as caught:
        engine.generate([1, 2], model="base", max_new_tokens=4, **options)
    assert field in [violation.field for violation in caught.value.violations]
    assert engine.stats().forward_passes == passes


@pytest.mark.parametrize(
    ("options", "reason", "tokens"),
    [
        ({"logit_bias": bans(EOS)}, FinishReason.EOS, [EOS]),
        ({"logit_bias": bans(5, 6), "stop_token_ids": (5, 6)}, FinishReason.STOP, None),
        ({"logit_bias": bans(EOS), "ignore_eos": True, "min_new_tokens": 0}, FinishReason.MAX_NEW_TOKENS, [EOS] * 4),
        ({"logit_bias": bans(EOS, 9), "min_new_tokens": 2, "temperature": 0}, None, None),
    ],
    ids=["eos", "stops", "ignored", "early"],
)
@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"draw": Speculative("chat", Fixed(3))},
        {"draw": Speculative("wide", Fixed(3))},
        {"policy": Mixture((Weighted("chat", 0.5), Weighted("wide", -0.5)))},
        {"policy": Nudged("wide", when=Entropy(above=0.1))},
    ],
    ids=["plain", "draft", "wide-draft", "mixture", "nudged"],
)
def test_what_leaves_little_is_served(
    engine: Engine, options: dict[str, Any], reason: FinishReason | None, tokens: list[int] | None, axes: Any
) -> None:
    result = engine.generate([1, 2], model="base", max_new_tokens=4, seed=1, **options, **axes)
    spared = set(range(VOCAB)) - set(options["logit_bias"])
    assert {token.id for token in result.tokens} <= spared
    if reason is not None:
        assert result.finish_reason is reason
    if tokens is not None:
        assert [token.id for token in result.tokens] == tokens


def test_bans_of_all_that_is_plausible_leave_the_rest(engine: Engine) -> None:
    """What may be drawn is then the mixture without a bound: plainly and speculatively."""
    options: dict[str, Any] = {"model": "base", "max_new_tokens": 6, "ignore_eos": True, "temperature": 0}
    open_ = Mixture((Weighted("chat", 0.5),))
    bound = Mixture((Weighted("chat", 0.5),), plausibility=0.999)  # the base's likeliest alone, mostly
    first = engine.generate([1, 2], policy=bound, **options).tokens
    banned = {token.id: -math.inf for token in first}
    expected = engine.generate([1, 2], policy=open_, logit_bias=bans(7, 8), **options)
    found = engine.generate([1, 2], policy=bound, logit_bias=bans(7, 8), **options)
    assert {token.id for token in found.tokens} <= {7, 8}
    assert [t.id for t in engine.generate([1, 2], policy=bound, logit_bias=banned, **options).tokens]
    fast = engine.generate([1, 2], policy=bound, logit_bias=bans(7, 8), draw=Speculative("chat", Fixed(3)), **options)
    assert [t.id for t in fast.tokens] == [t.id for t in found.tokens]
    # where the two that are left are both implausible, the one that the mixture prefers is taken
    assert [t.id for t in found.tokens][:1] == [t.id for t in expected.tokens][:1]


def test_models_padded_to_unlike_widths_work_together(engine: Engine) -> None:
    """An id that one of them lacks is nobody's."""
    assert engine.models["wide"].vocab_size == engine.models["base"].vocab_size == VOCAB
    with pytest.raises(InvalidRequest, match=f"{VOCAB - 1}"):
        engine.generate([VOCAB + 1], model="wide")
    wide = engine.generate([1, 2], model="wide", max_new_tokens=60, ignore_eos=True, temperature=1.5, seed=2)
    assert max(token.id for token in wide.tokens) < VOCAB
    for model, helper in (("base", "wide"), ("wide", "base")):
        plain = engine.generate([1, 2], model=model, max_new_tokens=12, temperature=0)
        fast = engine.generate(
            [1, 2], model=model, max_new_tokens=12, temperature=0, draw=Speculative(helper, Fixed(3))
        )
        assert [t.id for t in fast.tokens] == [t.id for t in plain.tokens]


def test_a_request_is_validated_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = engine._preparer.validate
    monkeypatch.setattr(engine._preparer, "validate", lambda request: (seen.append(request), real(request)))
    engine.generate([[1, 2], [3, 4]], max_new_tokens=1)
    assert len(seen) == 2
    list(engine.stream([1, 2], max_new_tokens=1))
    assert len(seen) == 3
