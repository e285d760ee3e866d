"""Methods of another package, which ``pip install examples/plugins`` has added: a search and a policy."""

from trimtab_extras.first_good import FirstGood
from trimtab_extras.no_repeat import NoRepeat

from trimtab.decode import Engine
from trimtab.decode.extending import methods


def short(prompt: str, text: str) -> float:
    """Minus the words."""
    return -len(text.split())


print("policies:", *methods("policy"))
print("searches:", *methods("search"))
with Engine(models={"chat": "smollm2-135m-instruct"}, rewards={"short": short}) as engine:
    search = FirstGood("short", threshold=-12, tries=3)
    result = engine.generate("A short proverb:", policy=NoRepeat(3), search=search, max_new_tokens=16, seed=1)
    print(len(result.candidates), "tries:", repr(result.text), "abstained" if result.abstained else "good enough")
