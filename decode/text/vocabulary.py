"""Text and tokens: what bytes a token stands for.

A token's *piece* is its raw bytes; one token may be half a character. Pieces of the tokens of one text concatenate to
the text as the tokenizer normalised it (see :class:`Vocabulary`).
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.decode.errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from trimtab.decode.text.plain_tokenizer import PlainTokenizer

__all__ = ["Encoded", "Vocabulary"]

_PREFIX_SPACE_SCHEMES = ("always", "first")


class Encoded(NamedTuple):
    """Token ids of a text and, for each, the byte offset in the UTF-8 text at which it starts."""

    ids: list[int]
    starts: list[int]


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet of GPT-2: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _from_byte_level(token: str) -> bytes | None:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return None


def _from_byte_fallback(token: str) -> bytes | None:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes((int(token[3:5], 16),))
        except ValueError:
            return None
    return None


class _PieceDecoder:
    """The per-token part of a ``tokenizers`` decoder, read from its JSON form.

    Decoders that look at neighbouring tokens (WordPiece, CTC, BPE with word-end suffix) have no pieces and are
    refused. Stripping at the start of the whole text is not done here: a piece keeps its space, see
    ``prefix_space``.
    """

    def __init__(self, spec: dict[str, Any] | None, model: str) -> None:
        self._model = model
        self._byte_level = False
        self._byte_fallback = False
        self._replacements: list[tuple[str, str]] = []
        self.prefix_space = False
        if spec is None:
            raise UnsupportedModel(model, "its tokenizer has no decoder, so its tokens do not spell out text")
        for step in spec["decoders"] if spec["type"] == "Sequence" else [spec]:
            self._add(step)

    def _add(self, step: dict[str, Any]) -> None:
        match step["type"]:
            case "ByteLevel":
                self._byte_level = True
            case "ByteFallback":
                self._byte_fallback = True
            case "Fuse":
                pass
            case "Replace" if "String" in step["pattern"]:
                self._replacements.append((step["pattern"]["String"], step["content"]))
            case "Metaspace":
                self._replacements.append((step["replacement"], " "))
                scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
                self.prefix_space |= scheme in _PREFIX_SPACE_SCHEMES
            case "Strip" if step["content"] == " " and step["stop"] == 0 and step["start"] <= 1:
                self.prefix_space |= step["start"] == 1
            case kind:
                raise UnsupportedModel(
                    self._model,
                    f"its tokenizer's decoder {kind!r} is not one of ByteLevel, ByteFallback, Fuse, Replace (of a "
                    "string), Metaspace, Strip (of one leading space)",
                )

    def __call__(self, token: str, added: bool) -> bytes:
        if self._byte_level:
            # An added token is matched in the text as it stands, so its content is text and not the byte alphabet.
            return (None if added else _from_byte_level(token)) or token.encode()
        if self._byte_fallback and (byte := _from_byte_fallback(token)) is not None:
            return byte
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()


def _without_prefix_space(spec: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, for text that continues other text: no space is put before the first word."""
    normalizer = spec.get("normalizer")
    if normalizer is not None:
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
        kept = [step for step in steps if step["type"] != "Prepend"]
        spec["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    pre_tokenizer = spec.get("pre_tokenizer")
    if pre_tokenizer is not None:
        for step in pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]:
            if step["type"] == "Metaspace":
                step["prepend_scheme"] = "never"
                step.pop("add_prefix_space", None)
            elif step["type"] == "ByteLevel":
                step["add_prefix_space"] = False
    return spec


def _without_added(backend: Tokenizer, limit: int) -> Tokenizer:
    """The tokenizer without added tokens of ids from ``limit`` on."""
    from tokenizers import Tokenizer

    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < limit]
    return Tokenizer.from_str(json.dumps(spec))


