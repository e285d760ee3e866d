"""Text and tokens: what bytes a token stands for, and how pieces become text that is never retracted.

A token's *piece* is its raw bytes; one token may be half a character. Pieces of the tokens of one text concatenate to
the text as the tokenizer normalised it (see :class:`Vocabulary`). :class:`Detokenizer` turns a stream of pieces into
text and finds stop strings across token borders.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from trimtab.decode.errors import UnsupportedModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

__all__ = ["Detokenizer", "Encoded", "StopMatch", "StopMatcher", "Vocabulary"]

_PREFIX_SPACE_SCHEMES = ("always", "first")


class Encoded(NamedTuple):
    """Token ids of a text and, for each, the byte offset in the UTF-8 text at which it starts."""

    ids: list[int]
    starts: list[int]


# ------------------------------------------------------------------------------------------------------- vocabulary


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


def _adds_prefix_space(spec: dict[str, Any]) -> bool:
    steps = [spec.get("normalizer") or {}, spec.get("pre_tokenizer") or {}]
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
        tokenizer: PreTrainedTokenizerBase,
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
        return _adds_prefix_space(self._spec())

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """The special tokens put before every text, e.g. Gemma's BOS; empty for SmolLM2."""
        plain, special = self.encode("a", add_special_tokens=False), self.encode("a")
        return tuple(special[: special.index(plain[0])]) if plain and plain[0] in special else ()

    @cached_property
    def special_names(self) -> dict[str, int]:
        """The special tokens by name, which is no text of an answer."""
        return {name: i for i in sorted(self.special_ids) if (name := self.piece(i).decode(errors="replace"))}

    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = json.loads(self._backend.to_str())
        return spec

    @cached_property
    def _continuing(self) -> Tokenizer:
        if not self.prefix_space:
            return self._backend
        from tokenizers import Tokenizer

        return Tokenizer.from_str(json.dumps(_without_prefix_space(self._spec())))

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


# ------------------------------------------------------------------------------------------------------ stop strings


