"""What is timed: a batch of prompts, as token ids, continued greedily by a fixed number of tokens each."""

from __future__ import annotations

import multiprocessing
import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers.generation.streamers import BaseStreamer

from trimtab.decode.request.events import Completed, Event
from trimtab.decode.request.request import Request
from trimtab.decode.request.sampling import Sampling, Stopping

if TYPE_CHECKING:
    from pathlib import Path

    from trimtab.decode.engine.engine import Engine

__all__ = ["Apart", "Batch", "Contestant", "Transformers", "Trimtab"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One timed batch. Times are seconds since the prompts were handed over.

    Attributes:
        tokens: what was written, per prompt.
        first: when the first token was there, per prompt.
        end: when all tokens were.
        written_before: tokens that were there at ``max(first)``.
    """

    tokens: list[list[int]]
    first: list[float]
    end: float
    written_before: int

    @property
    def count(self) -> int:
        return sum(map(len, self.tokens))

    @property
    def rate(self) -> float:
        """Tokens per second, end to end."""
        return self.count / self.end

    @property
    def mean_first(self) -> float:
        """Seconds to the first token, mean over prompts."""
        return sum(self.first) / len(self.first)

    @property
    def decode_rate(self) -> float:
        """Tokens per second after every prompt had its first token."""
        return (self.count - self.written_before) / (self.end - max(self.first))


class Contestant(Protocol):
    """Something that continues prompts."""

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        """Write exactly ``new_tokens`` tokens, at least 2, after each prompt."""
        ...


class Trimtab:
    """This project's engine; all prompts are submitted at once.

    Args:
        engine: already loaded.
        model: name of the model in it.
    """

    def __init__(self, engine: Engine, model: str) -> None:
        self._engine, self._model = engine, model

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        seen: queue.SimpleQueue[tuple[float, int, Event | Exception]] = queue.SimpleQueue()

        def submit(index: int, prompt: Sequence[int]) -> None:
            request = Request(
                model=self._model,
                prompt=list(prompt),
                sampling=Sampling(temperature=0.0, seed=0),
                stopping=Stopping(max_new_tokens=new_tokens, min_new_tokens=new_tokens),
            )
            self._engine.submit(request, lambda event: seen.put((time.perf_counter(), index, event)))

        started = time.perf_counter()
        for index, prompt in enumerate(prompts):
            submit(index, prompt)
        times: list[list[float]] = [[] for _ in prompts]
        tokens: list[list[int]] = [[] for _ in prompts]
        ended = 0
        end = started
        while ended < len(prompts):
            moment, index, event = seen.get()
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Completed):
                ended, end = ended + 1, max(end, moment)
                tokens[index] = [token.id for token in event.result.tokens]
            else:
                times[index] += [moment] * len(getattr(event, "tokens", ()))
        first = [row[0] - started for row in times]
        before = sum(moment - started <= max(first) for row in times for moment in row)
        return Batch(tokens, first, end - started, before)


class Transformers:
    """``generate`` of transformers on one padded batch, with its default (SDPA) attention.

    Args:
        source: folder or hub id of the model.
        dtype: of its weights.
        device: where it runs.
    """

    def __init__(self, source: str | Path, dtype: torch.dtype, device: str) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        self._model = model.eval().to(device)
        eos = self._model.generation_config.eos_token_id
        self._pad = eos[0] if isinstance(eos, list) else eos

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        clock = _Clock()
        started = time.perf_counter()
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), self._pad or 0, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # a decoder continues the right edge, so the padding is on the left
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        device = self._model.device
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=self._pad,
                streamer=clock,
            )
        written = out[:, width:].tolist()
        end = time.perf_counter() - started
        first = clock.first - started
        return Batch(written, [first] * len(prompts), end, len(prompts))


class Apart:
    """A contestant in a process of its own, so that the OpenMP workers of one never hold back the other's.

    Args:
        make: makes the contestant there; must be picklable.
        threads: of torch in that process; None leaves its own setting.
    """

    def __init__(self, make: Callable[[], Contestant], threads: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, threads), daemon=True)
        self._process.start()
        theirs.close()  # held by the process alone, so that its end is seen as the end of the pipe
        self._answer()

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> Batch:
        with suppress(OSError):  # what became of the process is said where its answer is read
            self._pipe.send((prompts, new_tokens))
        batch = self._answer()
        assert isinstance(batch, Batch)
        return batch

    def close(self) -> None:
        """Let the process end; it is killed if it doesn't within ten seconds. Idempotent."""
        with suppress(OSError):  # it has ended already
            self._pipe.send(None)
        self._process.join(timeout=10)
        self._process.kill()
        self._process.join()

    def _answer(self) -> Batch | None:
        try:
            answer: Batch | Exception | None = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=10)
            raise RuntimeError(f"the process of a contestant ended with status {self._process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return answer


def _serve(pipe: Any, make: Callable[[], Contestant], threads: int | None) -> None:
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        contestant = make()
        pipe.send(None)
        while (work := pipe.recv()) is not None:
            pipe.send(contestant.run(*work))
    except Exception as error:
        pipe.send(error)


class _Clock(BaseStreamer):
    """Notes when the first token arrives; the call before it brings the prompt."""

    def __init__(self) -> None:
        self.calls, self.first = 0, 0.0

    def put(self, value: torch.Tensor) -> None:
        self.calls += 1
        if self.calls == 2:
            self.first = time.perf_counter()

    def end(self) -> None:
        pass
