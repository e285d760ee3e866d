"""Which policies, draws and searches may be asked for, and which of them together.

What no engine could accept is invalid. What is fine by itself and cannot work with something else (a reward that rates
whole answers only under a search that rates beginnings, an expert of another vocabulary, ...) is unsupported, and the
error names the pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast, get_args

from trimtab.decode.methods.searches.extractors import refusal
from trimtab.decode.request.check import MAX_UINT32, Check
from trimtab.decode.request.info import ModelInfo, RewardInfo
from trimtab.decode.request.methods import (
    MIN_HELD_TOKENS,
    Acceptance,
    Autoregressive,
    Base,
    BestOfN,
    Branching,
    Choose,
    Confidence,
    Draw,
    Entropy,
    Evolution,
    Fixed,
    Logprob,
    Mixture,
    Nudged,
    Policy,
    PromptLookup,
    Refine,
    RejectSegments,
    Search,
    Segments,
    Single,
    Speculative,
    TokenReward,
    TopProb,
    Weighted,
)
from trimtab.decode.request.objective import Combine, Objective, RewardTerm
from trimtab.decode.request.prompt import is_text
from trimtab.decode.request.request import Request

__all__ = ["AxesCheck"]

_MAX_EXPERTS = 15
_MAX_TERMS = 32
_MAX_DRAFTED = 32
_MAX_NGRAM = 16
_MAX_ROUNDS = 64
_MAX_TRIES = 1000
_WIDTH = (2, 64)

SameIds = Callable[[str, str], bool]


class AxesCheck(Check):
    """Checks the three axes of a request."""

    def axes(self, request: Request, info: ModelInfo | None, same_ids: SameIds) -> None:
        """Check them all.

        Args:
            request: whose axes.
            info: of the requested model; None if it is unknown.
            same_ids: whether two models, both known, share their token ids.
        """
        # Callers without a type checker, and other layers, may hand in anything.
        policy: object = request.policy
        draw: object = request.draw
        search: object = request.search
        match policy:
            case Base():
                pass
            case Nudged():
                self._nudged(policy, info)
            case Mixture():
                self._mixture(policy, info, same_ids)
            case TokenReward():
                self._token_reward(policy, request)
            case _:
                self.unsupport("policy", repr(policy), _names(Policy))
        match draw:
            case Autoregressive():
                pass
            case Speculative():
                self._speculative(draw, info)
                if isinstance(policy, TokenReward):
                    # Its distribution needs a rating of every likely token, so there is nothing to verify at once.
                    value = "draw.speculative with policy.token_reward"
                    self.unsupport("draw", value, "draw.autoregressive with policy.token_reward")
            case _:
                self.unsupport("draw", repr(draw), _names(Draw))
        self._search(search, request, info)

    # ------------------------------------------------------------------------------------------------------- policies

    def _nudged(self, policy: Nudged, info: ModelInfo | None) -> None:
        path = "policy.nudged"
        nudger = self.model(f"{path}.nudger", policy.nudger)
        if info is not None and nudger is not None and _same_model(info, nudger):
            accepted = f"a model other than the requested one ({info.name!r}, from {info.source!r})"
            self.refuse(f"{path}.nudger", policy.nudger, accepted)
        if policy.max_span_tokens is not None:
            self.integer(f"{path}.max_span_tokens", policy.max_span_tokens, 1, self.limits.max_new_tokens)
        when: object = policy.when
        match when:
            case None:
                pass
            case Entropy(above=bound):
                self.number(f"{path}.entropy_nats_above", bound, ">= 0", lambda x: x >= 0)
            case TopProb(below=bound):
                self.number(f"{path}.top_prob_below", bound, "in [0, 1]", lambda x: 0 <= x <= 1)
            case Branching(above=bound):
                self.number(f"{path}.branching_above", bound, ">= 1", lambda x: x >= 1)
            case _:
                self.refuse(f"{path}.trigger", when, "Entropy(above=), TopProb(below=), Branching(above=) or None")

    def _mixture(self, policy: Mixture, info: ModelInfo | None, same_ids: SameIds) -> None:
        path = "policy.mixture"
        experts: object = policy.experts
        if not isinstance(experts, Sequence) or isinstance(experts, str) or not 1 <= len(experts) <= _MAX_EXPERTS:
            self.refuse(f"{path}.experts", experts, f"a tuple of 1 to {_MAX_EXPERTS} Weighted(model, weight)")
            experts = ()
        named = {info.name} if info is not None else set[str]()
        for i, expert in enumerate(experts):
            where = f"{path}.experts[{i}]"
            if not isinstance(expert, Weighted):
                self.refuse(where, expert, "a Weighted(model, weight)")
                continue
            self.number(f"{where}.weight", expert.weight, "of any sign")
            found = self.model(f"{where}.model", expert.model)
            if found is None:
                continue
            if found.name in named:
                self.refuse(f"{where}.model", expert.model, "a model other than the requested one, named once")
            elif info is not None and not same_ids(info.name, found.name):
                pair = f"{found.name!r} mixed with {info.name!r}, whose token ids differ"
                self.unsupport(f"{where}.model", pair, f"a model that shares the vocabulary of {info.name!r}")
            named.add(found.name)
        if policy.plausibility is not None:
            self.number(f"{path}.plausibility", policy.plausibility, "in [0, 1)", lambda x: 0 <= x < 1)

    def _token_reward(self, policy: TokenReward, request: Request) -> None:
        path = "policy.token_reward"
        self._reward(f"{path}.reward", policy.reward, path, request, beginnings=True)
        self.number(f"{path}.weight", policy.weight, "of any sign")
        self.integer(f"{path}.width", policy.width, *_WIDTH)

    # ---------------------------------------------------------------------------------------------------------- draws

    def _speculative(self, draw: Speculative, info: ModelInfo | None) -> None:
        path = "draw.speculative"
        draft: object = draw.draft
        lookup = isinstance(draft, PromptLookup)
        if isinstance(draft, PromptLookup):
            self.integer(f"{path}.lookup.max_ngram", draft.max_ngram, 1, _MAX_NGRAM)
        elif not isinstance(draft, str) or not draft:
            self.refuse(f"{path}.draft_model", draft, "the name of a model, or PromptLookup()")
        else:
            found = self.model(f"{path}.draft_model", draft)
            if found is not None and info is not None and found.name == info.name:
                # A twin from the same source is fine: it may have another dtype.
                self.refuse(f"{path}.draft_model", draft, f"a model other than the requested one ({info.name!r})")
        length: object = draw.length
        match length:
            case None:
                pass
            case Fixed():
                self.integer(f"{path}.fixed.tokens", length.tokens, 1, _MAX_DRAFTED)
            case Confidence():
                where = f"{path}.confidence"
                self.number(f"{where}.top_prob_below", length.top_prob_below, "in (0, 1)", lambda x: 0 < x < 1)
                self.integer(f"{where}.max_tokens", length.max_tokens, 1, _MAX_DRAFTED)
            case Acceptance():
                where = f"{path}.acceptance"
                self.integer(f"{where}.max_tokens", length.max_tokens, 1, _MAX_DRAFTED)
                if length.stop is not None:
                    self.number(f"{where}.stop", length.stop, "in (0, 1)", lambda x: 0 < x < 1)
            case _:
                accepted = "Fixed(tokens), Confidence(top_prob_below, max_tokens), Acceptance(max_tokens, stop) or None"
                self.refuse(f"{path}.length", length, accepted)
        if lookup and isinstance(length, Confidence | Acceptance):
            pair = f"{type(length).__name__} with PromptLookup, whose drafts have no probabilities"
            self.unsupport(f"{path}.length", pair, "Fixed, or None, with PromptLookup")
        self.flag(f"{path}.coupled", draw.coupled)
        copying: object = draw.copying
        if copying is not None and lookup:
            self.refuse(f"{path}.copying", copying, "None, where PromptLookup drafts")
        elif isinstance(copying, PromptLookup):
            self.integer(f"{path}.copying.max_ngram", copying.max_ngram, 1, _MAX_NGRAM)
        elif copying is not None:
            self.refuse(f"{path}.copying", copying, "PromptLookup(max_ngram) or None")

    # ------------------------------------------------------------------------------------------------------- searches

    def _search(self, search: object, request: Request, info: ModelInfo | None) -> None:
        match search:
            case Single():
                pass
            case BestOfN():
                self._best_of_n(search, request)
            case Segments():
                self._segments(search, request)
            case RejectSegments():
                self._reject_segments(search, request)
            case Evolution():
                self._evolution(search, request)
            case Refine():
                path = "search.refine"
                self._objective(path, search.objective, request)
                self.integer(f"{path}.rounds", search.rounds, 0, _MAX_ROUNDS)
                if search.critic is not None:
                    self.model(f"{path}.critic", search.critic)
            case _:
                self.unsupport("search", repr(search), _names(Search))

    def _best_of_n(self, search: BestOfN, request: Request) -> None:
        path = "search.best_of_n"
        self._count(path, search)
        known = isinstance(search.choose, Choose)
        if not known:
            self.refuse(f"{path}.choose", search.choose, f"one of {', '.join(Choose)}")
        tournament = search.choose is Choose.TOURNAMENT
        pruned = search.reject_fraction is not None
        if search.objective is None:
            unrated = search.choose in (Choose.MAJORITY, Choose.CONSENSUS)
            if pruned or search.threshold is not None:
                why = "with reject_fraction" if pruned else "with threshold"
                self.refuse(f"{path}.objective", None, f"an objective, {why}")
            elif known and not unrated:
                self.refuse(f"{path}.objective", None, f"an objective, with choose={search.choose}")
        else:
            single = pruned or not tournament
            self._objective(path, search.objective, request, beginnings=pruned, single=single)
        self.number(f"{path}.temperature", search.temperature, "> 0", lambda x: x > 0)
        if search.reject_fraction is not None:
            self.number(f"{path}.reject_fraction", search.reject_fraction, "in (0, 1)", lambda x: 0 < x < 1)
            if search.check_every_tokens is None and search.max_held_tokens is None:
                accepted = "a whole number >= 1 here or for max_held_tokens, with reject_fraction"
                self.refuse(f"{path}.check_every_tokens", None, accepted)
            elif search.check_every_tokens is not None and search.max_held_tokens is not None:
                self.refuse(f"{path}.max_held_tokens", search.max_held_tokens, "None with check_every_tokens")
        for name in ("check_every_tokens", "max_held_tokens"):
            value = getattr(search, name)
            if value is not None and not pruned:
                self.refuse(f"{path}.{name}", value, "None without reject_fraction")
            elif value is not None:
                self.integer(f"{path}.{name}", value, 1, MAX_UINT32)
        if (extractors := refusal(search.extract)) is not None:
            self.refuse(f"{path}.extract", search.extract, extractors)
        elif search.extract != "auto" and known and search.choose not in (Choose.MAJORITY, Choose.WEIGHTED):
            self.refuse(f"{path}.extract", search.extract, "auto, or another with choose=majority or choose=weighted")
        if search.threshold is not None:
            self.number(f"{path}.threshold", search.threshold, "of the objective")
            if tournament:
                pair = "threshold with choose=tournament, which compares answers and rates none"
                self.unsupport(f"{path}.threshold", pair, "None with choose=tournament")

    def _count(self, path: str, search: BestOfN) -> None:
        """The number of candidates, and whether each has room."""
        held = search.max_held_tokens
        if search.n is None and held is not None:
            return
        if not self.integer(f"{path}.n", search.n, 1, self.limits.max_n) or type(held) is not int:
            return
        if search.reject_fraction is None or search.check_every_tokens is not None:
            return
        if 0 < held < MIN_HELD_TOKENS * cast("int", search.n):
            room = f">= {MIN_HELD_TOKENS} for each of n = {search.n}, or n unset: as many as have room"
            self.refuse(f"{path}.max_held_tokens", held, f"a whole number {room}")

    def _segments(self, search: Segments, request: Request) -> None:
        path, most = "search.segments", self.limits.max_n
        self._objective(path, search.objective, request, beginnings=True)
        beams = self.integer(f"{path}.beams", search.beams, 1, most)
        samples = self.integer(f"{path}.samples_per_beam", search.samples_per_beam, 1, most)
        if beams and samples and search.beams * search.samples_per_beam > most:
            value = f"{search.beams} beams of {search.samples_per_beam}"
            self.refuse(f"{path}.samples_per_beam", value, f"at most {most} continuations together")
        self.integer(f"{path}.max_tokens", search.max_tokens, 1, MAX_UINT32)
        self.integer(f"{path}.lookahead", search.lookahead, 0, self.limits.max_new_tokens)
        if search.delimiter is not None:
            limit = self.limits.max_stop_bytes
            if not (is_text(search.delimiter) and 1 <= len(search.delimiter.encode()) <= limit):
                self.refuse(f"{path}.delimiter", search.delimiter, f"a string of 1 to {limit} UTF-8 bytes")
        if search.entropy_above is not None:
            self.number(f"{path}.entropy_above", search.entropy_above, "of nats >= 0", lambda x: x >= 0)
        self.number(f"{path}.reward_weight", search.reward_weight, "of any sign")
        self.number(f"{path}.logprob_weight", search.logprob_weight, "of any sign")
        self.flag(f"{path}.diverse", search.diverse)
        if not isinstance(search.logprob, Logprob):
            self.refuse(f"{path}.logprob", search.logprob, f"one of {', '.join(Logprob)}")

    def _reject_segments(self, search: RejectSegments, request: Request) -> None:
        path = "search.reject_segments"
        self._objective(path, search.objective, request, beginnings=True)
        self.number(f"{path}.target", search.target, "of the objective")
        self.number(f"{path}.beta", search.beta, ">= 0", lambda x: x >= 0)
        self.number(f"{path}.entropy_above", search.entropy_above, "of nats >= 0", lambda x: x >= 0)
        known = self.integer(f"{path}.min_tokens", search.min_tokens, 1, MAX_UINT32)
        self.integer(f"{path}.max_tokens", search.max_tokens, search.min_tokens if known else 1, MAX_UINT32)
        self.integer(f"{path}.max_tries", search.max_tries, 1, _MAX_TRIES)
        self.number(f"{path}.start", search.start, "in [0, 1]", lambda x: 0 <= x <= 1)
        self.integer(f"{path}.target_tokens", search.target_tokens, 0, MAX_UINT32)

    def _evolution(self, search: Evolution, request: Request) -> None:
        path, most = "search.evolution", self.limits.max_n
        self._objective(path, search.objective, request, beginnings=True)
        known = self.integer(f"{path}.population", search.population, 1, most)
        self.integer(f"{path}.survivors", search.survivors, 1, search.population if known else most)
        self.integer(f"{path}.period_tokens", search.period_tokens, 1, MAX_UINT32)
        self.integer(f"{path}.rounds", search.rounds, 0, _MAX_ROUNDS)
        if search.mutator is not None:
            self.model(f"{path}.mutator", search.mutator)

    # -------------------------------------------------------------------------------------------------------- rewards

    def _objective(
        self, search: str, value: object, request: Request, *, beginnings: bool = False, single: bool = True
    ) -> None:
        """An objective, or what stands for one.

        Args:
            search: path of the search that wants it.
            value: as in the request.
            beginnings: whether its rewards must rate beginnings of answers.
            single: whether they must rate one answer, rather than compare two.
        """
        path = f"{search}.objective"
        match value:
            case str() | Objective():
                objective = Objective.of(value)
            case Mapping():
                objective = Objective.of(cast("Mapping[str, float]", value))
            case _:
                self.refuse(path, value, "the name of a reward, names and weights, or an Objective")
                return
        terms: object = objective.terms
        if not isinstance(terms, Sequence) or isinstance(terms, str) or not 1 <= len(terms) <= _MAX_TERMS:
            self.refuse(f"{path}.terms", terms, f"1 to {_MAX_TERMS} rewards, each a RewardTerm(reward, weight)")
            terms = ()
        pairwise: RewardInfo | None = None
        for i, term in enumerate(terms):
            where = f"{path}.terms[{i}]"
            if not isinstance(term, RewardTerm):
                self.refuse(where, term, "a RewardTerm(reward, weight)")
                continue
            self.number(f"{where}.weight", term.weight, "of any sign")
            found = self._reward(f"{where}.reward", term.reward, search, request, beginnings=beginnings, single=single)
            pairwise = found if found is not None and found.pairwise else pairwise
        if not isinstance(objective.combine, Combine):
            self.refuse(f"{path}.combine", objective.combine, f"one of {', '.join(Combine)}")
        elif pairwise is not None and objective.combine is not Combine.SUM:
            pair = f"combine={objective.combine} with {pairwise.name!r}, which compares two answers"
            self.unsupport(f"{path}.combine", pair, "sum with a pairwise reward")
        self.number(f"{path}.spread", objective.spread, ">= 0", lambda x: x >= 0)

    def _reward(
        self, path: str, name: object, user: str, request: Request, *, beginnings: bool, single: bool = True
    ) -> RewardInfo | None:
        found = self.reward(path, name)
        if found is None:
            return None
        if single and found.pairwise:
            pair = f"{user} with {found.name!r}, which compares two answers"
            accepted = "best_of_n with choose=tournament and without reject_fraction, or a reward that rates one answer"
            self.unsupport(path, pair, f"{accepted} ({self._rewards(lambda r: not r.pairwise)})")
        elif beginnings and found.kind == "sequence":
            what = f"{user} with reject_fraction" if user == "search.best_of_n" else user
            pair = f"{what} with {found.name!r}, which rates whole answers only"
            fits = self._rewards(lambda r: r.kind != "sequence" and not r.pairwise)
            self.unsupport(path, pair, f"a reward of kind prefix or token, which rates beginnings too ({fits})")
        if found.needs_reference and isinstance(request.references, Sequence) and not request.references:
            self.refuse("references", request.references, f"at least one answer for the reward {found.name!r}")
        return found

    def _rewards(self, fits: Callable[[RewardInfo], bool]) -> str:
        """The rewards that would fit, for an error."""
        return "here " + (", ".join(repr(name) for name in sorted(self.rewards) if fits(self.rewards[name])) or "none")


def _names(axis: object) -> str:
    *others, last = (cls.__name__ for cls in get_args(axis))
    return f"{', '.join(others)} or {last}" if others else last


def _same_model(one: ModelInfo, other: ModelInfo) -> bool:
    return one.name == other.name or (bool(one.source) and one.source == other.source)
