"""Four answers to a question, and the one that a reward of your own likes best."""

from trimtab.decode import BestOfN, Engine


def brief(prompt: str, text: str) -> float:
    """Closeness to ten words; any number will do, and more is better."""
    return -abs(len(text.split()) - 10)


with Engine(models={"chat": "smollm2-135m-instruct"}, rewards={"brief": brief}) as engine:
    question = [{"role": "user", "content": "Why is the sky blue?"}]
    result = engine.generate(question, search=BestOfN(4, objective="brief"), max_new_tokens=24, seed=7)
    for candidate in result.candidates:
        mark = "*" if candidate.index == result.selected else " "
        print(mark, candidate.rewards["brief"], repr(candidate.text))
