"""How a prompt becomes the token ids that one model reads.

========================  ==============================================================================
prompt                    token ids
========================  ==============================================================================
token ids                 as they are
text                      ``encode(text)`` with the tokenizer's special tokens (Gemma's BOS)
chat messages             rendered by the model's template, with the assistant's turn opened, then encoded
chat that ends with the   rendered with that message left open: the answer goes on where it ends, and is what is
assistant's message       written from there
========================  ==============================================================================

A message to go on with is cut where its text ends, before whatever the template writes after a turn. White space at its
end stays where the template keeps it and goes where the template trims messages, as in transformers; most models go on
better from a text without it, since they write the space before a word with the word. White space alone is no text: the
turn is only opened.

The template is, in this order: the one configured for the model, the tokenizer's own chat template, and for a model
that has neither (a base model) ``BASE_TEMPLATE``.

Every model that works on a request (nudger, expert, draft) is given the prompt in the form in which it came. Chat
messages go through the template of each; no template is put around a text or token ids. So an expert with the base's
weights reads what the base reads, and says the same. Token ids mean nothing to a model of another vocabulary: it reads
the text that they spell (``as_text``).

The names of special tokens inside a text or a message are encoded as those tokens, as transformers does by default; a
caller who passes on untrusted text and minds that sends token ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from trimtab.decode.errors import InvalidRequest, UnsupportedModel
from trimtab.decode.request.prompt import (
    PROMPT_ACCEPTED,
    ChatMessage,
    Prompt,
    PromptKind,
    beginning,
    parse_messages,
    prompt_kind,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["BASE_STOPS", "BASE_TEMPLATE", "PromptTemplate", "as_text"]

# The plain-text frame that the nudging paper gives a base model: the system text, then questions and answers. Turns
# are separated by an empty line, and the last line ends without a space because a base continues with " word".
BASE_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{ message['content'] + '\n\n' }}
{%- elif message['role'] == 'user' -%}
{{ 'Question: ' + message['content'] + '\n' }}
{%- else -%}
{{ 'Answer: ' + message['content'] + '\n\n' }}
{%- endif -%}
{%- endfor -%}
{{ 'Answer:' if add_generation_prompt else '' }}"""

BASE_STOPS = ("\nQuestion:",)  # how a base model goes on after an answer: with a question of its own

_PROBE, _ANSWER = "Hello", "Fine"


