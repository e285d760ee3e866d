"""Prompts and answers that are longer than a reward model takes: the prompt loses its beginning, the answer nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st

from trimtab.decode.config import ConfigError, EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import RewardFailed
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.rewards.base import Sample, well_formed
from trimtab.decode.rewards.fitting import fitted
from trimtab.decode.rewards.registry import make_rewards

LIMIT = 40
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
LONG = "the sea and the sand and the wind and the land " * 12
ANSWER = "it is deep"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 2))
def test_the_prompt_loses_its_beginning(prompt: int, answer: int, limit: int, keep: int) -> None:
    ids = list(range(prompt))
    if answer + keep > limit:
        with pytest.raises(ValueError, match=f"the answer takes {answer} tokens; accepted: at most {limit - keep}"):
            fitted(ids, answer, limit, keep)
        return
    found = fitted(ids, answer, limit, keep)
    assert len(found) == min(prompt, limit - answer)
    assert found[:keep] == ids[:keep]
    assert found[keep:] == ids[prompt - len(found[keep:]) :]


@pytest.fixture(scope="module")
def encoder(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tiny.tokenizer()
    config = hf.BertConfig(
        vocab_size=tiny.VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LIMIT, pad_token_id=own.eos_token_id,
    )  # fmt: skip
    config.num_labels = 1
    model = hf.BertForSequenceClassification(config).eval()
    tiny.randomise(model, 5)
    model.save_pretrained(folder := tmp_path_factory.mktemp("short-encoder"))
    own.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def outputs(encoder: Path) -> Callable[[list[int]], float]:
    """What the model says of token ids, by its own forward."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(encoder).eval()

    def of(ids: list[int]) -> float:
        with torch.inference_mode():
            return float(model(input_ids=torch.tensor([ids])).logits[0, 0])

    return of


def made(encoder: Path, **options: Any) -> Any:
    return make_rewards({"r": {"type": "classifier", "source": str(encoder), **options}})["r"]


@pytest.mark.parametrize("spare", [0, 1, 7])
def test_of_a_pair_the_prompt_is_cut(
    encoder: Path, outputs: Callable[[list[int]], float], tiny: Any, spare: int
) -> None:
    own = tiny.tokenizer()
    answer = own(ANSWER, add_special_tokens=False)["input_ids"]
    answer = (answer * LIMIT)[: LIMIT - spare]
    text = own.decode(answer)
    assert own(text, add_special_tokens=False)["input_ids"] == answer
    prompt = own(LONG, add_special_tokens=False)["input_ids"]
    assert len(prompt) > LIMIT
    reward = made(encoder, reads="pair")
    short = Sample("the sea", ANSWER)
    found = reward.rate([Sample(LONG, text), short])
    assert found[0] == pytest.approx(outputs(prompt[len(prompt) - spare :] + answer), abs=1e-5)
    assert found[1] == pytest.approx(reward.rate([short])[0], abs=1e-5)
    # The answer's end counts, however long the prompt is.
    assert reward.rate([Sample(LONG, text)]) != reward.rate([Sample(LONG, own.decode([*answer[:-1], 5]))])


@pytest.mark.parametrize("reads", ["pair", "answer"])
def test_an_answer_that_does_not_fit_is_refused(encoder: Path, tiny: Any, reads: str) -> None:
    count = len(tiny.tokenizer()(LONG, add_special_tokens=False)["input_ids"])
    with pytest.raises(ValueError, match=f"the answer takes {count} tokens; accepted: at most {LIMIT}"):
        made(encoder, reads=reads).rate([Sample("p", LONG)])


def test_messages_are_cut_before_the_answer(encoder: Path, outputs: Callable[[list[int]], float], tiny: Any) -> None:
    own = tiny.tokenizer()
    reward = made(encoder, template=TEMPLATE)
    for prompt in ("the sea", LONG):
        for text in (ANSWER, ""):
            asked, answer = f"{own.bos_token}u:{prompt}\na:", f"{text}\n"
            before, after = (own(part, add_special_tokens=False)["input_ids"] for part in (asked, answer))
            assert own(asked + answer, add_special_tokens=False)["input_ids"] == before + after
            assert before[0] == own.bos_token_id
            most = LIMIT - len(after) - 1
            expected = [before[0], *before[1:][-most:], *after]
            assert len(expected) <= LIMIT
            assert reward.rate([Sample(prompt, text)])[0] == pytest.approx(outputs(expected), abs=1e-5)


