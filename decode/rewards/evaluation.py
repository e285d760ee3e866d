"""One call of one reward, checked. Whatever it does wrong becomes ``RewardFailed``, which names it."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

from trimtab.decode.errors import EngineClosed, EngineFailed, RequestCancelled, RewardFailed
from trimtab.decode.ops import Call, Context
from trimtab.decode.rewards.base import EngineReward, LocalReward, PairwiseReward, Reward, Sample, whole

__all__ = ["LARGEST", "evaluate", "evaluate_pairs"]

# In size, of one rating: sums and squares of some, times the largest weights that a request may give, are still finite.
LARGEST = 1e30

_NOT_THE_REWARDS = (RewardFailed, RequestCancelled, EngineClosed, EngineFailed)


async def evaluate(context: Context, reward: Reward, samples: Sequence[Sample]) -> list[float]:
    """What one reward says of the samples, checked.

    Raises:
        RewardFailed: see ``rate``.
    """
    if not samples:
        return []
    if reward.needs_reference and not all(sample.references for sample in samples):
        raise RewardFailed(reward.name, "it compares with reference answers, and the request has no references")
    try:
        if isinstance(reward, EngineReward):
            values = await reward.rate(context, samples)
        else:
            assert isinstance(reward, LocalReward)
            assert reward.runs_on != "engine"
            values = await Call(*reward.work(tuple(map(whole, samples))), reward.runs_on, reward.timeout)
    except Exception as error:
        raise _failure(reward, error) from error
    return _checked(reward, values, len(samples))


async def evaluate_pairs(
    context: Context, reward: PairwiseReward, pairs: Sequence[tuple[Sample, Sample]]
) -> list[float]:
    """What a pairwise reward says: per pair the probability that the first is better.

    Raises:
        RewardFailed: as ``evaluate``, or a number outside [0, 1].
    """
    try:
        odds = await reward.compare(context, pairs)
    except Exception as error:
        raise _failure(reward, error) from error
    checked = _checked(reward, odds, len(pairs))
    if wrong := [p for p in checked if not 0 <= p <= 1]:
        raise RewardFailed(reward.name, f"it gave {wrong[0]!r} for a probability")
    return checked


def _failure(reward: Reward, error: Exception) -> Exception:
    if isinstance(error, _NOT_THE_REWARDS):
        return error
    if isinstance(error, TimeoutError):
        return RewardFailed(reward.name, f"it took longer than its limit of {reward.timeout:g} s", timed_out=True)
    said = str(error).strip()
    return RewardFailed(reward.name, f"it raised {type(error).__name__}" + (f": {said[:500]}" if said else ""))


def _checked(reward: Reward, values: object, count: int) -> list[float]:
    try:
        found = list(values)  # type: ignore[call-overload]  # whatever a user's function returned
    except TypeError:
        raise RewardFailed(reward.name, f"it gave {_shown(values)} in place of {count} numbers") from None
    if len(found) != count:
        raise RewardFailed(reward.name, f"it gave {len(found)} numbers for {count} samples")
    for i, value in enumerate(found):
        if not _is_rating(value):
            accepted = f"numbers in [-{LARGEST:g}, {LARGEST:g}]"
            raise RewardFailed(reward.name, f"it gave {_shown(value)} for sample {i}; accepted: {accepted}")
    return [float(value) for value in found]


def _is_rating(value: object) -> bool:
    try:
        return isinstance(value, Real) and abs(float(value)) <= LARGEST
    except OverflowError:  # an integer beyond the range of floats
        return False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
