"""A chat that ends with the assistant's own message is gone on with, by every model that reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nudging_models as nm
import pytest
import table_engine as tables
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_doubles import Rated

from trimtab.decode.config import EngineOptions, ModelConfig
from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.methods.build import Prepared, write
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.trigger import TopProb
from trimtab.decode.methods.searches.best_of_n import BestOfN
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.methods.searches.turns import said_so_far, with_instruction
from trimtab.decode.request.prompt import ChatMessage, beginning
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.rewards.base import Sample, whole
from trimtab.decode.text.templates import BASE_TEMPLATE, PromptTemplate
from trimtab.kernels.types import Filters, Key

USER = ChatMessage("user", "Name a fruit.")
# Of a model that keeps white space, of one that trims messages, and of a base model.
KEEPING = (
    "{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
TRIMMING = KEEPING.replace("m['content'] }}", "m['content'] | trim }}")


def begun(text: str) -> tuple[ChatMessage, ...]:
    return (USER, ChatMessage("assistant", text))


def template(text: str) -> PromptTemplate:
    return PromptTemplate(nm.vocabulary("base"), text)


# ----------------------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize("text", [KEEPING, TRIMMING, BASE_TEMPLATE])
@settings(max_examples=60, deadline=None)
@given(said=st.text("ab <\n.é", max_size=8))
def test_the_prompt_is_cut_where_the_message_ends_as_in_transformers(text: str, said: str) -> None:
    made, opened = template(text).text(begun(said)), template(text).text([USER])
    if not said.strip():
        assert made == opened  # nothing is begun
        return
    messages = [{"role": m.role, "content": m.content} for m in begun(said)]
    tokenizer = nm.tokenizer("base")
    assert made == tokenizer.apply_chat_template(
        messages, chat_template=text, tokenize=False, continue_final_message=True
    )
    assert made == opened + {KEEPING: said, TRIMMING: said.strip(), BASE_TEMPLATE: f" {said}"}[text]


def test_the_frame_of_a_base_model_goes_on_after_the_answers_beginning() -> None:
    assert template(BASE_TEMPLATE).text(begun("An")) == "Question: Name a fruit.\nAnswer: An"
    assert template(BASE_TEMPLATE).stops(begun("An")) == template(BASE_TEMPLATE).stops([USER])


def test_a_template_that_leaves_the_message_out_is_refused_in_words() -> None:
    lossy = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}"
    with pytest.raises(InvalidRequest, match=r"prompt\.messages = \['user', 'assistant'\]"):
        template(lossy).encode(begun("An"))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (begun("An"), "An"),
        (begun(" An "), " An "),
        (begun("\n "), ""),
        ([USER], ""),
        ("An", ""),
        ((1, 2), ""),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "An"}], "An"),
    ],
)
def test_what_a_prompt_begins(prompt: Any, text: str) -> None:
    assert beginning(prompt) == text


# ----------------------------------------------------------------------------------------------------- the real engine


HEARD = Rated(lambda sample: float(len(sample.text)), "prefix")


def told(prompt: str, text: str) -> float:
    return float(text.startswith("An ap"))


@pytest.fixture(scope="module")
def engine(tiny: Any, tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A base without a template, a twin with one, and a model of another vocabulary."""
    other = tmp_path_factory.mktemp("other")
    made = tiny.make("llama", 4, vocab_size=nm.vocabulary("nudger").size)
    made.generation_config = hf.GenerationConfig(eos_token_id=nm.special("nudger", "<eos>"))
    made.save_pretrained(other)
    nm.tokenizer("nudger").save_pretrained(other)
    models = {
        "base": ModelConfig(source=str(tiny_folder("llama")), template=BASE_TEMPLATE, dtype="float32"),
        "twin": ModelConfig(source=str(tiny_folder("llama", 1)), dtype="float32"),
        "other": ModelConfig(source=str(other), template=KEEPING, dtype="float32"),
    }
    with Engine(models, rewards={"heard": HEARD, "told": told}, options=EngineOptions(memory_bytes=2**25)) as made:
        yield made
        made.check()


