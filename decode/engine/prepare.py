"""From what callers ask to what the engine runs: requests, made and checked; their plans, and what these need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.decode.answer import Drawing
from trimtab.decode.api import ResolvedSampling, check_length, request_from_kwargs, resolve_sampling, validate
from trimtab.decode.build import Plan
from trimtab.decode.ends import Ends, check_drawable
from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.request_state import Method
from trimtab.decode.errors import InvalidRequest, NotFound
from trimtab.decode.prepare.messages import PromptKind, prompt_kind
from trimtab.decode.prepare.stops import check_stops
from trimtab.decode.prepare.templates import as_text
from trimtab.decode.rewards.base import Reward
from trimtab.decode.scoring import check_prompts, score_by_model, score_by_reward
from trimtab.decode.searches.resolve import resolve_search
from trimtab.decode.types import (
    Acceptance,
    BestOfN,
    Confidence,
    Evolution,
    Limits,
    Mixture,
    ModelInfo,
    Nudged,
    Objective,
    Policy,
    Prompt,
    Refine,
    Request,
    Segments,
    Speculative,
    TokenReward,
)
from trimtab.kernels.dispatch import Filters
from trimtab.kernels.rng import Key

__all__ = ["Preparer", "writes"]


class Preparer:
    """Prepares requests to the models of an engine; refers to nothing that runs.

    Args:
        models: by name, the default first.
        infos: of the models.
        rewards: of all that the engine serves.
        limits: of one request.
        same_ids: whether two models share one vocabulary, id for id.
    """

    def __init__(
        self,
        models: Mapping[str, ModelInstance],
        infos: Mapping[str, ModelInfo],
        rewards: Mapping[str, Reward],
        limits: Limits,
        same_ids: Callable[[str, str], bool],
    ) -> None:
        self._models, self._infos, self._rewards, self._limits = models, infos, rewards, limits
        self.same_ids = same_ids

    def requests(self, prompt: Any, options: dict[str, Any]) -> tuple[bool, list[Request]]:
        """Whether several prompts were given, and a checked request for each."""
        many = not isinstance(prompt, str) and isinstance(prompt, Sequence) and _is_many(prompt)
        requests = [self.request(one, options) for one in (prompt if many else [prompt])]
        for request in requests:
            self.validate(request)
        return many, requests

    def request(self, prompt: Prompt, options: dict[str, Any]) -> Request:
        """A request from keyword arguments, not yet checked."""
        options = dict(options)
        model = options.pop("model", None) or next(iter(self._infos))
        instance = self._models.get(model) if isinstance(model, str) else None
        own = None if instance is None else instance.model.generation_config
        return request_from_kwargs(prompt, model=model, model_generation_config=own, **options)

    def validate(self, request: Request) -> None:
        validate(
            request,
            self._infos,
            self._limits,
            rewards={name: reward.info for name, reward in self._rewards.items()},
            same_ids=self.same_ids,
        )

    def plan(self, request: Request) -> tuple[Plan, ResolvedSampling]:
        """Tokenise the prompt for every model and resolve the sampling."""
        instance = self._models[request.model]
        prompts = {request.model: instance.template.encode(request.prompt)}
        policy, draw = request.policy, request.draw
        helpers: tuple[str, ...] = ()
        if isinstance(policy, Nudged):
            helpers = (policy.nudger,)
        elif isinstance(policy, Mixture):
            helpers = tuple(expert.model for expert in policy.experts)
        for name in helpers:
            prompts[name] = self._rendered(name, request)
        same = bool(helpers) and all(self.same_ids(request.model, name) for name in helpers)
        same_draft, length = True, draw.length if isinstance(draw, Speculative) else None
        if isinstance(draw, Speculative) and isinstance(draw.draft, str):
            same_draft = self.same_ids(request.model, draw.draft)
            draft = self._models[draw.draft]
            if draw.draft not in prompts:
                # With the base's token ids it reads the base's very prompt, whatever template it has.
                prompts[draw.draft] = prompts[request.model] if same_draft else self._rendered(draw.draft, request)
            length = draw.length or (Acceptance() if draft.model.acceptance is not None else Confidence())
            if isinstance(length, Acceptance) and draft.model.acceptance is None:
                accepted = "Fixed or Confidence: draft model {!r} has no acceptance head"
                raise InvalidRequest.of("draw.speculative.acceptance", length, accepted.format(draw.draft))
        for name, ids in prompts.items():
            if not ids:
                raise InvalidRequest.of("prompt", request.prompt, f"a prompt of at least one token of model {name!r}")
            if outside := self._models[name].unknown(ids):
                raise InvalidRequest.of("prompt", outside, "a text of tokens that the model has")
            check_length(len(ids), request.stopping.max_new_tokens, self._models[name].context)
        writing = [request.model, *([policy.nudger] if isinstance(policy, Nudged) else [])]
        vocabularies = {name: self._models[name].vocabulary for name in writing}
        check_stops(request, vocabularies)
        text_only = isinstance(policy, Nudged) and not same
        ends = Ends(request, vocabularies.__getitem__, writing if same else (), text_only)
        check_drawable(request, ends, {name: self._infos[name] for name in writing})
        resolved = resolve_sampling(request.sampling, instance.model.generation_config)
        foreign = Filters(
            temperature=resolved.temperature,
            top_k=resolved.top_k,
            top_p=resolved.top_p,
            min_p=resolved.min_p,
            repetition_penalty=resolved.repetition_penalty,
        )
        request = replace(request, search=resolve_search(request.search, self._limits, resolved.greedy))
        drawing = Drawing(replace(foreign, bias=resolved.logit_bias), foreign, Key(resolved.seed))
        stops = instance.template.stops(request.prompt)
        if prompt_kind(request.prompt) is PromptKind.TOKEN_IDS:  # rewards and searches read text
            text = instance.vocabulary.decode_bytes(prompts[request.model]).decode(errors="replace")
            request = replace(request, prompt=text)
        return Plan(request, prompts, drawing, stops, same, same_draft, length or Confidence()), resolved

    def _rendered(self, model: str, request: Request) -> list[int]:
        """The prompt as a model reads that helps the requested one."""
        own = request.prompt
        if not self.same_ids(request.model, model):
            own = as_text(own, self._models[request.model].vocabulary)
        return self._models[model].template.encode(own)

    def models_of(self, plan: Plan) -> set[str]:
        """All models that a request may use."""
        search = plan.request.search
        names = set(plan.models)
        if isinstance(search, Evolution) and search.mutator is not None:
            names.add(search.mutator)
        if isinstance(search, Refine) and search.critic is not None:
            names.add(search.critic)
        for reward in _rewards_of(plan.request):
            names.update(self._rewards[reward].info.models)
        return names

    def needed_pages(self, plan: Plan) -> dict[str, int]:
        """Pages to admit a request with: its prompts and some room to write.

        Raises:
            InvalidRequest: it could never fit, not even alone.
        """
        needed: dict[str, int] = {}
        for name, ids in plan.prompts.items():
            instance = self._models[name]
            limit = instance.pages.count * instance.pages.page_tokens
            longest = min(len(ids) + plan.request.stopping.max_new_tokens, instance.context)
            if instance.pages.pages_for(longest) > instance.pages.count:
                raise InvalidRequest.of(
                    "stopping.max_new_tokens",
                    plan.request.stopping.max_new_tokens,
                    f"at most {limit - len(ids)} after a prompt of {len(ids)} tokens: the cache holds {limit}",
                )
            most = _candidates(plan.request)
            if most > instance.pages.count:
                raise InvalidRequest.of(
                    "search", f"{most} candidates", f"at most {instance.pages.count}: the cache's pages"
                )
            needed[name] = instance.pages.pages_for(len(ids)) + most
        return needed

    def model(self, name: str) -> ModelInstance:
        """Raises NotFound for an unknown model."""
        if name not in self._models:
            raise NotFound("model", name, list(self._models))
        return self._models[name]

    def score(
        self, items: Sequence[tuple[Prompt, str]], reward: str | None, model: str | None
    ) -> tuple[Request, Sequence[str], Method]:
        """What scores (prompt, answer) pairs, by a reward or by a model: a request, its models and its coroutine."""
        if (reward is None) == (model is None):
            raise InvalidRequest.of("scorer", {"reward": reward, "model": model}, "a reward or a model")
        by = model if model is not None else next(iter(self._infos))
        request = Request(model=by, prompt="-")
        if reward is None:
            rows = self._scored_rows(by, items)
            return request, [by], lambda state: score_by_model(state, by, rows)
        if reward not in self._rewards:
            raise NotFound("reward", reward, sorted(self._rewards))
        info = self._rewards[reward].info
        if info.pairwise:
            raise InvalidRequest.of("reward", reward, "a reward that rates single answers; this one compares two")
        check_prompts(self._rewards[reward], items)
        return request, info.models, lambda state: score_by_reward(state, reward, items)

    def _scored_rows(
        self, model: str, items: Sequence[tuple[Prompt, str]]
    ) -> list[tuple[Prompt, Sequence[int], Sequence[int]]]:
        """(prompt, its ids, ids of the answer) of each pair."""
        instance = self.model(model)
        rows: list[tuple[Prompt, Sequence[int], Sequence[int]]] = []
        for i, (prompt, text) in enumerate(items):
            ids, answer = instance.template.encode(prompt), instance.vocabulary.encode(text, False, continues=True)
            if not 1 <= len(ids) <= len(ids) + len(answer) <= instance.context:
                accepted = f"1 to {instance.context} tokens of prompt and completion together"
                raise InvalidRequest.of(f"items[{i}]", f"{len(ids) + len(answer)} tokens", accepted)
            if not answer and not instance.vocabulary.eos_token_ids:
                accepted = f"a text of at least one token: model {model!r} has no token that ends an answer"
                raise InvalidRequest.of(f"items[{i}].completion", text, accepted)
            rows.append((prompt, ids, answer))
        return rows


def _is_many(prompt: Sequence[Any]) -> bool:
    """Whether a list holds several prompts: strings, or lists of ids or messages."""
    first = prompt[0] if prompt else None
    return isinstance(first, str) or (isinstance(first, Sequence) and not isinstance(first, Mapping))


def writes(policy: Policy, model: str) -> bool:
    """Whether tokens of an answer can be ``model``'s own, beside the requested one's."""
    if isinstance(policy, Nudged):
        return policy.nudger == model
    return isinstance(policy, Mixture) and any(expert.model == model for expert in policy.experts)


def _rewards_of(request: Request) -> list[str]:
    """Names of the rewards that a request asks for."""
    found = [request.policy.reward] if isinstance(request.policy, TokenReward) else []
    objective = getattr(request.search, "objective", None)
    if objective is not None:
        found += [term.reward for term in Objective.of(objective).terms]
    return found


def _candidates(request: Request) -> int:
    """Answers that are written side by side."""
    match request.search:
        case BestOfN() as search:
            return search.candidates
        case Segments(beams=beams, samples_per_beam=samples):
            return beams * samples
        case Evolution(population=population):
            return population
    return 1