def test_a_beginning_is_read_open_or_closed(encoder: Path, outputs: Callable[[list[int]], float], tiny: Any) -> None:
    own = tiny.tokenizer()
    for partial, finished, end in (("open", False, ""), ("open", True, "\n"), ("closed", False, "\n")):
        reward = made(encoder, template=TEMPLATE, partial=partial)
        for text in (ANSWER, ""):
            read = own(f"{own.bos_token}u:the sea\na:{text}{end}", add_special_tokens=False)["input_ids"]
            assert reward.rate([Sample("the sea", text, finished)])[0] == pytest.approx(outputs(read), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"partial": "open", "reads": "pair"}, r"rewards\.r\.partial = 'open': accepted: closed"),
        ({"partial": "half", "template": TEMPLATE}, r"rewards\.r\.partial = 'half'"),
        ({"end": "</s>"}, r"rewards\.r\.end"),
        ({"template": TEMPLATE, "reads": "answer"}, r"rewards\.r\.template"),
    ],
)
def test_options_that_would_do_nothing_are_refused(encoder: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        made(encoder, **options)


@pytest.fixture(scope="module")
def engine(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    config_name, _, arguments = tiny.KINDS["llama"]
    own = tiny.tokenizer()
    config = getattr(hf, config_name)(
        **{**arguments, "max_position_embeddings": 64, "num_labels": 1, "bos_token_id": own.bos_token_id,
           "eos_token_id": own.eos_token_id}
    )  # fmt: skip
    config.pad_token_id = None
    model = hf.LlamaForSequenceClassification(config).eval()
    tiny.randomise(model, 3)
    folder = tiny.save(model, tmp_path_factory.mktemp("short-reward"))
    models: dict[str, Any] = {"reward": ModelConfig(source=str(folder), role="reward", dtype="float32")}
    rewards: dict[str, Any] = {"trained": {"type": "classifier", "model": "reward"}}
    with Engine(models, rewards=rewards, options=EngineOptions(memory_bytes=8 << 20, page_tokens=16)) as made:
        yield made


def test_a_decoder_keeps_the_same_rule(engine: Engine) -> None:
    """The ends of two long prompts are what it reads of them; and short neighbours are what they are alone."""
    long, other = LONG + "of the shore", "quite another beginning, " + LONG + "of the shore"
    items = [((ChatMessage("user", prompt),), ANSWER) for prompt in (long, other, "the sea")]
    found = [scored.value for scored in engine.score(items, reward="trained")]
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[2] != pytest.approx(found[0], abs=1e-4)
    assert engine.score(items[2:], reward="trained")[0].value == pytest.approx(found[2], abs=1e-5)
    several = engine.score([(items[0][0], text) for text in (ANSWER, "no", "the wind")], reward="trained")
    assert several[0].value == pytest.approx(found[0], abs=1e-5)
    with pytest.raises(RewardFailed, match="the answer takes"):
        engine.score([("the sea", LONG)], reward="trained")


def test_texts_that_can_not_be_encoded_can_be_rated(encoder: Path) -> None:
    assert well_formed("a\ud800b\U0001f642") == "a\ufffdb\U0001f642"
    odd, plain = Sample("p\udfff", "a\ud800", references=("\ud800",)), Sample("p", "sea", references=("sea",))
    for reward in (
        made(encoder, reads="pair"),
        made(encoder, template=TEMPLATE),
        make_rewards({"s": {"type": "similarity", "source": str(encoder)}})["s"],
    ):
        both: Any = reward
        assert both.rate([odd, plain])[1] == pytest.approx(both.rate([plain])[0], abs=1e-5)