def _adds_prefix_space(backend: Tokenizer) -> bool:
    # Part by part: as Python objects a whole tokenizer takes 0.2 GB, which are not given back.
    parts: list[Any] = [backend.normalizer, backend.pre_tokenizer]
    steps: list[dict[str, Any]] = [json.loads(part.__getstate__()) for part in parts if part is not None]
    flat = [inner for s in steps for inner in s.get("normalizers", s.get("pretokenizers", [s]))]
    return any(
        step.get("type") == "Prepend"
        or (step.get("type") == "ByteLevel" and step.get("add_prefix_space", False))
        or (
            step.get("type") == "Metaspace"
            and step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            in _PREFIX_SPACE_SCHEMES
        )
        for step in flat
    )


class Vocabulary:
    """The tokens of one model, over a Hugging Face *fast* tokenizer; immutable and safe to use from several threads.

    Laws, for ids = ``encode(text, add_special_tokens=False)``:

    - the pieces of ids concatenate to the bytes of ``text`` as the tokenizer normalised it. Byte-level BPE (GPT-2,
      Llama 3, Qwen) changes nothing, except that SmolLM2 drops six control characters and planes 4 to 11, for whose
      bytes it has no tokens. SentencePiece-like tokenizers (Gemma, Llama 2) turn U+2581 into a space.
    - a tokenizer that puts a space before the first word (``prefix_space``: Llama 2, Mistral 7B) yields that space in
      the first piece, because a piece does not know whether it begins a text. ``encode(..., continues=True)``
      tokenises text that follows other text, without the added space, and then the law holds exactly.

    Args:
        tokenizer: a fast tokenizer. Truncation and padding stored in it are switched off.
        eos_token_ids: ids that end an answer; by default the tokenizer's own. Generation configs may name several.
        name: the model's name, for error messages.
        limit: ids that the model has. Added tokens beyond them (of images, say, where the text model has no row for
            them) are no tokens: their names are text like any other.

    Raises:
        UnsupportedModel: the tokenizer is not a fast one, or its tokens have no bytes of their own (WordPiece).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | PlainTokenizer,
        *,
        eos_token_ids: Iterable[int] | None = None,
        name: str = "tokenizer",
        limit: int | None = None,
    ) -> None:
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UnsupportedModel(name, f"its tokenizer {type(tokenizer).__name__} is not a fast (Rust) tokenizer")
        backend.no_truncation()
        backend.no_padding()
        if limit is not None and any(i >= limit for i in backend.get_added_tokens_decoder()):
            backend = _without_added(backend, limit)
        self.name = name
        self.tokenizer = tokenizer
        self._backend = backend
        decoder = backend.decoder
        decoder_spec = None if decoder is None else json.loads(decoder.__getstate__())
        self._decode_piece = _PieceDecoder(decoder_spec, name)
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        vocabulary_ids = backend.get_vocab(with_added_tokens=True).values()
        self.size = max(vocabulary_ids, default=-1) + 1
        """One more than the largest token id. The model's logits may be wider (padding); such ids have no bytes."""
        own_special = (i for i in tokenizer.all_special_ids if i is not None)
        self.special_ids: frozenset[int] = frozenset(own_special) | {i for i, t in added.items() if t.special}
        self.bos: int | None = tokenizer.bos_token_id
        eos = tokenizer.eos_token_id
        own_eos = () if eos is None else (eos,)
        self.eos_token_ids: tuple[int, ...] = tuple(dict.fromkeys(own_eos if eos_token_ids is None else eos_token_ids))
        self._pieces: list[bytes | None] = [None] * self.size

    @classmethod
    def from_pretrained(cls, source: str, *, trust_remote_code: bool = False, name: str | None = None) -> Vocabulary:
        """Load the tokenizer of a hub id or a local folder."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        return cls(tokenizer, name=name or source)

    def __repr__(self) -> str:
        return f"Vocabulary({self.name!r}, size={self.size})"

    @cached_property
    def prefix_space(self) -> bool:
        """Whether ``encode`` puts a space before the first word of a text."""
        return _adds_prefix_space(self._backend)

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """The special tokens put before every text, e.g. Gemma's BOS; empty for SmolLM2."""
        plain, special = self.encode("a", add_special_tokens=False), self.encode("a")
        return tuple(special[: special.index(plain[0])]) if plain and plain[0] in special else ()

    @cached_property
    def special_names(self) -> dict[str, int]:
        """The special tokens by name, which is no text of an answer."""
        return {name: i for i in sorted(self.special_ids) if (name := self.piece(i).decode(errors="replace"))}

    @cached_property
    def _continuing(self) -> Tokenizer:
        if not self.prefix_space:
            return self._backend
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps(_without_prefix_space(json.loads(self._backend.to_str()))))

    def encode(self, text: str, add_special_tokens: bool = True, *, continues: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: any text without lone surrogates.
            add_special_tokens: whether the tokenizer's post-processor adds BOS and the like.
            continues: the text follows other text, so no prefix space is added.
        """
        backend = self._continuing if continues else self._backend
        ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_with_offsets(self, text: str, add_special_tokens: bool = True, *, continues: bool = False) -> Encoded:
        """Token ids and the byte offset in ``text.encode()`` at which each token starts.

        Offsets never decrease. A special token that the tokenizer added starts where the next token does (or at the
        end). Where the tokenizer keeps the text's bytes they are exact, also inside a character; where it normalises
        (lower case, U+2581) they are those of the character the token came from.
        """
        backend = self._continuing if continues else self._backend
        encoding = backend.encode(text, add_special_tokens=add_special_tokens)
        raw, ids = text.encode(), list(encoding.ids)
        # The post-processor gives the tokens it added no sequence; tokens of the text have sequence 0.
        written = [sequence is not None for sequence in encoding.sequence_ids]
        pieces = [self.piece(i) if w else b"" for i, w in zip(ids, written, strict=True)]
        joined = b"".join(pieces)
        shift = 1 if self.prefix_space and not continues and joined == b" " + raw else 0
        if shift or joined == raw:
            starts, at = [], -shift
            for piece in pieces:
                starts.append(max(at, 0))
                at += len(piece)
            return Encoded(ids, starts)
        byte_at = [0]
        for character in text:
            byte_at.append(byte_at[-1] + len(character.encode()))
        starts, following = [], len(raw)
        for (first, _), from_text in zip(reversed(encoding.offsets), reversed(written), strict=True):
            following = min(following, byte_at[first]) if from_text else following
            starts.append(following)
        starts.reverse()
        return Encoded(ids, starts)

    def piece(self, token_id: int) -> bytes:
        """Raw bytes of a token; b"" for an id without a token (models pad their vocabularies).

        Special tokens have the bytes of their name: what is shown of them is the caller's choice.

        Raises:
            ValueError: the id is negative.
        """
        if not 0 <= token_id < self.size:
            if token_id < 0:
                raise ValueError(f"token id {token_id}: accepted: 0 to {self.size - 1}")
            return b""
        piece = self._pieces[token_id]
        if piece is None:
            token = self._backend.id_to_token(token_id)
            piece = b"" if token is None else self._decode_piece(token, token_id in self._added)
            self._pieces[token_id] = piece
        return piece

    def pieces(self) -> tuple[bytes, ...]:
        """The pieces of all ids, ``size`` of them. Costs about a microsecond per id the first time."""
        return tuple(map(self.piece, range(self.size)))

    def decode_bytes(self, ids: Iterable[int], skip_special_tokens: bool = False) -> bytes:
        """The pieces of ``ids``, concatenated."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return b"".join(self.piece(i) for i in ids if i not in skipped)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of ``ids``; bytes that are not UTF-8 become U+FFFD. A prefix space is kept, see the class."""
        return self.decode_bytes(ids, skip_special_tokens).decode(errors="replace")

    def same_ids(self, other: Vocabulary) -> bool:
        """Whether every ordinary token of either vocabulary is the same token in the other.

        Special tokens may differ: an aligned model often names tokens that its base reserved.
        """
        if self is other:
            return True
        if self.size != other.size:
            return False
        special = self.special_ids | other.special_ids
        return all(self.piece(i) == other.piece(i) for i in range(self.size) if i not in special)