class StopMatcher:
    """Finds the first stop string in a stream of characters (Aho and Corasick, 1975); immutable, shared by copies.

    A node stands for the longest suffix of the stream that begins some stop string; ``depth`` is its length.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(dict.fromkeys(stops))
        if "" in self.stops:
            raise ValueError("stop = '': accepted: strings of at least one character")
        self._next: list[dict[str, int]] = [{}]
        self._fail: list[int] = [0]
        self.depth: list[int] = [0]
        self.match: list[str | None] = [None]  # the longest stop string that ends at the node
        for stop in self.stops:
            self._add(stop)
        self._link()
        self.first_characters = tuple(self._next[0])

    def _add(self, stop: str) -> None:
        node = 0
        for character in stop:
            child = self._next[node].get(character)
            if child is None:
                child = self._next[node][character] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self.depth.append(self.depth[node] + 1)
                self.match.append(None)
            node = child
        self.match[node] = stop

    def _link(self) -> None:
        queue = deque(self._next[0].values())
        while queue:
            node = queue.popleft()
            for character, child in self._next[node].items():
                self._fail[child] = self.step(self._fail[node], character)
                queue.append(child)
            if self.match[node] is None:
                self.match[node] = self.match[self._fail[node]]

    def step(self, node: int, character: str) -> int:
        """The node after one more character; amortised constant time."""
        while (child := self._next[node].get(character)) is None:
            if node == 0:
                return 0
            node = self._fail[node]
        return child

    def settle(self, node: int) -> int:
        """The longest suffix of ``node`` that a further character could still extend to a stop string."""
        while node and not self._next[node]:
            node = self._fail[node]
        return node


@dataclass(frozen=True, slots=True)
class StopMatch:
    """Where an answer was stopped.

    Attributes:
        stop: the stop string.
        start: bytes of the answer before the stop string.
        end: bytes of the answer up to and with the stop string.
        tokens_before: tokens that lie wholly before the stop string.
        tokens: tokens fed, up to and with the one that completed the stop string.
    """

    stop: str
    start: int
    end: int
    tokens_before: int
    tokens: int


def _width(character: str) -> int:
    code = ord(character)
    return 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4


class Detokenizer:
    """Turns the pieces of one answer into text that is never retracted, and ends it at the first stop string.

    Held back are an incomplete UTF-8 character and the longest suffix that begins a stop string. The texts returned by
    ``feed`` and ``finish`` concatenate to ``b"".join(pieces).decode(errors="replace")`` cut at the first stop string,
    however the bytes are divided into pieces.

    The *first* stop string is the one whose last character comes first: it is known as soon as it is complete, so no
    further token is needed to decide. Of several that end at the same character the longest wins. (With the stops
    "abcd" and "bc", "abcd" is cut at "bc".) Stops match the text, so U+FFFD in a stop string matches a replaced byte.

    A call costs O(piece + text held back), the latter shorter than the longest stop string; nothing is scanned twice.
    The state is forked by ``copy`` and rewound by going back to an earlier copy, both O(text held back).

    Args:
        stops: stop strings, none empty; or a matcher made from them.
        include_stop: whether the text keeps the stop string.
        min_tokens: a stop string that is complete before this many tokens were fed is ordinary text.
    """

    __slots__ = (
        "_ends",
        "_held",
        "_include_stop",
        "_matcher",
        "_min_tokens",
        "_node",
        "_settled_bytes",
        "_settled_tokens",
        "_tail",
        "_total_bytes",
        "_widths",
        "finished",
        "match",
        "tokens",
    )

    def __init__(
        self, stops: Sequence[str] | StopMatcher = (), *, include_stop: bool = False, min_tokens: int = 0
    ) -> None:
        if isinstance(stops, str):
            raise ValueError(f"stops = {stops!r}: accepted: a sequence of strings")
        self._matcher = stops if isinstance(stops, StopMatcher) else StopMatcher(stops)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._tail = b""  # bytes of an incomplete character
        self._held = ""  # characters that begin a stop string: exactly depth[node] of them
        self._widths: list[int] = []  # bytes behind each held character
        self._node = 0
        self._settled_bytes = 0  # bytes before the held characters
        self._total_bytes = 0
        self._settled_tokens = 0  # tokens that end at or before settled_bytes
        self._ends: deque[int] = deque()  # byte ends of the later tokens
        self.tokens = 0
        self.match: StopMatch | None = None
        self.finished = False

    def copy(self) -> Detokenizer:
        """An independent state at the same point of the answer."""
        other = object.__new__(Detokenizer)
        for slot in self.__slots__:
            setattr(other, slot, getattr(self, slot))
        other._ends = self._ends.copy()  # the only attribute that is changed in place
        return other

    @property
    def held(self) -> str:
        """Characters fed that are held back because a stop string may begin with them."""
        return self._held

    @property
    def held_tokens(self) -> int:
        """Tokens fed of whose text some is still held back (0 after a stop)."""
        return 0 if self.match is not None else len(self._ends)

    def feed(self, piece: bytes) -> str:
        """Take the piece of one token and return the text that it settled, possibly "".

        Raises:
            ValueError: the answer is over (a stop string matched, or ``finish`` was called).
        """
        if self.finished:
            raise ValueError("feed after the end of an answer: accepted: a copy from before the end")
        self.tokens += 1
        self._total_bytes += len(piece)
        self._ends.append(self._total_bytes)
        return self._advance(piece, final=False)

    def finish(self) -> str:
        """End the answer: return what was held back, an incomplete character as U+FFFD. Idempotent."""
        if self.finished:
            return ""
        text = self._advance(b"", final=True)
        if self.match is None:
            text += self._held
            self._held, self._widths, self._node = "", [], 0
            self._settle(self._total_bytes)
            self.finished = True
        return text

    def _advance(self, data: bytes, *, final: bool) -> str:
        released = []
        for text, replaced in self._characters(self._tail + data, final):
            released.append(self._scan(text, replaced))
            if self.finished:
                break
        if self.match is None:
            self._settle(self._settled_bytes)
        return "".join(released)

    def _characters(self, data: bytes, final: bool) -> Iterator[tuple[str, int]]:
        """The runs of whole characters in ``data``, and each replaced character with the bytes that it stands for."""
        self._tail = b""
        while data:
            try:
                yield data.decode(), 0
                return
            except UnicodeDecodeError as error:
                first, end, incomplete = error.start, error.end, error.reason == "unexpected end of data"
            if first:
                yield data[:first].decode(), 0
            if incomplete and not final:
                self._tail = data[first:]
                return
            yield "\ufffd", end - first
            data = data[end:]

    def _scan(self, text: str, replaced: int) -> str:
        """Match ``text`` (a replaced character of ``replaced`` bytes, if not 0) and return what it settles."""
        matcher = self._matcher
        if self._node == 0 and not any(first in text for first in matcher.first_characters):
            self._settle(self._settled_bytes + (replaced or len(text.encode())))
            return text
        node, offset = self._node, len(self._held)
        window = self._held + text
        widths = self._widths + ([replaced] if replaced else [_width(character) for character in text])
        for i, character in enumerate(text):
            node = matcher.step(node, character)
            stop = matcher.match[node]
            if stop is not None and self.tokens >= self._min_tokens:
                return self._stop(stop, window, widths, offset + i + 1)
        self._node = node = matcher.settle(node)
        cut = len(window) - matcher.depth[node]
        self._held, self._widths = window[cut:], widths[cut:]
        self._settle(self._settled_bytes + sum(widths[:cut]))
        return window[:cut]

    def _stop(self, stop: str, window: str, widths: list[int], end: int) -> str:
        start = end - len(stop)
        start_byte = self._settled_bytes + sum(widths[:start])
        end_byte = start_byte + sum(widths[start:end])
        self._settle(start_byte)
        self.match = StopMatch(stop, start_byte, end_byte, self._settled_tokens, self.tokens)
        self.finished = True
        self._held, self._widths, self._node, self._tail = "", [], 0, b""
        return window[: end if self._include_stop else start]

    def _settle(self, settled: int) -> None:
        self._settled_bytes = settled
        while self._ends and self._ends[0] <= settled:
            self._ends.popleft()
            self._settled_tokens += 1
