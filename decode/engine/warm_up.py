"""First requests cost more: tables between vocabularies, templates and buffers are made when they are first needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import product
from typing import Any

from trimtab.decode.engine.engine import Engine
from trimtab.decode.errors import TrimtabError
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.nudged import Nudged

__all__ = ["warm_up"]

_log = logging.getLogger(__name__)


def warm_up(engine: Engine) -> None:
    """Have an engine make now what the first requests would wait for, by a short answer of each likely kind.

    Every model answers alone, aligned ones nudge base ones, and drafts draft for the models whose token ids they share.
    A kind that fails is logged, and left to the requests that ask for it.
    """
    for options in _kinds(engine):
        try:
            engine.generate(
                [{"role": "user", "content": "Hello, who are you?"}],
                max_new_tokens=8,
                temperature=1.0,
                seed=0,
                prompt_cache=False,
                **options,
            )
        except TrimtabError as error:
            _log.warning("a first answer with %s failed: %s", options, error)


def _kinds(engine: Engine) -> Iterator[dict[str, Any]]:
    models = engine.models
    writers = [name for name, info in models.items() if info.role in ("base", "aligned")]
    yield from ({"model": name} for name in writers)
    for name, helper in product(writers, models):
        roles = models[name].role, models[helper].role
        if roles == ("base", "aligned") and helper in models[name].nudge_models:
            yield {"model": name, "policy": Nudged(helper)}
        if roles[1] == "draft" and engine.same_ids(name, helper):
            yield {"model": name, "draw": Speculative(helper)}
