"""Verdicts of a judge: each has the probability that the reply begins with it, and with no longer one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, normalizers

from trimtab.decode.config import ConfigError, EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import RewardFailed
from trimtab.decode.rewards.registry import make_rewards

SCALE = {str(n): float(n) for n in range(1, 11)}
NESTED = {"1": 1.0, "10": 2.0, "100": 3.0, "12": 4.0, "Yes": 5.0, "Yesterday": 6.0, "yes": 7.0}
TEMPLATE = "{prompt} {answer}"


@pytest.fixture(scope="module")
def folders(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models that like to say 10: one digit by digit, the other with a token for it."""
    own, made = tiny.tokenizer(), {}
    for name in ("digits", "whole", "lower"):
        backend = Tokenizer.from_str(own.backend_tokenizer.to_str())
        if name == "whole":
            backend.model = models.BPE(vocab={**_vocabulary(own), "10": tiny.VOCAB - 1}, merges=[("1", "0")])
        if name == "lower":
            backend.normalizer = normalizers.Lowercase()
        tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")
        tokenizer.chat_template = own.chat_template
        likely = {"<bot>": "1", "1": "0", "0": "0"} if name != "whole" else {"<bot>": "10", "10": "0"}
        ids = {a: tokenizer.convert_tokens_to_ids(a) for pair in likely.items() for a in pair}
        _leaning(tiny.make("llama", 4), {ids[a]: ids[b] for a, b in likely.items()}).save_pretrained(
            folder := tmp_path_factory.mktemp(name)
        )
        tokenizer.save_pretrained(folder)
        assert len(tokenizer("10", add_special_tokens=False)["input_ids"]) == (1 if name == "whole" else 2)
        made[name] = folder
    return made


def _leaning(model: Any, likely: dict[int, int]) -> Any:
    """The model without its layers, in which some tokens are mostly followed by a certain one."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for place, (token, following) in enumerate(likely.items()):
            model.model.embed_tokens.weight[token] = torch.eye(48)[place]
            model.lm_head.weight[following, place] = 1.0
    return model


def _vocabulary(own: Any) -> dict[str, int]:
    return {token: i for token, i in own.get_vocab().items() if i not in own.all_special_ids and len(token) == 1}


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    served = {name: ModelConfig(source=str(folder), dtype="float32") for name, folder in folders.items()}
    rewards: dict[str, Any] = {}
    for name in served:
        judge = {"type": "judge", "model": name, "template": TEMPLATE}
        rewards[f"{name} scale"] = {**judge, "verdicts": SCALE}
        rewards[f"{name} nested"] = {**judge, "verdicts": NESTED}
    rewards["alike"] = {"type": "judge", "model": "lower", "verdicts": {"Yes": 1.0, "yes": 0.0}}
    with Engine(served, rewards=rewards, options=EngineOptions(memory_bytes=16 << 20, page_tokens=16)) as made:
        yield made
        made.check()


def begins(model: Any, own: Any, asked: str, words: Sequence[str]) -> list[float]:
    """Of each verdict the probability that a reply begins with its tokens, and goes on with no longer verdict's.

    Written as a walk: at each step what the reply says next, verdict or not, until no verdict can be told any more.
    """
    shown = own.apply_chat_template([{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True)
    prompt = own(shown, add_special_tokens=False)["input_ids"]
    spelled = {tuple(own(word, add_special_tokens=False)["input_ids"]): word for word in words}
    mass = dict.fromkeys(words, 0.0)

    def walk(said: tuple[int, ...], probability: float, heard: str | None) -> None:
        heard = spelled.get(said, heard)
        goes_on = {ids[len(said)] for ids in spelled if len(ids) > len(said) and ids[: len(said)] == said}
        with torch.inference_mode():
            row = model(input_ids=torch.tensor([[*prompt, *said]])).logits[0, -1].double().softmax(-1)
        if heard is not None:
            mass[heard] += probability * float(sum(p for t, p in enumerate(row.tolist()) if t not in goes_on))
        for token in goes_on:
            walk((*said, token), probability * float(row[token]), heard)

    walk((), 1.0, None)
    total = sum(mass.values())
    return [mass[word] / total for word in words]


@pytest.mark.parametrize("verdicts", ["scale", "nested"])
@pytest.mark.parametrize("spelling", ["digits", "whole"])
def test_a_verdict_is_not_the_beginning_of_another(
    engine: Engine, folders: dict[str, Path], spelling: str, verdicts: str
) -> None:
    table = {"scale": SCALE, "nested": NESTED}[verdicts]
    model = hf.AutoModelForCausalLM.from_pretrained(folders[spelling]).eval()
    own = hf.AutoTokenizer.from_pretrained(folders[spelling])
    for answer in ("fine", "it is 1", "100"):
        asked = TEMPLATE.format(prompt="how good?", answer=answer)
        found = engine.score([("how good?", answer)], reward=f"{spelling} {verdicts}")[0].value
        shares = begins(model, own, asked, tuple(table))
        assert found == pytest.approx(sum(p * table[v] for p, v in zip(shares, table, strict=True)), abs=1e-5)


def test_verdicts_that_are_spelled_alike_are_refused(engine: Engine) -> None:
    with pytest.raises(RewardFailed, match=r"'alike' failed.*verdict 'yes' is spelled \[.*accepted: words that model"):
        engine.score([("how good?", "fine")], reward="alike")


@pytest.mark.parametrize("kind", ["judge", "pairwise_judge"])
def test_white_space_is_no_part_of_a_verdict(kind: str) -> None:
    words = ["Yes", "Yes "]
    verdicts: Any = words if kind == "pairwise_judge" else dict.fromkeys(words, 1.0)
    with pytest.raises(ConfigError, match=r"rewards\.j\.verdicts.*'Yes '.*without white space"):
        make_rewards({"j": {"type": kind, "model": "m", "verdicts": verdicts}}, {"m": ModelConfig(source="x")})
