"""From what callers ask to what the engine runs: requests, made and checked; their plans, and what these need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.decode.engine.model_instance import ModelInstance
from trimtab.decode.engine.request_state import Body
from trimtab.decode.errors import InvalidRequest, NotFound
from trimtab.decode.methods.build import Prepared, prompts_of
from trimtab.decode.methods.drawing import resolve_sampling
from trimtab.decode.methods.scoring import check_prompts, score_by_model, score_by_reward
from trimtab.decode.request.info import Limits, ModelInfo
from trimtab.decode.request.keywords import request_from_kwargs
from trimtab.decode.request.method import Facts
from trimtab.decode.request.prompt import Prompt, PromptKind, prompt_kind
from trimtab.decode.request.request import Request
from trimtab.decode.request.validate import check_length, validate
from trimtab.decode.rewards.base import Reward
from trimtab.decode.rewards.own import bound
from trimtab.decode.text.ends import Ends, check_drawable
from trimtab.decode.text.stops import check_stops
from trimtab.decode.text.templates import as_text

__all__ = ["Preparer"]


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
        self._reward_infos = {name: reward.info for name, reward in rewards.items()}
        self.same_ids = same_ids

    def requests(self, prompt: Any, options: Mapping[str, Any]) -> tuple[bool, list[Request]]:
        """Whether several prompts were given, and a checked request for each."""
        many = not isinstance(prompt, str) and isinstance(prompt, Sequence) and _is_many(prompt)
        requests = [self.request(one, options) for one in (prompt if many else [prompt])]
        for request in requests:
            self.validate(request)
        return many, requests

    def request(self, prompt: Prompt, options: Mapping[str, Any]) -> Request:
        """A request from keyword arguments, not yet checked."""
        options = dict(options)
        model = options.pop("model", None) or next(iter(self._infos))
        instance = self._models.get(model) if isinstance(model, str) else None
        own = None if instance is None else instance.model.generation_config
        return request_from_kwargs(prompt, model=model, model_generation_config=own, **options)

    def validate(self, request: Request) -> None:
        request, own = bound(request, self._rewards)
        infos = {**self._reward_infos, **{name: reward.info for name, reward in own.items()}}
        validate(request, self._infos, self._limits, rewards=infos, same_ids=self.same_ids)

    def plan(self, request: Request) -> Prepared:
        """Tokenise the prompt for every model and fill what the request leaves open."""
        request, own = bound(request, self._rewards)
        instance, policy = self._models[request.model], request.policy
        same = frozenset(name for name in self._models if self.same_ids(request.model, name))
        prompts = prompts_of(request, same, lambda name: self._rendered(name, request))
        besides = policy.other_prompts(request.prompt, prompts[request.model])
        others = tuple(tuple(instance.template.encode(other)) for other in besides)
        for name, ids in (*prompts.items(), *((request.model, other) for other in others)):
            if not ids:
                raise InvalidRequest.of("prompt", request.prompt, f"a prompt of at least one token of model {name!r}")
            if outside := self._models[name].unknown(ids):
                raise InvalidRequest.of("prompt", outside, "a text of tokens that the model has")
            check_length(len(ids), request.stopping.max_new_tokens, self._models[name].context)
        writing = [request.model, *(policy.models() if policy.helpers_write else ())]
        vocabularies = {name: self._models[name].vocabulary for name in writing}
        check_stops(request, vocabularies)
        ends = Ends(request, vocabularies.__getitem__, same, policy.passes_text(same))
        check_drawable(request, ends, {name: self._infos[name] for name in writing})
        drawing = resolve_sampling(request.sampling, instance.model.generation_config)
        facts = Facts(self._limits, drawing.greedy, self._infos)
        stops = instance.template.stops(request.prompt)
        request = replace(
            request,
            policy=policy.resolved(facts),
            draw=request.draw.resolved(facts),
            search=request.search.resolved(facts),
        )
        if prompt_kind(request.prompt) is PromptKind.TOKEN_IDS:  # rewards and searches read text
            text = instance.vocabulary.decode_bytes(prompts[request.model]).decode(errors="replace")
            request = replace(request, prompt=text)
        return Prepared(request, prompts, drawing, stops, same, own, others)

    def _rendered(self, model: str, request: Request) -> list[int]:
        """The prompt as a model reads it."""
        own = request.prompt
        if not self.same_ids(request.model, model):
            own = as_text(own, self._models[request.model].vocabulary)
        return self._models[model].template.encode(own)

    def models_of(self, plan: Prepared) -> set[str]:
        """All models that a request may use."""
        methods = (plan.request.policy, plan.request.draw, plan.request.search)
        names = {*plan.prompts, *(name for method in methods for name in method.models())}
        rewards = {name for method in methods for name in method.rewards()}.difference(plan.rewards)
        return names.union(*(self._reward_infos[name].models for name in rewards))

    def needed_pages(self, plan: Prepared) -> dict[str, int]:
        """Pages to admit a request with: its prompts and some room to write.

        Raises:
            InvalidRequest: it could never fit, not even alone.
        """
        needed: dict[str, int] = {}
        new, most = plan.request.stopping.max_new_tokens, plan.request.search.candidates
        for name, ids in plan.prompts.items():
            instance = self._models[name]
            pages, sequences = instance.pages, [ids, *(plan.others if name == plan.request.model else ())]
            if sum(pages.pages_for(min(len(read) + new, instance.context)) for read in sequences) > pages.count:
                held, read = pages.count // len(sequences) * pages.page_tokens, max(map(len, sequences))
                accepted = f"at most {held - read} after a prompt of {read} tokens: the cache holds {held}"
                raise InvalidRequest.of("stopping.max_new_tokens", new, accepted)
            if most > pages.count:
                raise InvalidRequest.of("search", f"{most} candidates", f"at most {pages.count}: the cache's pages")
            needed[name] = sum(pages.pages_for(len(read)) + most for read in sequences)
        return needed

    def model(self, name: str) -> ModelInstance:
        """Raises NotFound for an unknown model."""
        if name not in self._models:
            raise NotFound("model", name, list(self._models))
        return self._models[name]

    def score(
        self, items: Sequence[tuple[Prompt, str]], reward: str | None, model: str | None
    ) -> tuple[Request, Sequence[str], Body]:
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
        info = self._reward_infos[reward]
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
