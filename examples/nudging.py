"""A base model writes; where it is unsure, a small aligned model of another family writes the word for it."""

from trimtab.decode import Engine, Entropy, Nudged

with Engine(models={"base": "gemma-3-270m", "chat": "smollm2-135m-instruct"}) as engine:
    question = [{"role": "user", "content": "Give me three tips for staying healthy."}]
    plain = engine.generate(question, model="base", temperature=0, max_new_tokens=24)
    policy = Nudged("chat", when=Entropy(above=1.5))
    nudged = engine.generate(question, model="base", policy=policy, temperature=0, max_new_tokens=24)
    print("alone: ", plain.text.strip())
    print("nudged:", nudged.text.strip())
    print("written by:", ", ".join(dict.fromkeys(token.author for token in nudged.tokens)))
    print(f"nudged tokens: {nudged.usage.nudged_tokens} of {nudged.usage.returned_tokens}")
