"""A prompt of any kind becomes the ids that the model's own template and special tokens say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from trimtab.decode.errors import InvalidRequest, UnsupportedModel
from trimtab.decode.request.prompt import ChatMessage, canonical_prompt, parse_messages
from trimtab.decode.text.templates import PromptTemplate, as_text
from trimtab.decode.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

CHAT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SYSTEM, USER, ANSWER = (
    ChatMessage("system", "Be brief."),
    ChatMessage("user", "Why?"),
    ChatMessage("assistant", "Because."),
)


def vocabulary(chat_template: str | None = None, *, bos: bool = True) -> Vocabulary:
    """A byte-level tokenizer that puts ``<s>`` (id 256) before a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = chat_template
    return Vocabulary(wrapped, name="tiny")


BASE, ALIGNED = vocabulary(), vocabulary(CHAT)
turns = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8)), min_size=1, max_size=5
)


def test_text_and_ids_are_taken_as_they_are() -> None:
    template = PromptTemplate(ALIGNED)
    assert template.encode("hi") == ALIGNED.encode("hi")
    assert template.encode("hi")[0] == 256
    assert template.encode([5, 256, 7]) == [5, 256, 7]


@pytest.mark.parametrize("prompt", ["<s>hi", (ChatMessage("user", "hi"),)])
def test_never_a_second_bos(prompt: str | Sequence[ChatMessage]) -> None:
    for template in (PromptTemplate(BASE, "{{ bos_token }}{{ messages[0]['content'] }}"), PromptTemplate(BASE)):
        assert template.encode(prompt).count(256) == 1
    own = PromptTemplate(vocabulary("{{ bos_token }}" + CHAT))
    assert own.encode(prompt).count(256) == 1
    assert own.has_chat_template


def test_a_chat_template_writes_its_own_special_tokens() -> None:
    template = PromptTemplate(ALIGNED)
    messages = [{"role": "user", "content": "Why?"}]
    expected = cast("Any", ALIGNED.tokenizer).apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert template.encode(messages) == expected
    assert 256 not in expected  # the tokenizer would have added it to a plain text


def test_base_template() -> None:
    template = PromptTemplate(BASE)
    assert not template.has_chat_template
    assert template.text([USER]) == "Question: Why?\nAnswer:"
    assert template.text([SYSTEM, USER, ANSWER, ChatMessage("user", "So?")]) == (
        "Be brief.\n\nQuestion: Why?\nAnswer: Because.\n\nQuestion: So?\nAnswer:"
    )
    assert template.encode([USER]) == BASE.encode("Question: Why?\nAnswer:")


@settings(max_examples=100, deadline=None)
@given(turns=turns)
def test_base_template_keeps_every_content_in_order(turns: list[tuple[str, str]]) -> None:
    role, last = turns[-1]
    begins = role == "assistant" and bool(last.strip())
    if role == "assistant" and not begins:  # which alone says nothing
        turns = [("user", "Why?"), *turns]
    text = PromptTemplate(BASE).text([ChatMessage(role, content) for role, content in turns])
    at = 0
    for _, content in turns if role != "assistant" or begins else turns[:-1]:
        at = text.index(content, at) + len(content)
    assert text.endswith(f"Answer: {last}" if begins else "Answer:")


def test_messages_are_data_and_not_templates() -> None:
    asked = ChatMessage("user", "{{ 1 + 1 }}{% raise %}")
    assert PromptTemplate(BASE).text([asked]) == "Question: {{ 1 + 1 }}{% raise %}\nAnswer:"


def test_the_base_frame_brings_its_stop() -> None:
    """The stop is how the frame itself goes on: with the separator before the next question."""
    template = PromptTemplate(BASE)
    (stop,) = template.stops([USER])
    assert stop in template.text([USER, ANSWER, USER]).removeprefix(template.text([USER]))
    assert template.stops("Question: Why?\nAnswer:") == template.stops([1, 2]) == ()
    assert PromptTemplate(ALIGNED).stops([USER]) == ()
    assert PromptTemplate(BASE, "{{ messages[0]['content'] }}").stops([USER]) == ()


