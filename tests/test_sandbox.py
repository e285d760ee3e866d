"""Chat templates are rendered, and refused, as transformers does it."""

from __future__ import annotations

from typing import Any

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from trimtab.decode.text.plain_tokenizer import PlainTokenizer
from trimtab.decode.text.sandbox import render

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": " How is <b>tea</b> made?\n "}
ANSWER = {"role": "assistant", "content": "Boil {{ water }} \u00e9 \U0001f375  "}
CHATS = (
    [USER],
    [{"role": "system", "content": "Be\tbrief."}, USER],
    [USER, ANSWER],
    [USER, ANSWER, USER],
    [{"role": "user", "content": "content"}, {"role": "assistant", "content": "."}],
)

FAMILIES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' "
        "+ message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "trimmed": (
        "{{ bos_token }}\n{%- for message in messages %}\n    {%- if message.role == 'system' %}\n"
        "        {{- raise_exception('System role not supported') }}\n    {%- endif %}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
        "        {{- raise_exception('Roles must alternate') }}\n    {%- endif %}\n"
        "    {{- '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<start_of_turn>model\n' }}\n{%- endif %}\n"
    ),
    "blocks": (
        "{{ bos_token }}\n  {% if tools is not none %}\n tools\n {% endif %}\n{% for m in messages %}\n"
        "  {% if m.role == 'user' %}\n[INST] {{ m.content }} [/INST]\n  {% else %}\n{{ m.content }}{{ eos_token }}\n"
        "  {% endif %}\n{% endfor %}"
    ),
    "marked": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    ),
    "state": (
        "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}"
        "{% endif %}{% set ns.n = ns.n + 1 %}{% if ns.n > 2 %}{% break %}{% endif %}{{ ns.n }}{{ m | tojson }}"
        "{{ m.content | tojson(indent=2, ensure_ascii=true) }}{% set ns.found = true %}{% endfor %}{{ ns.found }}"
    ),
    "names": "{{ dict(a=1) }}{{ dict.fromkeys(['x']) }}{{ strftime_now('%Y') }}{{ documents }}{{ missing }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "twice": "{% for m in messages %}{{ m.content }}|{{ m.content }}{% endfor %}",
}
REFUSED = {
    "syntax": "{% for m in messages %}{{ m.content }}",
    "says why": "{{ raise_exception('no ' + messages[0].role) }}{{ messages[0].content }}",
    "changes": "{{ messages.append(1) }}{{ messages[0].content }}",
    "changes a message": "{{ messages[0].update({'content': 'x'}) }}",
    "underscores": "{{ messages.__class__ }}{{ messages[0].content }}",
    "calls underscores": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format": "{{ '{0.__class__}'.format(messages) }}{{ messages[0].content }}",
    "namespace": "{% set ns = namespace(__class__=1) %}{{ messages[0].content }}",
    "namespace later": "{% set ns = namespace() %}{% set ns._x = 1 %}{{ messages[0].content }}",
    "dict's type": "{{ dict.__class__ }}{{ dict.mro is defined }}{{ raise_exception(dict.__class__) }}",
    "an undefined thing": "{{ nothing.at.all }}",
    "no text": "{% for m in messages %}{{ m.role }}{% endfor %}",
    "no place": "{{ messages[-1]['role'] }} content",
    "cut": "{% for m in messages %}content: {{ m.content[:3] }}{% endfor %}",
}


def theirs(template: str, chat: list[dict[str, str]], opened: bool, goes_on: bool) -> str:
    rendered: Any = render_jinja_template(
        [chat], chat_template=template, add_generation_prompt=opened, continue_final_message=goes_on, **NAMES
    )
    return str(rendered[0][0])


def ours(template: str, chat: list[dict[str, str]], opened: bool, goes_on: bool) -> str:
    tokenizer: Any = PlainTokenizer(None, NAMES, [], None, None, template)  # type: ignore[arg-type]
    return str(
        tokenizer.apply_chat_template(
            chat, add_generation_prompt=opened, continue_final_message=goes_on, tokenize=False
        )
    )


def outcome(how: Any, *arguments: Any) -> tuple[str, str]:
    try:
        return "", how(*arguments)
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_the_same(name: str, opened: bool, goes_on: bool) -> None:
    template = FAMILIES[name]
    found = [outcome(ours, template, chat, opened, goes_on) for chat in CHATS]
    assert found == [outcome(theirs, template, chat, opened, goes_on) for chat in CHATS]
    assert any(not error and text for error, text in found)


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_the_same(name: str, goes_on: bool) -> None:
    template = REFUSED[name]
    found = [outcome(ours, template, chat, False, goes_on) for chat in CHATS]
    assert found == [outcome(theirs, template, chat, False, goes_on) for chat in CHATS]
    if name not in ("no text", "no place", "cut", "underscores", "format"):  # of these some chats are rendered
        assert all(error for error, _ in found)


def test_messages_stay_as_they_are() -> None:
    chat = [dict(USER), dict(ANSWER)]
    ours(FAMILIES["chatml"], chat, False, True)
    assert chat == [USER, ANSWER]


def test_text_of_another_type_shows_no_methods() -> None:
    class Text(str):
        def secret(self) -> str:
            return "secret"

    with pytest.raises(TemplateError, match="secret"):
        render("{{ messages[0].content.secret() }}", [{"role": "user", "content": Text("a")}], {})
