"""No random number decides two things: across candidates, retries, helpers, critics and answers that calibrate.

Every token that a request draws, on tables, is noted with its random number and with what the model had read. A number
that serves twice after different texts, or in different models, would make draws depend on one another that should not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
import search_tables as s

from trimtab.decode.methods.chance import Line
from trimtab.decode.methods.searches.best_of_n import BestOfN, Choose
from trimtab.decode.methods.searches.evolution import Evolution
from trimtab.decode.methods.searches.refine import Refine
from trimtab.decode.methods.searches.reject_segments import RejectSegments
from trimtab.decode.methods.searches.segments import Segments
from trimtab.decode.methods.searches.single import Single
from trimtab.decode.request.sampling import Stopping
from trimtab.decode.rewards import calibration
from trimtab.decode.rewards.calibration import Calibrated, Drawn
from trimtab.kernels.types import Key, Pick

SEARCHES: dict[str, Any] = {
    "single": Single(),
    "best": BestOfN(4, "rank"),
    "soft": BestOfN(4, "rank", Choose.SOFT),
    "rejecting": BestOfN(5, "rank", reject_fraction=0.4, check_every_tokens=2),
    "segments": Segments("rank", 2, 2, max_tokens=3, lookahead=2),
    "trees": Segments("rank", 2, 2, max_tokens=3, diverse=True),
    "reject": RejectSegments("rank", target=1.0, beta=0.2, min_tokens=1, max_tokens=3, max_tries=4),
    "evolution": Evolution("rank", population=4, survivors=2, period_tokens=3, rounds=2),
    "refine": Refine("rank", rounds=2),
}


@dataclass
class Watching(s.Tables):  # type: ignore[misc]
    """A context that notes which number decided what."""

    calibrating: list[Any] = field(default_factory=list)  # sequences of answers that calibrate
    decided: dict[tuple[int, int], set[Any]] = field(default_factory=lambda: defaultdict(set))

    def extend(self, op: Any) -> Any:
        reads = super().extend(op)
        tokens = tuple(op.seq.tokens)
        for i, pick in enumerate(op.picks):
            if isinstance(pick, Pick):
                read = tokens[: len(tokens) - (len(op.picks) - 1 - i)]
                self.decided[pick.key.bits, pick.position].add((op.seq.model, read, op.seq in self.calibrating))
        return reads


def watched(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Watching, list[Any]]:
    liked = s.REWARDS["liked"]()
    liked.name, liked.kind = "liked", "token"
    rank = Calibrated(liked, Drawn("base", samples=3, max_new_tokens=4, seed=options["seed"]))
    context = Watching(models, rewards={"liked": liked, "rank": rank})
    asked: list[Any] = []
    uniform = Key.uniform

    def noted(key: Key, position: int, stream: int, index: int = 0) -> float:
        asked.append((key.bits, position, stream, index))
        return uniform(key, position, stream, index)

    async def marked(own: Any, seq: Any, *others: Any) -> str:
        own.calibrating.append(seq)
        return await write(own, seq, *others)

    monkeypatch.setattr(Key, "uniform", noted)
    write = calibration._write
    monkeypatch.setattr(calibration, "_write", marked)
    s.run(models, context=context, stopping=Stopping(max_new_tokens=9, ignore_eos=True), **options)
    return context, asked


# Handing over drafts words that may be dropped; their numbers have then decided nothing, and serve again.
@pytest.mark.parametrize("policy", ["base", "nudged", "mixture", "token_reward"])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_number_decides_one_thing(search: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"search": SEARCHES[search], "policy": s.POLICIES[policy], "seed": 3, "prompt": "a b"}
    context, asked = watched(s.letters(6, 1), monkeypatch, **options)
    assert context.decided or asked
    assert not {number: texts for number, texts in context.decided.items() if len(texts) > 1}
    if search != "segments":  # whose look-ahead is the text that comes next, drawn again
        assert len(asked) == len(set(asked))


def test_lines_that_share_a_branch_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with answers that calibrate on the branches of the request's own candidates."""
    child = Key.child
    monkeypatch.setattr(Key, "child", lambda key, at, k: key if k == Line.CALIBRATION else child(key, at, k))
    context, _ = watched(s.letters(6, 0), monkeypatch, search=SEARCHES["best"], seed=0, prompt="a b")
    assert any(len(texts) > 1 for texts in context.decided.values())
