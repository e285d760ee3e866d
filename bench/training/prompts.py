"""What the target is asked so that a draft can learn from its answers: rows of data files, and prompts of its own."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from trimtab.bench.data import prompt_of, read_rows, select
from trimtab.bench.progress import Progress
from trimtab.bench.training.instructions import beginnings, opened_user_turn
from trimtab.bench.training.rollout import Ask, Rollout, Trace
from trimtab.bench.training.shards import read_traces, write_traces
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.models.load import LoadedModel
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.text.templates import PromptTemplate

__all__ = ["answers", "asks_of_files", "own_prompts", "read_source"]

_FILE = 64  # traces in one file
_OWN_TOKENS = 64  # length limit of a prompt that the target writes
_OWN_TEMPERATURE = 0.9


def read_source(spec: str) -> tuple[str, list[str], int]:
    """Prompts of a data file given as ``PATH[@SPLIT][*TIMES][#LIMIT]`` or ``...[#FROM-TO]``.

    Args:
        spec: a JSONL file, the split to take (all rows if absent), how often each prompt is asked (by turns sampled at
            temperature 1 and greedy; default 1) and how many rows at most, or which: those after FROM, up to TO.

    Returns:
        The file's name without its ending, its prompts, and how often each is asked.

    Raises:
        InvalidRequest: the file can't be read, has no such split, or a number is not one.
    """
    rest, _, limit = spec.partition("#")
    skipped, _, last = limit.rpartition("-")
    rest, _, times = rest.partition("*")
    path, _, split = rest.partition("@")
    for name, value in (("limit", last), ("times", times)):
        if value and not (value.isdigit() and int(value)):
            raise InvalidRequest.of(f"data.{name}", value, "a whole number >= 1, as PATH[@SPLIT][*TIMES][#LIMIT]")
    if limit != last and not (skipped.isdigit() and last and int(skipped) < int(last)):
        raise InvalidRequest.of("data.limit", limit, "#LIMIT or #FROM-TO, with FROM below TO")
    rows = select(read_rows(Path(path).expanduser()), split or None, int(last) if last else None)
    return Path(path).stem, [prompt_of(row) for row in rows[int(skipped or 0) :]], int(times or 1)


def asks_of_files(
    template: PromptTemplate, sources: Iterable[tuple[str, Sequence[str], int]], seed: int, longest: int
) -> list[Ask]:
    """One ask per prompt and time, shuffled; prompts above ``longest`` tokens are left out.

    Of every prompt's times, and from prompt to prompt, sampling at temperature 1 and greedy decoding take turns: a
    draft serves both, and greedy answers alone would never show it the target's less likely turns.
    """
    found: list[tuple[tuple[int, ...], float, str]] = []
    for name, prompts, times in sources:
        for number, prompt in enumerate(prompts):
            ids = tuple(template.encode((ChatMessage("user", prompt),)))
            if len(ids) <= longest:
                found.extend((ids, float((number + time + 1) % 2), name) for time in range(times))
    random.Random(f"asks {seed}").shuffle(found)
    return [Ask(i, ids, temperature, name) for i, (ids, temperature, name) in enumerate(found)]


def own_prompts(model: LoadedModel, count: int, seed: int, folder: Path, slots: int = 64) -> list[str]:
    """User messages that a chat model wrote itself (``instructions``), without empty and repeated ones."""
    template = PromptTemplate(model.vocabulary)
    before, after = opened_user_turn(template)
    vocabulary = model.vocabulary
    stop = vocabulary.encode(after, False)[0]
    heads = beginnings(count, seed)
    prefix = [tuple(vocabulary.encode(before + head, False)) for head in heads]
    asks = [Ask(i, ids, _OWN_TEMPERATURE, "own") for i, ids in enumerate(prefix)]
    rollout = Rollout(model, slots=slots, max_new_tokens=_OWN_TOKENS, seed=seed, stop_ids=(stop,))
    cut = len(vocabulary.encode(before, False))
    texts = {}
    for trace in answers(rollout, asks, folder, "own prompts"):
        ended = int(trace.tokens[-1]) in rollout.stop_ids
        text = vocabulary.decode(trace.tokens[cut : len(trace.tokens) - ended].tolist(), skip_special_tokens=True)
        texts[trace.ask.index] = text.rstrip()
    return list(dict.fromkeys(text for _, text in sorted(texts.items()) if text.strip()))


def answers(rollout: Rollout, asks: Sequence[Ask], folder: Path, name: str, seconds: float = 1e9) -> Iterator[Trace]:
    """Traces of all asks: those that the folder has, then new ones, which are written there as they come.

    Args:
        rollout: writes them.
        asks: what is asked.
        folder: of the traces.
        name: of the work, in lines of progress.
        seconds: no file is begun after this time; a later call goes on.

    Raises:
        InvalidRequest: the folder holds answers to other prompts.
    """
    wanted = {ask.index: ask for ask in asks}
    done: set[int] = set()
    for trace in read_traces(folder):
        ask = wanted.get(trace.ask.index)
        if ask != trace.ask:
            accepted = "a folder of answers to the same prompts, or an empty one"
            raise InvalidRequest.of("out", str(folder), accepted)
        done.add(trace.ask.index)
        yield trace
    left = [ask for ask in asks if ask.index not in done]
    begun = time.monotonic()
    if not left or seconds <= 0:
        return
    traces = rollout.run(left)
    with Progress(name, len(asks), len(done), "answer") as progress:
        while ready := list(itertools.islice(traces, _FILE)):
            write_traces(folder, ready)
            yield from ready
            progress.add(sum(len(trace.starts) - 1 for trace in ready), len(ready))
            if time.monotonic() - begun > seconds:
                return
