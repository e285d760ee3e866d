"""Which tokens end an answer, and which may not be written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from trimtab.decode.errors import InvalidRequest, Violation
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import Token
from trimtab.decode.text.view import VocabularyView

if TYPE_CHECKING:
    from trimtab.decode.request.info import ModelInfo

__all__ = ["Ends", "check_drawable"]


class Ends:
    """The ends of a request's answers. A token id means something only together with the model that writes it.

    Args:
        request: for its stopping rules.
        vocabulary: of a model, by name.
        same_vocabulary: models that share the requested model's token ids.
        text_only: tokens are passed on as text, so one that ends answers must not be written inside one.
    """

    def __init__(
        self,
        request: Request,
        vocabulary: Callable[[str], VocabularyView],
        same_vocabulary: Iterable[str] = (),
        text_only: bool = False,
    ) -> None:
        self._stopping, self._model = request.stopping, request.model
        self._vocabulary, self._text_only = vocabulary, text_only
        self._same = frozenset((request.model, *same_vocabulary))
        self._names = {stop.encode(): stop for stop in request.stopping.stop}
        self._bans: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def shares_ids(self, model: str) -> bool:
        """Whether ``model`` has the requested model's token ids."""
        return model in self._same

    def holds(self, model: str, token: int) -> bool:
        """Whether ``token``, written by ``model``, ends an answer."""
        if self.is_eos(model, token) or (model in self._same and token in self._stopping.stop_token_ids):
            return True
        return self.named(model, token) is not None

    def is_eos(self, model: str, token: int) -> bool:
        """Whether ``token`` is how ``model`` ends an answer by itself, and the request lets it."""
        return not self._stopping.ignore_eos and token in self.eos(model)

    def eos(self, model: str) -> tuple[int, ...]:
        """Tokens by which ``model`` ends an answer, if the request lets it."""
        replaced = self._stopping.eos_token_ids if model == self._model else ()
        return replaced or self._vocabulary(model).eos_token_ids

    def named(self, model: str, token: int) -> str | None:
        """The stop string that is the name of this token, if that is a special one."""
        if not self._names:
            return None
        own = self._vocabulary(model)
        return self._names.get(own.piece(token)) if token in own.special_ids else None

    def is_named(self, token: Token, text: str) -> bool:
        """Whether ``token`` is a special token, which has no text, and ``text`` its name."""
        own = self._vocabulary(token.author)
        return token.id in own.special_ids and token.piece == text.encode()

    def banned(self, model: str, position: int) -> tuple[int, ...]:
        """What ``model`` must not write at a position of the answer."""
        if model not in self._bans:
            self._bans[model] = self._banned(model)
        return self._bans[model][position >= self._stopping.min_new_tokens]

    def _banned(self, model: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Before the minimum length, and after that."""
        own, eos = self._vocabulary(model), self.eos(model)
        always: list[int] = []
        if self._text_only:
            always = [token for token in (*eos, *own.eos_token_ids) if not self.holds(model, token)]
        early = [*always, *eos]
        if model in self._same:
            early += self._stopping.stop_token_ids
        if self._names:
            early += [token for token in own.special_ids if self.named(model, token) is not None]
        return tuple(dict.fromkeys(early)), tuple(dict.fromkeys(always))


def check_drawable(request: Request, ends: Ends, writers: Mapping[str, ModelInfo]) -> None:
    """That at every position each model that writes has a token which it may write.

    Args:
        request: a checked one.
        ends: of its answers.
        writers: the models that write tokens of the answer, by name.

    Raises:
        InvalidRequest: naming the fields that together leave nothing.
    """
    banned = {token for token, bias in request.sampling.logit_bias.items() if bias == -math.inf}
    found: list[Violation] = []
    for name, info in writers.items():
        own = banned if ends.shares_ids(name) else set[int]()
        last = request.stopping.max_new_tokens - 1
        if len(own.union(ends.banned(name, last))) >= info.vocab_size:
            value = f"bans all that model {name!r} may write of its {info.vocab_size} tokens"
            found.append(Violation.of("sampling.logit_bias", value, "bans that leave a token"))
        elif len(own.union(ends.banned(name, 0))) >= info.vocab_size:
            value = f"{request.stopping.min_new_tokens} with sampling.logit_bias, which bans all tokens of model "
            value += f"{name!r} but ends of answers"
            found.append(Violation.of("stopping.min_new_tokens", value, "0, or another token that is not banned"))
    if found:
        raise InvalidRequest(found)
