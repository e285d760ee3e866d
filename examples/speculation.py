"""The same greedy answer twice: token by token, and with a draft's tokens verified several at a time."""

from trimtab.decode import Engine, ModelConfig, PromptLookup, Speculative

models = {
    "chat": ModelConfig(source="smollm2-135m-instruct", dtype="float32"),
    "draft": ModelConfig(source="smollm2-135m-draft", role="draft", dtype="float32"),
}
with Engine(models=models) as engine:
    question = [{"role": "user", "content": "Count from one to twenty in words."}]
    draws = {"plain": None, "draft": Speculative("draft"), "copies": Speculative(PromptLookup())}
    texts = set()
    for name, draw in draws.items():
        result = engine.generate(question, temperature=0, max_new_tokens=32, draw=draw)
        texts.add(result.text)
        passes = next(used.forward_passes for used in result.usage.models if used.model == "chat")
        print(f"{name}: {result.usage.returned_tokens} tokens in {passes} passes of the model")
    print("one and the same answer:", len(texts) == 1)
