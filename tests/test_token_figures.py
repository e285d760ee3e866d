"""Whose the figures of a token are: its author's, or a mixture's; at temperature 1, before all that is asked of draws.

Every policy under every draw, on random models in the engine, against the models' own forward passes. Both vocabularies
spell a text in one way only, so what any model has read follows from the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.methods.answer import Answer
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import FinishReason, Token
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.text.vocabulary import Vocabulary
from trimtab.kernels.types import Filters, Key

SPECIAL = ("<bos>", "<eos>", "<user>", "<bot>")
LETTERS = "abcdefghijklmnop"
MARKS = (17, 19, 20)  # ids of the special tokens that don't end an answer
WEIGHTS = {"chat": -0.5, "expert": 0.8}
PLAUSIBILITY = 0.02
POLICIES: dict[str, Any] = {
    "base": None,
    "nudged": Nudged("chat", Entropy(2.0)),
    "cross vocabulary": Nudged("foreign", Entropy(2.2), max_span_tokens=2),
    "mixture": Mixture(tuple(Weighted(name, weight) for name, weight in WEIGHTS.items()), PLAUSIBILITY),
    "token reward": TokenReward("vowels", 2.0, 4),
}
DRAWS: dict[str, Any] = {
    "plain": None,
    "speculative": Speculative("chat", Fixed(3)),
    "coupled": Speculative("expert", Fixed(2), coupled=True),
    "lookup": Speculative(PromptLookup(2), Fixed(2)),
}
PROMPT = [{"role": "user", "content": "a bad cab"}]
# None of this may show in a figure. (The bias is for the vocabulary of the requested model.)
ASKED: dict[str, Any] = {
    "temperature": 1.3,
    "top_k": 12,
    "top_p": 0.95,
    "repetition_penalty": 1.2,
    "logit_bias": {3: -1.5} | dict.fromkeys(MARKS, -math.inf),
    "top_logprobs": 3,
    "max_new_tokens": 32,
    "min_new_tokens": 20,
    "seed": 4,
    "model": "base",
}


def tokenizer(order: str) -> hf.PreTrainedTokenizerFast:
    """Letters and the space, none of which is ever merged with another."""
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(order)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>")


@pytest.fixture(scope="module")
def folders(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for seed, name in enumerate(("base", "chat", "expert", "foreign")):
        own = tokenizer((LETTERS + "Ġ")[:: -1 if name == "foreign" else 1])
        own.chat_template = tiny.CHAT
        ends = {"bos_token_id": own.bos_token_id, "eos_token_id": own.eos_token_id}
        model = tiny.make("llama", seed + 20, vocab_size=len(own), **ends)
        model.generation_config = hf.GenerationConfig(**ends)
        model.save_pretrained(made.setdefault(name, tmp_path_factory.mktemp(name)))
        own.save_pretrained(made[name])
    return made


def rated(prompt: str, text: str) -> float:
    return sum(map(text.count, "aei")) / (1 + len(text))


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> Iterator[Engine]:
    served = {name: ModelConfig(source=str(folder), dtype="float32") for name, folder in folders.items()}
    vowels = {
        "type": "python",
        "function": lambda prompt, text: sum(map(text.count, "aei")) / (1 + len(text)),
        "kind": "token",
    }
    with Engine(
        served, rewards={"vowels": vowels}, options=EngineOptions(memory_bytes=16 << 20, page_tokens=16)
    ) as made:
        yield made
        made.check()


class Forwards:
    """The models by themselves."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self.models = {name: hf.AutoModelForCausalLM.from_pretrained(folder).eval() for name, folder in folders.items()}
        self.own = {name: hf.AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}

    def said(self, model: str, tokens: list[Token]) -> Any:
        """ln p [V], in float64, after the prompt and what the tokens say, in the model's own words."""
        own = self.own[model]
        shown: Any = own.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
        # Of a token of another vocabulary a model sees the text: no special token, and no space before the answer.
        alien = [(token.author == "foreign") != (model == "foreign") for token in tokens]
        pieces = [
            b"" if a and token.piece.startswith(b"<") else token.piece for a, token in zip(alien, tokens, strict=True)
        ]
        first = next((i for i, piece in enumerate(pieces) if piece.strip()), len(pieces))
        pieces[:first] = [
            piece.lstrip(b" ") if a else piece for a, piece in zip(alien[:first], pieces[:first], strict=True)
        ]
        text = b"".join(pieces).decode()
        ids = own(shown + text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            return self.models[model](input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)

    def mixed(self, tokens: list[Token]) -> Any:
        """The same of the mixture, without the implausible tokens."""
        base = self.said("base", tokens)
        row = base + sum(weight * self.said(name, tokens) for name, weight in WEIGHTS.items())
        row[base.exp() < PLAUSIBILITY * base.exp().max()] = -torch.inf
        return row.log_softmax(-1)


@pytest.fixture(scope="module")
def forwards(folders: dict[str, Path]) -> Forwards:
    return Forwards(folders)


SHORT = {("base", "speculative"), ("mixture", "coupled"), ("mixture", "lookup")} | {
    (name, "plain") for name in POLICIES
}
CASES = [
    pytest.param(policy, draw, marks=[] if (policy, draw) in SHORT else pytest.mark.full)
    for policy in POLICIES
    for draw in DRAWS
    if draw == "plain" or policy != "token reward"  # which are refused together
]


@pytest.mark.parametrize(("policy", "draw"), CASES)
def test_figures_are_whose_they_are_said_to_be(engine: Engine, forwards: Forwards, policy: str, draw: str) -> None:
    axes = {"policy": POLICIES[policy], "draw": DRAWS[draw]}
    result = engine.generate(PROMPT, **ASKED, **{name: axis for name, axis in axes.items() if axis is not None})
    written: list[Token] = []
    for token in result.tokens:
        row = forwards.mixed(written) if policy == "mixture" else forwards.said(token.author, written)
        p = row.exp()
        assert token.logprob == pytest.approx(float(row[token.id]), abs=2e-4)
        assert token.entropy == pytest.approx(float(-(p * row.nan_to_num(neginf=0)).sum()), abs=2e-4)
        assert token.top_prob == pytest.approx(float(p.max()), abs=1e-4)
        best = row.topk(3)
        assert [top.id for top in token.top] == [
            i for i, v in zip(best.indices.tolist(), best.values, strict=True) if v > -1e9
        ]
        assert [top.logprob for top in token.top] == pytest.approx(
            [float(v) for v in best.values if v > -1e9], abs=2e-4
        )
        written.append(token)
    authors = {token.author for token in result.tokens}
    assert authors == {"nudged": {"base", "chat"}, "cross vocabulary": {"base", "foreign"}}.get(policy, {"base"})
    assert result.chosen.sum_logprob == pytest.approx(sum(token.logprob or 0.0 for token in result.tokens))


def test_no_tokens_are_no_better_than_a_blind_one(folders: dict[str, Path]) -> None:
    """The mean that a search over segments weighs: 0 would be more than any answer has."""

    class Context:
        def vocabulary(self, model: str) -> Vocabulary:
            return Vocabulary.from_pretrained(str(folders[model]))

    filters = Filters()
    request = Request(model="base", prompt="a", stopping=Stopping(max_new_tokens=4))
    answer = Answer(Context(), request, Drawing(filters, filters, Key(0)))  # type: ignore[arg-type]
    assert answer.mean_logprob == pytest.approx(-math.log(len(LETTERS) + 1 + len(SPECIAL)))
    answer.write([Token(0, b"a", "base", logprob=-1.0), Token(18, b"<eos>", "base", logprob=-3.0)])
    assert answer.mean_logprob == -2.0, "the token that ended the answer counts"
    assert answer.finish_reason is FinishReason.EOS
