"""An asyncio program: several answers at once, one of them streamed, and one that is cancelled."""

import asyncio

from trimtab.decode import Chunk, Completed, Engine


async def streamed(engine: Engine, question: str) -> None:
    """Print an answer as it is written."""
    async for event in engine.astream(question, max_new_tokens=16, temperature=0):
        if isinstance(event, Chunk):
            print("streamed:", repr(event.text))
        elif isinstance(event, Completed):
            print("finished:", event.result.finish_reason)


async def main() -> None:
    async with Engine(models={"chat": "smollm2-135m-instruct"}) as engine:
        questions = ["The capital of France is", "The largest planet is"]
        answers = engine.agenerate(questions, max_new_tokens=8, temperature=0)
        results, _ = await asyncio.gather(answers, streamed(engine, "Once upon a time"))
        for question, result in zip(questions, results, strict=True):
            print(question, "->", result.text.strip())
        endless = engine.agenerate("Tell me everything.", max_new_tokens=2000, ignore_eos=True)
        try:
            await asyncio.wait_for(endless, timeout=0.2)
        except TimeoutError:
            print("cancelled: its rows and its pages are free again")


asyncio.run(main())
