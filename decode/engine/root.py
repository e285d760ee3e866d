"""The root coroutine of a request: writes the answer and sums up what that took."""

from __future__ import annotations

import time

from trimtab.decode.engine.request_state import RequestState
from trimtab.decode.methods.build import Prepared, write
from trimtab.decode.methods.searches.setting import Outcome
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Progress,
    Started,
)
from trimtab.decode.request.result import Result, Usage

__all__ = ["answer"]


async def answer(state: RequestState, plan: Prepared) -> Completed:
    """Emits Started and chunks; returns the last event."""
    request = plan.request
    authors, seed = (request.model, *request.policy.models()), plan.drawing.key.seed
    prompt_tokens = len(plan.prompts[request.model])
    state.emit(Started(state.job.generation_id, authors, prompt_tokens, seed, request.stopping.max_new_tokens))

    def emit(event: Chunk | Progress) -> None:
        if isinstance(event, Chunk) and not state.first_token:
            state.first_token = time.monotonic()
        state.emit(event)

    outcome = await write(state, plan, emit)
    return Completed(
        Result(
            model=request.model,
            models=authors,
            candidates=outcome.candidates,
            usage=_usage(state, plan, outcome),
            seed=seed,
            selected=outcome.selected,
            reproducible=outcome.reproducible,
            abstained=outcome.abstained,
        )
    )


def _usage(state: RequestState, plan: Prepared, outcome: Outcome) -> Usage:
    """What the answer took, now that it is written."""
    now, model = time.monotonic(), plan.request.model
    prompt_tokens = len(plan.prompts[model])
    chosen = outcome.candidates[outcome.selected]
    for candidate in outcome.candidates:
        for token in candidate.tokens:
            state.counter(token.author).tokens_written += 1
    return Usage(
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=min(state.counter(model).cached_tokens, prompt_tokens),
        returned_tokens=len(chosen.tokens),
        # A policy may choose tokens by itself, among the most likely ones.
        generated_tokens=max(state.drawn + state.drafted, sum(len(c.tokens) for c in outcome.candidates)),
        drafted_tokens=state.drafted,
        accepted_tokens=state.accepted,
        discarded_tokens=state.drafted - state.accepted,
        nudged_tokens=sum(token.author != model for token in chosen.tokens),
        reward_calls=state.reward_calls,
        models=state.model_usage(),
        queue_time=state.started - state.submitted,
        time_to_first_token=(state.first_token or now) - state.submitted,
        total_time=now - state.submitted,
    )
