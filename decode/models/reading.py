"""What a model's folder says besides its weights: read by transformers once, and remembered until a file changes.

transformers decides what the files mean: defaults of a configuration, old names of fields, which tokenizer there is.
That takes seconds to import, several times what a small model takes to load. So what came out is kept, and the next
process reads that and ``tokenizer.json``. It is kept only where nothing is lost by it: see ``remember_reading``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from trimtab.decode.models.remembered import fingerprint, installed, recall, remember
from trimtab.decode.text.plain_tokenizer import PlainTokenizer
from trimtab.decode.text.templates import BASE_TEMPLATE

__all__ = ["Fields", "Reading", "recall_reading", "remember_reading"]

_KIND, _FORMAT = "readings", 1
_LIBRARIES = ("transformers", "tokenizers", "jinja2")
_OWN = ("special_tokens_map", "all_special_ids", "bos_token_id", "eos_token_id", "chat_template")
_USER = {"role": "user", "content": "Hello\n  "}
_TURNS = [_USER, {"role": "assistant", "content": " Fine, {{thanks}} <b> \u00e9"}]
# What a template is tried with: messages, whether a turn is opened, whether the last message is gone on with.
_CHATS = (
    ([_USER], False, False),
    ([_USER], True, False),
    ([{"role": "system", "content": "Be\tbrief."}, _USER], True, False),
    (_TURNS, False, False),
    (_TURNS, False, True),
    ([*_TURNS, _USER], True, False),
)


class Fields:
    """The fields of a configuration, as attributes."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)

    def get_text_config(self) -> Fields:
        """The part that is a language model: all of it."""
        return self

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was remembered of a folder.

    Attributes:
        config, generation_config: with the fields that transformers' objects have.
        own: what transformers knows of the tokenizer.
    """

    folder: Path
    config: Fields
    generation_config: Fields
    own: Mapping[str, Any]

    def tokenizer(self) -> PlainTokenizer:
        """The tokenizer, read from its file."""
        return PlainTokenizer(_plain(self.folder), **self.own)


def recall_reading(source: str) -> Reading | None:
    """What is known of a folder; None if nothing is, if a file of it has changed since, or it isn't one."""
    if not Path(source).is_dir():
        return None
    found = recall(_KIND, _key(Path(source)))
    try:
        said = json.loads(found or b"")
        own = {name: said["tokenizer"][name] for name in _OWN}
        return Reading(Path(source), Fields(said["config"]), Fields(said["generation_config"]), own)
    except (ValueError, KeyError, TypeError):
        return None


def remember_reading(source: str, config: Any, generation_config: Any, tokenizer: Any) -> None:
    """Keep what transformers made of a folder, where the same can be made of what is kept, and nowhere else.

    It can't where the tokenizer is another than that of ``tokenizer.json``, where its chat template is rendered
    otherwise here, where rotary positions are computed by transformers, and where a configuration is not plain data.

    Args:
        config: a configuration of transformers, of a checked family.
        generation_config: likewise.
        tokenizer: likewise.
    """
    folder = Path(source)
    if not folder.is_dir() or config.get_text_config() is not config or not _plain_rotary(config.rope_parameters):
        return
    key = _key(folder)  # before the tokenizer's file is read again
    own = {name: getattr(tokenizer, name) for name in _OWN}
    with suppress(TypeError, ValueError, OSError):
        parts = {"config": config.to_dict(), "generation_config": generation_config.to_dict(), "tokenizer": own}
        said = json.dumps(parts)
        if json.loads(said)["tokenizer"] == own and _same(tokenizer, folder, own):
            remember(_KIND, key, said.encode())


def _key(folder: Path) -> str:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    more = sorted((folder / "additional_chat_templates").glob("*"))
    return fingerprint([*files, *more], _FORMAT, *map(installed, _LIBRARIES)) + ".json"


def _plain_rotary(rope: Mapping[str, Any]) -> bool:
    kinds = [rope] if "rope_type" in rope else list(rope.values())
    return all(kind["rope_type"] == "default" for kind in kinds)


def _plain(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def _same(tokenizer: Any, folder: Path, own: Mapping[str, Any]) -> bool:
    """Whether a tokenizer of transformers is the one of the folder's file, and its chats are rendered here as there."""
    if not (folder / "tokenizer.json").is_file() or not isinstance(own["chat_template"], str | None):
        return False
    if getattr(tokenizer, "split_special_tokens", False):  # is in no file
        return False
    given, found = tokenizer.backend_tokenizer, _plain(folder)
    found.no_truncation()
    found.no_padding()  # as a vocabulary has them
    if _digest(given) != _digest(found):
        return False
    return _chats(PlainTokenizer(found, **own)) == _chats(tokenizer)


def _digest(tokenizer: Tokenizer) -> bytes:
    return hashlib.sha256(tokenizer.to_str().encode()).digest()


def _chats(tokenizer: Any) -> list[str]:
    """What a tokenizer makes of chats, or the words in which its template refuses them."""
    found = []
    for messages, opened, goes_on in _CHATS:
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=None if tokenizer.chat_template else BASE_TEMPLATE,
                tokenize=False,
                add_generation_prompt=opened,
                continue_final_message=goes_on,
            )
        except Exception as error:  # a template may raise anything
            text = f"{type(error).__name__}: {error}"
        found.append(text)
    return found