class PromptTemplate:
    """Renders and encodes prompts for one model.

    Args:
        vocabulary: the model's tokens, with its Hugging Face tokenizer.
        template: a Jinja template over ``messages`` (each with ``role`` and ``content``), ``add_generation_prompt``
            and the tokenizer's special tokens (``bos_token``, ...), run in transformers' sandbox. None takes the
            tokenizer's chat template, or ``BASE_TEMPLATE`` if it has none.

    Raises:
        UnsupportedModel: ``template`` does not compile, cannot render a single user message, or leaves it out.
    """

    def __init__(self, vocabulary: Vocabulary, template: str | None = None) -> None:
        self.vocabulary = vocabulary
        own: str | dict[str, str] | None = getattr(vocabulary.tokenizer, "chat_template", None)
        self.has_chat_template = template is None and bool(own)
        """Whether messages go through the tokenizer's own chat template."""
        self._template = None if self.has_chat_template else (template or BASE_TEMPLATE)
        if template is not None:
            self._try()

    def text(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt text of checked messages.

        A last message of the assistant is left open. A template that refuses system messages (Gemma 2) gets the system
        text at the head of the first user turn, as in the nudging reference code.

        Raises:
            InvalidRequest: the template refuses the messages; the template's own words are in the message.
        """
        try:
            return self._render(messages)
        except Exception as error:  # whatever a template does wrong, the fault is not the engine's
            merged = _system_merged(messages)
            if merged is not None:
                try:
                    return self._render(merged)
                except Exception:
                    pass  # the first refusal is the one about the request as it was sent
            roles = [message.role for message in messages]
            accepted = f"turns that the template of {self.vocabulary.name!r} takes; it says: {error}"
            raise InvalidRequest.of("prompt.messages", roles, accepted) from error

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt of any kind.

        Raises:
            InvalidRequest: the prompt is empty or of no known kind, or the template refuses it.
        """
        match prompt_kind(prompt):
            case PromptKind.TEXT:
                return self._encode_text(cast("str", prompt))
            case PromptKind.TOKEN_IDS:
                return list(cast("Sequence[int]", prompt))
            case PromptKind.CHAT:
                text = self.text(parse_messages(cast("Sequence[ChatMessage]", prompt)))
                # A tokenizer's chat template writes every special token itself, as transformers has it.
                return self.vocabulary.encode(text, False) if self.has_chat_template else self._encode_text(text)
            case None:
                raise InvalidRequest.of("prompt", prompt, PROMPT_ACCEPTED)

    def stops(self, prompt: Prompt) -> tuple[str, ...]:
        """Stop strings that belong to the frame: ``BASE_STOPS`` for chat messages in ``BASE_TEMPLATE``, else none."""
        framed = self._template == BASE_TEMPLATE and prompt_kind(prompt) is PromptKind.CHAT
        return BASE_STOPS if framed else ()

    def turn_end(self) -> list[int]:
        """Token ids that the template writes after an answer; none where it leaves that to the next turn."""
        turns = (ChatMessage("user", _PROBE), ChatMessage("assistant", _ANSWER))
        try:
            rendered = self._render(turns, open_turn=False)
        except Exception:  # a template without turns of the assistant
            return []
        end = rendered.rpartition(_ANSWER)[2] if self._template != BASE_TEMPLATE else ""
        return self.vocabulary.encode(end, False, continues=True) if end else []

    def _encode_text(self, text: str) -> list[int]:
        """Encode with special tokens, but never a second BOS before one that the text already begins with."""
        bos = getattr(self.vocabulary.tokenizer, "bos_token", None)
        return self.vocabulary.encode(text, add_special_tokens=not (bos and text.startswith(bos)))

    def _try(self) -> None:
        try:
            rendered = self._render((ChatMessage("user", _PROBE),))
        except Exception as error:
            reason = f"its configured template cannot render one user message: {error}"
            raise UnsupportedModel(self.vocabulary.name, reason) from error
        if _PROBE not in rendered:
            raise UnsupportedModel(
                self.vocabulary.name, f"its configured template leaves out the message: {rendered!r}"
            )

    def _render(self, messages: Sequence[ChatMessage], open_turn: bool = True) -> str:
        goes_on = open_turn and bool(beginning(messages))
        if open_turn and not goes_on and messages[-1].role == "assistant":
            messages = messages[:-1]
        rendered = self.vocabulary.tokenizer.apply_chat_template(
            [{"role": message.role, "content": message.content} for message in messages],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=open_turn and not goes_on,
            continue_final_message=goes_on,
        )
        return cast("str", rendered)


def as_text(prompt: Prompt, vocabulary: Vocabulary) -> Prompt:
    """The prompt for a model of other token ids: ids of ``vocabulary`` as text, without special tokens, all else as is.

    Raises:
        InvalidRequest: the prompt is of no known kind.
    """
    match prompt_kind(prompt):
        case PromptKind.TOKEN_IDS:
            return vocabulary.decode(cast("Sequence[int]", prompt), skip_special_tokens=True)
        case None:
            raise InvalidRequest.of("prompt", prompt, PROMPT_ACCEPTED)
    return prompt


def _system_merged(messages: Sequence[ChatMessage]) -> tuple[ChatMessage, ...] | None:
    """The messages with leading system text put before the first user's; None if there is none to merge."""
    if len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
        return None
    first = ChatMessage("user", f"{messages[0].content}\n\n{messages[1].content}")
    return (first, *messages[2:])
