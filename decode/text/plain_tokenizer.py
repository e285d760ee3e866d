"""A fast tokenizer with what transformers knows of it, without transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trimtab.decode.text.sandbox import UnclearEnd, render

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PlainTokenizer"]


@dataclass(frozen=True, slots=True)
class PlainTokenizer:
    """The part of transformers' ``PreTrainedTokenizerBase`` that a ``Vocabulary`` and a ``PromptTemplate`` use.

    Attributes:
        backend_tokenizer: of the library ``tokenizers``.
        special_tokens_map: names of special tokens by what a template calls them, ``bos_token`` and the like.
        all_special_ids: ids of these and of others that are special; None for names that are no tokens.
        chat_template: in Jinja; None if there is none.
    """

    backend_tokenizer: Tokenizer
    special_tokens_map: Mapping[str, str]
    all_special_ids: Sequence[int | None]
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        return self.special_tokens_map.get("bos_token")

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, str]],
        *,
        chat_template: str | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> str:
        """The text of a chat; as that of transformers for messages of a role and a text, with the same errors.

        Args:
            tokenize: False; encoding is the vocabulary's.
        """
        assert not tokenize
        template = chat_template or self.chat_template or ""
        try:
            return render(
                template,
                conversation,
                self.special_tokens_map,
                open_turn=add_generation_prompt,
                goes_on=continue_final_message,
            )
        except UnclearEnd:  # refused in the words of transformers
            from transformers.utils.chat_template_utils import render_jinja_template

            special: dict[str, Any] = dict(self.special_tokens_map)
            rendered: Any = render_jinja_template(  # typed as a text: it is the texts and what the assistant wrote
                [[dict(message) for message in conversation]],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **special,
            )
            return str(rendered[0][0])
