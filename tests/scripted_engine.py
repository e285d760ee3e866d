"""An engine without a model, for tests of the server: the same interface, and every step under control.

Its answers are a function of the request: pieces of a fixed text that cut characters in two, written by the two models
in turn. One thread decodes; a *tick* gives every running request one token, after the ticks of its prefill.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.decode.errors import EngineClosed, NotFound, Overloaded, RequestCancelled
from trimtab.decode.methods.policies.nudged import Nudged
from trimtab.decode.request.events import (
    Chunk,
    Completed,
    Event,
    Started,
)
from trimtab.decode.request.info import Limits, ModelInfo, RewardInfo
from trimtab.decode.request.prompt import Prompt
from trimtab.decode.request.request import Request
from trimtab.decode.request.result import (
    Candidate,
    FinishReason,
    ModelUsage,
    Result,
    Scored,
    Token,
    TokenDraw,
    TopLogprob,
    Usage,
)
from trimtab.decode.request.validate import validate
from trimtab.decode.text.detokenizer import Detokenizer

TEXT = "Größe naïve 日本語 🙂 — plain words, and ends. "  # characters of one to four bytes
VOCAB = 300


def pieces(request: Request, seed: int) -> list[bytes]:
    """The tokens of an answer: all of ``max_new_tokens``. At temperature 0 they do not depend on the seed."""
    greedy = request.sampling.temperature == 0
    draw = random.Random(f"{request.model}|{request.prompt!r}|{'greedy' if greedy else seed}")
    data = TEXT.encode() * (request.stopping.max_new_tokens * 5 // len(TEXT.encode()) + 2)
    start = draw.randrange(8)
    cut = []
    for _ in range(request.stopping.max_new_tokens):
        end = start + draw.randint(1, 5)
        cut.append(data[start:end])
        start = end
    return cut


def text_of(prompt: Any) -> str:
    """What a prompt says: a text, or messages."""
    return prompt if isinstance(prompt, str) else "".join(message.content for message in prompt)


def expected_text(request: Request, seed: int) -> str:
    """The text of an answer, made at once: what any stream of it must concatenate to."""
    detokenizer = Detokenizer(request.stopping.stop, include_stop=request.stopping.include_stop)
    text = []
    for piece in pieces(request, seed):
        text.append(detokenizer.feed(piece))
        if detokenizer.finished:
            return "".join(text)
    return "".join(text) + detokenizer.finish()


@dataclass(eq=False)
class ScriptedJob:
    request: Request
    on_event: Callable[[Event | Exception], None]
    seed: int
    number: int
    tokens: Iterator[bytes]
    detokenizer: Detokenizer
    prefill_left: int
    began: float = field(default_factory=time.monotonic)
    written: list[Token] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    state: str = "queued"
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.cancelled.set()


class ScriptedEngine:
    """
    Args:
        tick: seconds between ticks.
        prefill_ticks: ticks before a request's first token.
        max_running: further requests wait in the queue.
        limits: ``max_queue`` bounds the queue.
    """

    def __init__(
        self,
        *,
        tick: float = 0.0005,
        prefill_ticks: int = 1,
        max_running: int = 8,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.models = {
            name: ModelInfo(
                name=name,
                role=role,
                source=f"scripted-{name}",
                architecture="Scripted",
                dtype="float32",
                device="cpu",
                max_context_tokens=4096,
                vocab_size=VOCAB,
                eos_token_ids=(0,),
                nudge_models=("chat",) if name == "base" else (),
            )
            for name, role in (("base", "base"), ("chat", "aligned"))
        }
        self.rewards = {
            info.name: info
            for info in (
                RewardInfo(name="helpful", kind="prefix", description="made up", models=("chat",)),
                RewardInfo(name="whole", kind="sequence", needs_reference=True),
                RewardInfo(name="versus", kind="sequence", pairwise=True),
            )
        }
        self.score_failure: Exception | None = None
        self.tick, self.prefill_ticks, self.max_running = tick, prefill_ticks, max_running
        self.submitted = 0  # calls of submit that were accepted
        self.forward_passes = 0  # ticks in which some request was running
        self.jobs: list[ScriptedJob] = []  # every accepted one, in order
        self.submit_failure: Exception | None = None
        self.step_failure: Exception | None = None
        self.tokenize_seconds = 0.0
        self.failure: Exception | None = None
        self.paused = threading.Event()
        self._waiting: deque[ScriptedJob] = deque()
        self._running: list[ScriptedJob] = []
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._decode, name="scripted-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> ScriptedEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self._thread.join()

    # ------------------------------------------------------------------------------------------------- the interface

    def submit(self, request: Request, on_event: Callable[[Event | Exception], None]) -> ScriptedJob:
        if self.submit_failure is not None:
            raise self.submit_failure
        if self._closed:
            raise EngineClosed("the engine is closed")
        validate(request, self.models, self.limits, self.rewards, self.same_ids)
        time.sleep(self.tokenize_seconds)
        with self._lock:
            if len(self._waiting) >= self.limits.max_queue:
                raise Overloaded(f"{len(self._waiting)} requests are waiting already", retry_after=2.5)
            self.submitted += 1
            seed = request.sampling.seed
            seed = random.getrandbits(32) if seed is None else seed
            job = ScriptedJob(
                request,
                on_event,
                seed,
                self.submitted,
                iter(pieces(request, seed)),
                Detokenizer(request.stopping.stop, include_stop=request.stopping.include_stop),
                self.prefill_ticks,
            )
            self.jobs.append(job)
            self._waiting.append(job)
        return job

    async def astream_request(self, request: Request) -> AsyncIterator[Event]:
        loop = asyncio.get_running_loop()
        buffer: deque[Event | Exception] = deque()
        ready = asyncio.Event()

        def on_event(event: Event | Exception) -> None:
            buffer.append(event)
            if len(buffer) == 1:
                loop.call_soon_threadsafe(ready.set)

        submitting = asyncio.ensure_future(asyncio.to_thread(self.submit, request, on_event))
        try:
            await asyncio.shield(submitting)
            while True:
                await ready.wait()
                ready.clear()
                while buffer:
                    event = buffer.popleft()
                    if isinstance(event, Exception):
                        raise event
                    yield event
                    if isinstance(event, Completed):
                        return
        finally:
            submitting.add_done_callback(lambda done: done.exception() or done.result().cancel())

    def same_ids(self, a: str, b: str) -> bool:
        return a == b

    def score(
        self, items: Sequence[tuple[Prompt, str]], *, reward: str | None = None, model: str | None = None
    ) -> list[Scored]:
        """By a reward the characters of prompt and answer; by a model one token per byte of the answer."""
        if self.score_failure is not None:
            raise self.score_failure
        if model is None:
            return [Scored(float(len(text_of(prompt) + answer))) for prompt, answer in items]
        made = [
            tuple(Token(b + 3, bytes([b]), model, TokenDraw.FORCED, -0.5, 1.0, 0.5) for b in answer.encode())
            for _, answer in items
        ]
        return [Scored(-0.5 * len(one), len(one), one) for one in made]

    async def ascore(
        self, items: Sequence[tuple[Prompt, str]], *, reward: str | None = None, model: str | None = None
    ) -> list[Scored]:
        return await asyncio.to_thread(self.score, items, reward=reward, model=model)

    def tokenize(self, model: str, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[int]]:
        if model not in self.models:
            raise NotFound("model", model, sorted(self.models))
        data = text.encode()
        return [1] * add_special_tokens + [b + 3 for b in data], [0] * add_special_tokens + list(range(len(data)))

    def detokenize(self, model: str, ids: list[int], skip_special_tokens: bool = False) -> bytes:
        special = b"" if skip_special_tokens else b"<s>"
        return b"".join(special if i < 3 else bytes([i - 3]) for i in ids)

    def idle(self) -> bool:
        """Whether no request holds anything."""
        with self._lock:
            return not self._waiting and not self._running

    def wait_idle(self, seconds: float = 5.0) -> bool:
        deadline = time.monotonic() + seconds
        while not self.idle() and time.monotonic() < deadline:
            time.sleep(0.002)
        return self.idle()

    # --------------------------------------------------------------------------------------------------- its thread

    def _decode(self) -> None:
        while not self._closed:
            time.sleep(self.tick)
            with self._lock:
                cancelled = [j for j in (*self._waiting, *self._running) if j.cancelled.is_set()]
                for job in cancelled:
                    (self._waiting if job in self._waiting else self._running).remove(job)
                    job.state = "cancelled"
                if self.paused.is_set():
                    running = []
                else:
                    while self._waiting and len(self._running) < self.max_running:
                        self._running.append(self._waiting.popleft())
                        self._running[-1].state = "prefill"
                    running = list(self._running)
            for job in cancelled:
                job.on_event(RequestCancelled("cancelled"))
            self.forward_passes += bool(running)
            for job in running:
                if not self._step(job):
                    with self._lock:
                        self._running.remove(job)
        for job in (*self._waiting, *self._running):
            job.on_event(EngineClosed("the engine is closing"))

    def _step(self, job: ScriptedJob) -> bool:
        """One token of a job; False when it is done."""
        if self.step_failure is not None:
            job.state = "failed"
            job.on_event(self.step_failure)
            return False
        if job.prefill_left:
            job.prefill_left -= 1
            return True
        if job.state == "prefill":
            job.state = "decoding"
            job.on_event(
                Started(f"g{job.number}", self._authors(job), 3, job.seed, job.request.stopping.max_new_tokens)
            )
        piece = next(job.tokens, None)
        if piece is None:
            self._complete(job, job.detokenizer.finish(), (), FinishReason.MAX_NEW_TOKENS)
            return False
        token = self._token(job, piece)
        text = job.detokenizer.feed(piece)
        if job.detokenizer.finished:
            self._complete(job, text, (token,), FinishReason.STOP)
            return False
        job.text.append(text)
        job.written.append(token)
        job.on_event(Chunk(0, text, (token,)))
        return True

    def _authors(self, job: ScriptedJob) -> tuple[str, ...]:
        policy = job.request.policy
        return (job.request.model, policy.nudger) if isinstance(policy, Nudged) else (job.request.model,)

    def _token(self, job: ScriptedJob, piece: bytes) -> Token:
        authors = self._authors(job)
        index = len(job.written)
        top = tuple(TopLogprob(i, bytes([65 + i]), -0.5 - i) for i in range(job.request.top_logprobs))
        return Token(
            id=sum(piece) % VOCAB,
            piece=piece,
            author=authors[index // 3 % len(authors)],
            logprob=-0.25 * (index % 4),
            entropy=0.5 * (index % 5),
            top_prob=0.75,
            top=top,
        )

    def _complete(self, job: ScriptedJob, text: str, tokens: tuple[Token, ...], reason: FinishReason) -> None:
        if text or tokens:
            job.on_event(Chunk(0, text, tokens))
        job.text.append(text)
        job.written.extend(tokens)
        match = job.detokenizer.match
        candidate = Candidate(
            0, "".join(job.text), tuple(job.written), reason, stop_match=match.stop if match else None
        )
        authors = self._authors(job)
        job.state = "done"
        job.on_event(
            Completed(
                Result(
                    model=job.request.model,
                    models=authors,
                    candidates=(candidate,),
                    usage=Usage(
                        prompt_tokens=3,
                        returned_tokens=len(job.written),
                        generated_tokens=len(job.written),
                        nudged_tokens=sum(t.author != job.request.model for t in job.written),
                        models=tuple(ModelUsage(name, 1, 2, 3) for name in authors),
                        total_time=time.monotonic() - job.began,
                    ),
                    seed=job.seed,
                )
            )
        )


# A server on a free port for clients in other processes. Its argument is the tick; it prints its address.
if __name__ == "__main__":
    from trimtab.server.rpc.background import BackgroundServer

    with BackgroundServer(lambda: ScriptedEngine(tick=float(sys.argv[1]))) as server:
        sys.stdout.write(server.address + "\n")
        sys.stdout.flush()
        sys.stdin.read()