def test_a_configured_template_wins() -> None:
    template = PromptTemplate(ALIGNED, "{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    assert not template.has_chat_template
    assert template.encode([USER]) == ALIGNED.encode("[Why?]")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}", "cannot render one user message"),
        ("{{ raise_exception('never') }}", "never"),
        ("{{ messages.append(1) }}", "cannot render one user message"),  # the sandbox forbids it
        ("{{ messages[5]['content'] }}", "cannot render one user message"),
        ("nothing of the request", "leaves out the message: 'nothing of the request'"),
    ],
)
def test_unusable_configured_templates_are_refused_when_the_model_is_loaded(template: str, said: str) -> None:
    with pytest.raises(UnsupportedModel, match="model 'tiny' cannot be served: its configured template") as caught:
        PromptTemplate(BASE, template)
    assert said in str(caught.value)


def test_system_text_joins_the_first_question_where_the_template_refuses_it() -> None:
    template = PromptTemplate(ALIGNED)
    assert template.text([SYSTEM, USER]) == "<|user|>Be brief.\n\nWhy?<|assistant|>"
    with pytest.raises(InvalidRequest, match="System role not supported") as caught:
        template.text([USER, SYSTEM])
    assert [v.field for v in caught.value.violations] == ["prompt.messages"]


def test_ids_are_text_for_another_vocabulary_and_all_else_stays() -> None:
    assert as_text(BASE.encode("Why?"), BASE) == "Why?"  # without the BOS
    chat = [{"role": "user", "content": "Why?"}]
    assert as_text("Why?", BASE) == "Why?"
    assert as_text(chat, BASE) is chat


@pytest.mark.parametrize(
    ("messages", "fields"),
    [
        ([ChatMessage("tool", "x"), USER], ["prompt.messages[0].role"]),
        ([{"role": "user", "content": "x", "name": "y"}], ["prompt.messages[0].name"]),
        ([{"role": "user"}], ["prompt.messages[0].content"]),
        ([USER, "hi"], ["prompt.messages[1]"]),
        ([ChatMessage("assistant", " ")], ["prompt.messages[0].content"]),
        ([USER, ChatMessage("assistant", "\ud800")], ["prompt.messages[1].content"]),
        ([{"role": 3, "content": "\ud800"}], ["prompt.messages[0].role", "prompt.messages[0].content"]),
    ],
)
def test_bad_messages_are_named(messages: list[ChatMessage], fields: list[str]) -> None:
    for refuse in (parse_messages, PromptTemplate(BASE).encode):
        with pytest.raises(InvalidRequest) as caught:
            refuse(messages)
        assert [v.field for v in caught.value.violations] == fields


@pytest.mark.parametrize("prompt", ["", [], (), None, 3, b"bytes", {"role": "user", "content": "x"}])
def test_prompts_of_no_kind_are_refused(prompt: object) -> None:
    for refuse in (PromptTemplate(BASE).encode, lambda p: as_text(p, BASE)):
        with pytest.raises(InvalidRequest, match=r"prompt = .* accepted: a non-empty text, a non-empty list"):
            refuse(prompt)
    with pytest.raises(InvalidRequest, match="at least one message"):
        parse_messages([])


def test_canonical_prompts() -> None:
    assert canonical_prompt([1, 2]) == (1, 2)
    assert canonical_prompt([{"role": "user", "content": "Why?"}]) == (USER,)
    assert canonical_prompt("Why?") == "Why?"
    assert canonical_prompt([{"role": "user"}]) == ({"role": "user"},)  # left for validation to name


@pytest.mark.real
def test_the_bundled_aligned_model(real_models: Any) -> None:
    smol = PromptTemplate(Vocabulary.from_pretrained(str(real_models.aligned)))
    messages = [SYSTEM, USER]
    assert smol.has_chat_template
    assert smol.text(messages).endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
    plain = [{"role": m.role, "content": m.content} for m in messages]
    hf: Any = smol.vocabulary.tokenizer.apply_chat_template(plain, add_generation_prompt=True)
    assert smol.encode(messages) == hf["input_ids"]


@pytest.mark.real
@pytest.mark.full
def test_the_bundled_base_model(real_models: Any) -> None:
    gemma = PromptTemplate(Vocabulary.from_pretrained(str(real_models.base)))
    assert not gemma.has_chat_template
    ids = gemma.encode([SYSTEM, USER])
    assert ids[0] == gemma.vocabulary.bos
    assert ids.count(ids[0]) == 1
    assert gemma.vocabulary.decode(ids[1:]) == "Be brief.\n\nQuestion: Why?\nAnswer:"
