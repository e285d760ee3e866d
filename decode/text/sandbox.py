"""Chat templates run as transformers runs them, without importing it, which takes a second.

A template comes with a model, from wherever that came, so it runs in Jinja's sandbox, of which nothing can be changed
and whose names that begin with an underscore can't be reached. What is rendered here is what
``transformers.utils.chat_template_utils`` renders, for messages of a role and a text; the tests compare, and so does
``decode.models.reading`` for each model whose template is run here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["UnclearEnd", "render"]

_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # stands for the end of the message that is gone on with


class UnclearEnd(ValueError):
    """A template writes the message that is to be gone on with in such a way that its end can't be found."""


def render(
    template: str,
    messages: Sequence[Mapping[str, str]],
    variables: Mapping[str, str],
    *,
    open_turn: bool = False,
    goes_on: bool = False,
) -> str:
    """The text of a chat.

    Args:
        template: in Jinja.
        messages: each a ``role`` and a ``content``.
        variables: names of special tokens, by what the template calls them (``bos_token``).
        open_turn: whether a turn of the assistant's is opened at the end.
        goes_on: whether the text ends where the content of the last message does.

    Raises:
        TemplateError: the template doesn't compile, or refuses the messages in words of its own.
        UnclearEnd: see there.
    """
    if goes_on and "content" not in template:
        raise UnclearEnd("the template has no place for the text of a message")
    chat = [{str(key): str.__str__(value) for key, value in message.items()} for message in messages]
    last = chat[-1]["content"]
    if goes_on:
        chat[-1]["content"] = last + _TAG
    text = _compiled(template).render(
        messages=chat, tools=None, documents=None, add_generation_prompt=open_turn, **variables
    )
    return _until_tag(text, last) if goes_on else text


def _until_tag(text: str, last: str) -> str:
    tag = _TAG.strip()
    if last.strip() not in text or tag not in text:
        raise UnclearEnd("the last message is not in the rendered chat as it was given")
    end = text.rindex(tag)
    # A template that trims messages trims the space of the tag, and would have trimmed those before it.
    return text[:end] if text.startswith(_TAG, end) else text[:end].rstrip()


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": _now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(template)


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant wrote, for training: here, it is what lies inside."""

    tags = {"generation"}  # noqa: RUF012  # as the base class has it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Any) -> Any:
        return caller()


class _Dict:
    """``dict`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """``namespace`` that holds no names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # without ``self``, which may be the name of an attribute
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(
            f"Chat templates cannot store underscore-prefixed attributes on a namespace, but got {name!r}. "
            "Please rename the attribute."
        )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
