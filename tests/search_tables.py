"""Tables on which every policy, draw and search runs, and a driver that answers ops in any order.

The driver runs the engine's own ``Task``s, so children of a gather interleave, and fail, as they do there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import nudging_models as nm
import table_engine as tables
import table_models as tm
from reward_doubles import Compared, Rated

from trimtab.decode.engine.tasks import Task
from trimtab.decode.methods.build import Maker, Prepared, write
from trimtab.decode.methods.drawing import Drawing
from trimtab.decode.methods.draws.autoregressive import Autoregressive
from trimtab.decode.methods.draws.length import Fixed
from trimtab.decode.methods.draws.lookup import PromptLookup
from trimtab.decode.methods.draws.speculative import Speculative
from trimtab.decode.methods.policies.base import Base
from trimtab.decode.methods.policies.mixture import Mixture, Weighted
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.methods.policies.token_reward import TokenReward
from trimtab.decode.methods.policies.trigger import Entropy
from trimtab.decode.methods.searches.single import Single
from trimtab.decode.ops import Call, Draft, Extend, Mixed, Verify
from trimtab.decode.request.events import Chunk, Progress
from trimtab.decode.request.objective import Objective, RewardTerm
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping
from trimtab.decode.rewards import rating
from trimtab.kernels.types import Filters, Key


def scattered(text: str, salt: str = "") -> float:
    """A number in (0, 1) for a text: a continuous reward without meaning."""
    return random.Random(f"{salt}/{text}").random()


@dataclass
class Tables(tables.Tables):  # type: ignore[misc]
    """The ``Context`` of a request.

    Attributes:
        rewards: by name.
        order: seed of the order in which waiting ops are answered.
        slow: rewards that exceed their time limit.
        after: called after each answered op.
    """

    rewards: Mapping[str, Any] = field(default_factory=dict)
    order: int = 0
    slow: tuple[str, ...] = ()
    after: Callable[[], None] = lambda: None
    opened: int = 0
    given: int = 0  # tokens given to ``open``, prompts above all

    def open(self, model: str, tokens: Sequence[int]) -> Any:
        self.opened += 1
        self.given += len(tokens)
        return super().open(model, tokens)

    def reward(self, name: str) -> Any:
        found = self.rewards[name]
        found.name = name
        return found

    def render(self, model: str, prompt: Any) -> list[int]:
        if not isinstance(prompt, str) and not isinstance(prompt[0], ChatMessage):
            return list(prompt)
        text = prompt if isinstance(prompt, str) else "".join(turn.content for turn in prompt)
        size = self.models[model].vocabulary.size - 1
        return [byte % size for byte in text.encode()[-8:]] or [0]

    def drive(self, *coroutines: Coroutine[Any, Any, Any]) -> Any:
        """Run methods side by side to their ends; the first result, or the first failure."""
        waiting: list[tuple[Task, Any]] = []
        roots = [Task(coroutine, lambda task, op: waiting.append((task, op))) for coroutine in coroutines]
        for root in roots:
            root.start()
        chooser = random.Random(self.order)
        while waiting:
            task, op = waiting.pop(chooser.randrange(len(waiting)))
            if task.done:
                continue  # closed by a sibling's failure
            self._answer(task, op)
            self.after()
        for root in roots:
            assert root.done
            if root.error is not None:
                raise root.error
        return roots[0].result

    def _answer(self, task: Task, op: Any) -> None:
        match op:
            case Extend():
                task.resume(self.extend(op))
            case Draft():
                task.resume(self.draft(op))
            case Verify():
                task.resume(self.verify(op))
            case Call(function, args):
                if getattr(getattr(function, "__self__", None), "name", None) in self.slow:
                    task.fail(TimeoutError())
                    return
                try:
                    found = function(*args)
                except Exception as error:
                    task.fail(error)
                else:
                    task.resume(found)
            case _:
                raise AssertionError(op)

    def row(self, seq: Any, back: int) -> Any:
        found = super().row(seq, back)
        if isinstance(seq, Mixed) and seq.blend.plausibility:
            base = tm.softmax(self.models[seq.model].logits(seq.tokens[: len(seq.tokens) - back]))
            found = found.copy()
            found[base < seq.blend.plausibility * base.max()] = found.max() - 300
        return found


# ------------------------------------------------------------------------------------------------------- small letters


def letters(size: int = 4, seed: int = 0, **options: Any) -> dict[str, Any]:
    """A base over a few letters, and models with its vocabulary: an expert, a draft, a nudger."""
    base = tm.table(size, seed, **options)
    return {"base": base} | {
        name: tm.table(size, seed + i + 1, like=base, noise=0.7, **options)
        for i, name in enumerate(("expert", "draft", "chat"))
    }


# --------------------------------------------------------------------------------------------------- two vocabularies

SUPPORT = [" the", " a", " on", " sing", "the", "s", "t", ".", "\n", b"\xc3", b"\xa9", "<eos>"]
FOREIGN = [" the", " an", " in", "g", "s", ".", "\n", b"\xc3\xa9", "<eos>"]


def families(seed: int = 0, order: int = 2) -> dict[str, Any]:
    """The same, over words, and a nudger with token ids of its own."""
    own = {
        name: nm.table("base", seed + i, SUPPORT, rare=["<eos>"], order=order)
        for i, name in enumerate(("base", "expert", "draft", "chat"))
    }
    return {**own, "foreign": nm.table("nudger", seed + 9, FOREIGN, rare=["<eos>"], order=order)}


POLICIES: dict[str, Any] = {
    "base": Base(),
    "nudged": Nudged("chat", Entropy(1.0)),
    "cross vocabulary": Nudged("foreign", Entropy(1.0), 6),
    "mixture": Mixture((Weighted("expert", 0.7), Weighted("chat", -0.3)), plausibility=0.01),
    "token_reward": TokenReward("liked", 2.0, 4),
}
DRAWS: dict[str, Any] = {
    "plain": Autoregressive(),
    "speculative": Speculative("draft", Fixed(3)),
    "coupled": Speculative("draft", Fixed(4), coupled=True),
    "lookup": Speculative(PromptLookup(2), Fixed(2)),
}
REWARDS: dict[str, Callable[[], Any]] = {
    "liked": lambda: Rated(lambda sample: scattered(sample.text)),
    "short": lambda: Rated(lambda sample: -float(len(sample.text))),
    "constant": lambda: Rated(lambda sample: 0.25),
    "odds": lambda: Compared(lambda a, b: 1 / (1 + 2 ** (scattered(b) - scattered(a)))),
}
LIKED = Objective((RewardTerm("liked"),))
PROMPT = (2, 0, 1, 0)


_SINGLE, _BASE, _PLAIN = Single(), Base(), Autoregressive()


def made(
    models: dict[str, Any],
    *,
    search: Any = _SINGLE,
    policy: Any = _BASE,
    draw: Any = _PLAIN,
    stopping: Stopping | None = None,
    filters: Filters | None = None,
    seed: int = 0,
    prompt: Any = PROMPT,
    **options: Any,
) -> Prepared:
    """A prepared request for ``base``."""
    names = ["base"]
    match policy:
        case Nudged(nudger):
            names.append(nudger)
        case Mixture(experts):
            names += [expert.model for expert in experts]
    if isinstance(draw, Speculative) and isinstance(draw.draft, str):
        names.append(draw.draft)
    ids = list(prompt) if not isinstance(prompt, str) else Tables(models).render("base", prompt)
    stopping = stopping or Stopping(max_new_tokens=12)
    request = Request(
        model="base",
        prompt=prompt,
        sampling=Sampling(seed=seed),
        stopping=stopping,
        policy=policy,
        draw=draw,
        search=search,
        **options,
    )
    prompts = {name: (*ids, 1) if name in ("chat", "foreign", "expert") else tuple(ids) for name in names}
    own = filters or Filters(temperature=1.0)
    same = frozenset({"base", "chat", "expert", "draft"} & set(names))
    return Prepared(request, prompts, Drawing(own, own, Key(seed)), (), same)


@dataclass
class Ran:
    """A finished search, and what it left."""

    outcome: Any
    context: Tables
    events: list[Chunk | Progress]

    @property
    def chosen(self) -> Any:
        return self.outcome.candidates[self.outcome.selected]

    @property
    def ids(self) -> tuple[int, ...]:
        return ids_of(self.chosen)

    @property
    def chunks(self) -> list[Chunk]:
        return [event for event in self.events if isinstance(event, Chunk)]

    @property
    def progress(self) -> list[Progress]:
        return [event for event in self.events if isinstance(event, Progress)]


def ids_of(candidate: Any) -> tuple[int, ...]:
    return tuple(token.id for token in candidate.tokens)


def context_of(models: dict[str, Any], **options: Any) -> Tables:
    rewards = {name: make() for name, make in REWARDS.items()} | options.pop("rewards", {})
    return Tables(models, rewards=rewards, **options)


def run(models: dict[str, Any], *, context: Tables | None = None, **options: Any) -> Ran:
    """Through the composition root, as the engine does it."""
    own = {k: options.pop(k) for k in ("order", "slow", "after", "out_of_time", "rewards") if k in options}
    context = context or context_of(models, **own)
    events: list[Chunk | Progress] = []
    outcome = context.drive(write(context, made(models, **options), events.append))
    assert not context.open_sequences
    return Ran(outcome, context, events)


def writer_of(context: Tables, plan: Prepared, key: Key | None = None, **options: Any) -> Any:
    """A writer of the request's policy and draw."""
    return Maker(context, plan, rating.rate).root(key or plan.drawing.key, **options)
