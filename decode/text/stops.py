"""Stop strings and special tokens.

A special token has no text in an answer, so no text matches it. A stop string that is the whole name of one stands for
the token itself, as clients of other servers expect of ``<|im_end|>`` (``Answer`` sees to that). One that holds such a
name beside other text could only match if a model spelled the name out, and would else be passed over in silence: it is
refused before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trimtab.decode.errors import InvalidRequest, Violation
from trimtab.decode.request.fields import Text, described
from trimtab.decode.request.request import Request

if TYPE_CHECKING:
    from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["check_stops"]


def check_stops(request: Request, writers: Mapping[str, Vocabulary]) -> None:
    """Refuse stop strings, and texts that a method looks for, that hold the name of a special token beside other text.

    Args:
        request: a checked one.
        writers: vocabularies of the models that write tokens of the answer, by name.

    Raises:
        InvalidRequest: naming every such text, and what to write in its place.
    """
    texts = [(f"stopping.stop[{i}]", stop) for i, stop in enumerate(request.stopping.stop)]
    for method in (request.policy, request.draw, request.search):
        fields = (field.name for field in described(type(method)) if field.mark(Text) is not None)
        texts += [(f"{method.path}.{name}", text) for name in fields if (text := getattr(method, name)) is not None]
    found = [violation for path, text in texts for violation in _violations(path, text, writers)]
    if found:
        raise InvalidRequest(found)


def _violations(path: str, text: str, writers: Mapping[str, Vocabulary]) -> list[Violation]:
    for model, vocabulary in writers.items():
        names = vocabulary.special_names
        inside = [name for name in names if name in text]
        if text not in names and inside:
            name = max(inside, key=len)
            instead = f"or {names[name]} in stopping.stop_token_ids" if path.startswith("stopping") else "or other text"
            why = f"a special token of model {model!r}, which has no text in an answer"
            return [Violation.of(path, text, f"{name!r} alone, {instead}: it is {why}")]
    return []