OPTIONS: dict[str, Any] = {"model": "base", "max_new_tokens": 8, "seed": 3, "ignore_eos": True}


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"policy": Nudged("twin", TopProb(0.5))},
        {"policy": Nudged("other", TopProb(0.5))},
        {"policy": Mixture((Weighted("twin", 0.5),))},
        {"draw": Speculative("twin", Fixed(2), coupled=True)},
        {"draw": Speculative("other", Fixed(2), coupled=True)},
        {"search": BestOfN(2, "told")},
        {"search": Segments("heard", 2, 2, max_tokens=3)},
        {"search": Refine("heard", rounds=1)},
        {"search": Evolution("heard", 2, 1, 4, 1)},
    ],
    ids=repr,
)
def test_every_model_reads_the_beginning(engine: Engine, axes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through its own template; the answer is what was written after it."""
    read: list[tuple[str, str]] = []
    encode = PromptTemplate.encode

    def noted(self: PromptTemplate, prompt: Any) -> list[int]:
        ids = encode(self, prompt)
        read.append((self.vocabulary.name, self.vocabulary.decode(ids)))
        return ids

    monkeypatch.setattr(PromptTemplate, "encode", noted)
    prompt = begun("An apple, or an")
    result = engine.generate(prompt, **OPTIONS, **axes)
    helpers = {axis.nudger for axis in axes.values() if isinstance(axis, Nudged)}
    helpers |= {e.model for axis in axes.values() if isinstance(axis, Mixture) for e in axis.experts}
    asked = [text for _, text in read if "Rewrite the instruction" not in text and "Criticise" not in text]
    assert len(asked) >= 1 + len(helpers)
    assert all(text.endswith("An apple, or an") for text in asked)  # of revisions and evolved questions too
    for candidate in result.candidates:
        pieces = b"".join(t.piece for t in candidate.tokens if t.piece not in (b"<bos>", b"<eos>", b"<user>", b"<bot>"))
        if not axes.get("policy") or axes["policy"] != Nudged("other", TopProb(0.5)):
            assert candidate.text == pieces.decode(errors="replace")


def test_the_answer_is_that_to_the_prompts_own_tokens(engine: Engine) -> None:
    ids = engine._preparer.model("base").template.encode(begun("An"))
    assert ids == engine.tokenize("base", "Question: Name a fruit.\nAnswer: An")[0]
    asked, plain = (engine.generate(p, **OPTIONS) for p in (begun("An"), ids))
    assert [t.id for t in asked.tokens] == [t.id for t in plain.tokens]
    opened = engine.generate([USER], **OPTIONS)
    assert [t.id for t in opened.tokens] != [t.id for t in plain.tokens]  # it does depend on it


def test_rewards_of_a_text_see_all_that_the_assistant_says(engine: Engine) -> None:
    HEARD.forget()
    result = engine.generate(begun("An ap"), **OPTIONS, search=BestOfN(2, "heard"))
    for sample, candidate in zip(HEARD.samples, result.candidates, strict=True):
        assert sample.prompt == (USER,)
        assert sample.text == "An ap" + candidate.text
        assert sample.instruction == USER.content
        assert sample.tokens == candidate.tokens
    assert engine.generate(begun("An ap"), **OPTIONS, search=BestOfN(2, "told")).chosen.rewards["told"] == 1.0
    assert engine.score([(begun("An ap"), "ple")], reward="told")[0].value == 1.0


def test_a_given_answer_is_scored_after_the_beginning(engine: Engine) -> None:
    (scored,) = engine.score([(begun("An ap"), "ple")], model="base")
    ids = engine.tokenize("base", "Question: Name a fruit.\nAnswer: An ap")[0]
    (plain,) = engine.score([(ids, "ple")], model="base")
    assert scored == plain


def test_whole_samples() -> None:
    sample = Sample(begun("An"), " apple", False, references=("x",))
    assert whole(sample) == Sample((USER,), "An apple", False, references=("x",))
    for plain in (Sample("q", "a"), Sample((USER,), "a"), Sample(begun(" "), "a"), Sample((1, 2), "a")):
        assert whole(plain) is plain


# ------------------------------------------------------------------------------------------------------------- searches


def test_what_was_said_so_far_is_one_message() -> None:
    assert said_so_far([USER], "x") == (USER, ChatMessage("assistant", "x"))
    assert said_so_far(begun("An"), " apple") == (USER, ChatMessage("assistant", "An apple"))
    assert said_so_far(begun(" "), "An") == (USER, ChatMessage("assistant", "An"))


def test_another_instruction_keeps_the_beginning() -> None:
    other = ChatMessage("user", "Name a pear.")
    assert with_instruction(begun("An"), begun("An"), other.content) == (other, ChatMessage("assistant", "An"))
    alone = (ChatMessage("assistant", "An"),)
    assert with_instruction(alone, alone, other.content) == (other, *alone)


# ----------------------------------------------------------------------------------- control that passes inside a word


@pytest.mark.parametrize("cut", ["the s", "the sin", "the sing"])
def test_a_nudger_of_another_vocabulary_reads_exactly_what_was_written(cut: str) -> None:
    """The beginning may end inside a word: no space must come between it and what goes on."""
    whole_text = "the sing on the sing on the sing on"
    rest = whole_text[len(cut) :].encode()

    def says(kind: str) -> Callable[[bytes], tuple[Any, float]]:
        own = nm.vocabulary(kind)

        def next_of(said: bytes) -> tuple[Any, float]:
            assert rest.startswith(said), f"{kind} read {said!r} after {cut!r}"
            left = rest[len(said) :]
            if not left:
                return "<eos>", 0.9
            (first, *_) = own.encode(left.decode(), False, continues=True)
            # Sure inside of words and unsure at their beginnings: control passes at every word.
            return first, 0.2 if kind == "base" and left.startswith(b" ") else 0.9

        return next_of

    prompt = {kind: nm.vocabulary(kind).encode(cut, False) for kind in ("base", "nudger")}
    models = {kind: nm.scripted(kind, prompt[kind], says(kind)) for kind in prompt}
    request = Request(
        model="base",
        prompt=begun(cut),
        policy=Nudged("nudger", TopProb(0.5)),
        stopping=Stopping(max_new_tokens=40),
    )
    filters = Filters(temperature=0.0)
    context = tables.Tables(models, unread=True)
    plan = Prepared(request, {kind: tuple(ids) for kind, ids in prompt.items()}, Drawing(filters, filters, Key(0)))
    outcome = context.drive(write(context, plan))
    (candidate,) = outcome.candidates
    assert candidate.text == rest.decode()
    assert {token.author for token in candidate.tokens} == {"base", "nudger"}
    # The control: read as an answer of its own, a space comes before it.
    context = tables.Tables(models, unread=True)
    closed = replace(plan, request=replace(request, prompt=(USER,)))
    if not rest.startswith(b" "):
        with pytest.raises(AssertionError, match="read b' "):
            context.drive(write(context, closed))
