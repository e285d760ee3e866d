"""What ends an answer, through the engine: ends that a request names, of whose model, and stops without text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nudging_models as nm
import pytest
import torch
import transformers as hf
from reward_doubles import Rated

from trimtab.decode.config import EngineOptions
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import TopProb
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.request.method import Policy
from trimtab.decode.request.result import FinishReason, Result, Token

SUPPORT = {
    "base": [" the", " a", " sing", " on", "s", ".", "\n", "<turn>"],
    "nudger": [" the", " an", " in", "and", "s", ".\n", "\n", "<turn>"],
}
PROMPT = "the sing on a"
MOST = 70
ALWAYS = TopProb(1.0)  # the nudger writes wherever it can


LENGTHS = Rated(lambda sample: 0.0, "prefix")


def _save(tiny: Any, seed: int, kind: str, folder: Path) -> Path:
    """A random model that says nothing but ``SUPPORT`` and, now and then, its end of text."""
    size, eos = nm.vocabulary(kind).size, nm.special(kind, "<eos>")
    model = tiny.make("gpt2", seed, vocab_size=size, n_layer=1, tie_word_embeddings=False)
    said = torch.zeros(size, dtype=torch.bool)
    said[[eos, *(nm.token(kind, piece) for piece in SUPPORT[kind])]] = True
    with torch.no_grad():
        head, norm = model.get_output_embeddings().weight, model.transformer.ln_f
        head.mul_(0.3)
        norm.weight[0], norm.bias[0] = 0.0, 1.0  # one channel is constant: its column of the head is a bias
        head[:, 0] = torch.where(said, 0.0, -40.0)
    model.generation_config = hf.GenerationConfig(eos_token_id=eos)
    model.save_pretrained(folder)
    nm.tokenizer(kind).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A base, a twin of its vocabulary, and one of another."""
    folder = tmp_path_factory.mktemp("models")
    kinds = {"base": "base", "twin": "base", "other": "nudger"}
    models = {name: str(_save(tiny, i, kind, folder / name)) for i, (name, kind) in enumerate(kinds.items())}
    with Engine(models, rewards={"lengths": LENGTHS}, options=EngineOptions(memory_bytes=2**24)) as made:
        yield made
        made.check()


def config(*eos: int, **more: Any) -> hf.GenerationConfig:
    return hf.GenerationConfig(eos_token_id=list(eos), do_sample=True, top_k=0, max_new_tokens=MOST, **more)


def ids(result: Result) -> list[tuple[str, int]]:
    return [(token.author, token.id) for token in result.tokens]


OWN = nm.special("base", "<eos>")
TURN = nm.special("base", "<turn>")
DOT = nm.token("base", ".")
SPEAKERS: list[Any] = [
    (Base(), None),
    (Base(), Speculative("twin", Fixed(3))),
    pytest.param(Base(), Speculative("other", Fixed(3)), marks=pytest.mark.full),
    pytest.param(Base(), Speculative(PromptLookup(), Fixed(3)), marks=pytest.mark.full),
    (Mixture((Weighted("twin", 0.7),)), None),
    pytest.param(Mixture((Weighted("twin", 0.7),)), Speculative("twin", Fixed(3)), marks=pytest.mark.full),
    (Nudged("twin", ALWAYS), None),
    (Nudged("twin", TopProb(0.6)), None),
    (Nudged("other", ALWAYS), None),
    (Nudged("other", TopProb(0.6)), None),
]


@pytest.mark.parametrize(("policy", "draw"), SPEAKERS, ids=repr)
def test_a_generation_config_replaces_the_ends_of_the_requested_model_only(
    engine: Engine, policy: Policy, draw: Any
) -> None:
    ended_by: set[tuple[str, int]] = set()
    for seed in range(3):
        result: Result = engine.generate(
            PROMPT, model="base", policy=policy, draw=draw, generation_config=config(DOT), seed=seed
        )
        *before, last = result.tokens
        assert result.finish_reason in (FinishReason.EOS, FinishReason.REPETITION)
        ends = {"base": {DOT}, "twin": {OWN}, "other": {nm.special("nudger", "<eos>")}}
        if result.finish_reason is FinishReason.EOS:
            assert last.id in ends[last.author]
            ended_by.add((last.author, last.id))
        assert not any(token.id in ends[token.author] for token in before)
        if isinstance(policy, Nudged) and policy.nudger == "other":
            # What is passed on as text must not hold an end of text that ends nothing.
            assert not any(token.author == "base" and token.id == OWN for token in before)
    helper = policy.nudger if isinstance(policy, Nudged) else "base"
    assert helper in {author for author, _ in ended_by}


@pytest.mark.parametrize(("policy", "draw"), SPEAKERS[:6], ids=repr)
def test_the_answer_is_the_endless_one_cut_at_the_end_that_was_named(engine: Engine, policy: Policy, draw: Any) -> None:
    """Random numbers go by position, so that naming an end changes no token before it."""
    named = 0
    options: dict[str, Any] = {"model": "base", "temperature": 1.0, "max_new_tokens": 30}
    if isinstance(draw, Speculative):  # drawn as plain decoding draws, wherever blocks end
        draw = replace(draw, coupled=True)
    for seed in range(2):
        given = {**options, "policy": policy, "draw": draw, "seed": seed}
        endless = ids(engine.generate(PROMPT, **given, ignore_eos=True))
        result = engine.generate(PROMPT, **given, eos_token_ids=(DOT, TURN))
        cut = next((i + 1 for i, (_, token) in enumerate(endless) if token in (DOT, TURN)), None)
        assert ids(result) == endless[:cut]
        assert (result.finish_reason is FinishReason.EOS) == (cut is not None)
        named += cut is not None
    assert named


def test_ends_that_are_ignored_are_ignored_whosever_they_are(engine: Engine) -> None:
    result = engine.generate(PROMPT, model="base", generation_config=config(DOT), ignore_eos=True, seed=1)
    assert result.finish_reason is FinishReason.MAX_NEW_TOKENS


def test_no_end_is_written_before_the_least_length(engine: Engine) -> None:
    for policy in (Base(), Nudged("twin", TopProb(0.6)), Nudged("other", TopProb(0.6))):
        result = engine.generate(
            PROMPT, model="base", policy=policy, generation_config=config(DOT, min_new_tokens=30), seed=3
        )
        assert len(result.tokens) >= 30
        ends = {"base": DOT, "twin": OWN, "other": nm.special("nudger", "<eos>")}
        assert not any(token.id == ends[token.author] for token in result.tokens[:30])


# ---------------------------------------------------------------------------------------------- stops that have no text


def is_turn(token: Token) -> bool:
    return token.piece == b"<turn>"


@pytest.mark.parametrize(("policy", "draw"), SPEAKERS, ids=repr)
def test_a_stop_string_that_is_a_special_token_ends_the_answer(engine: Engine, policy: Policy, draw: Any) -> None:
    stopped = set()
    for seed in range(8):
        result: Result = engine.generate(
            PROMPT, model="base", policy=policy, draw=draw, stop="<turn>", max_new_tokens=MOST, seed=seed
        )
        assert not any(map(is_turn, result.tokens[:-1]))
        if is_turn(result.tokens[-1]):
            assert (result.finish_reason, result.chosen.stop_match) == (FinishReason.STOP, "<turn>")
            stopped.add(result.tokens[-1].author)
        assert "<turn>" not in result.text
    assert "base" in stopped or isinstance(policy, Nudged)
    assert stopped


def test_the_text_is_what_was_written_before_the_special_token(engine: Engine) -> None:
    for seed in range(3):
        given: dict[str, Any] = {"model": "base", "max_new_tokens": MOST, "seed": seed}
        endless = engine.generate(PROMPT, **given)
        cut = next((i for i, token in enumerate(endless.tokens) if is_turn(token)), None)
        result = engine.generate(PROMPT, **given, stop=("zzz", "<turn>"))
        assert ids(result) == ids(endless)[: None if cut is None else cut + 1]
        shown = [token.piece for token in result.tokens if token.id not in (TURN, OWN)]
        assert result.text == b"".join(shown).decode(errors="replace")
        with_it = engine.generate(PROMPT, **given, stop="<turn>", include_stop=True)
        assert with_it.text == result.text


def test_the_least_length_holds_for_special_stops_too(engine: Engine) -> None:
    for policy in (Base(), Nudged("other", ALWAYS)):
        result = engine.generate(
            PROMPT, model="base", policy=policy, stop="<turn>", min_new_tokens=30, max_new_tokens=MOST, seed=5
        )
        assert len(result.tokens) >= 30
        assert not any(map(is_turn, result.tokens[:30]))


def test_an_end_that_is_named_as_a_stop_stays_an_end_unless_ends_are_ignored(engine: Engine) -> None:
    given: dict[str, Any] = {"model": "base", "max_new_tokens": MOST, "seed": 2}
    plain = engine.generate(PROMPT, **given, stop="<eos>")
    assert (plain.finish_reason, plain.chosen.stop_match) == (FinishReason.EOS, None)
    ignored = engine.generate(PROMPT, **given, stop="<eos>", ignore_eos=True)
    assert ids(ignored) == ids(plain)
    assert ignored.chosen.stop_match == "<eos>"


def test_a_stop_string_that_is_special_in_part_is_refused_before_anything_runs(engine: Engine) -> None:
    before = engine.stats().forward_passes
    for stop in ("<turn>\n", "\n<turn>", "<turn><turn>", "x<eos>"):
        with pytest.raises(InvalidRequest) as caught:
            engine.generate(PROMPT, model="base", stop=("fine", stop))
        (violation,) = caught.value.violations
        assert (violation.field, violation.value) == ("stopping.stop[1]", repr(stop))
        assert "stop_token_ids" in violation.accepted
    with pytest.raises(InvalidRequest, match=r"search\.segments\.delimiter"):
        engine.generate(PROMPT, model="base", search=Segments("lengths", delimiter="<turn>\n"))
    assert engine.stats().forward_passes == before


def test_a_segment_ends_at_a_delimiter_that_is_a_special_token(engine: Engine) -> None:
    LENGTHS.forget()
    engine.generate(
        PROMPT,
        model="base",
        search=Segments("lengths", beams=2, samples_per_beam=2, max_tokens=20, delimiter="<turn>"),
        max_new_tokens=60,
        ignore_eos=True,
        seed=1,
    )
    beginnings = [sample for sample in LENGTHS.samples if not sample.finished]
    assert any(is_turn(sample.tokens[-1]) for sample in beginnings)
    for sample in beginnings:
        turns = [i + 1 for i, token in enumerate(sample.tokens) if is_turn(token)]
        assert (len(sample.tokens) - max(turns, default=0)) % 20 == 0
