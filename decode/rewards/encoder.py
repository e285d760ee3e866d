"""Reward models that the engine doesn't run: they read the whole text every time, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from trimtab.decode.rewards.base import LocalReward, Sample, spoken, turns
from trimtab.decode.rewards.options import OptionError, choice, whole
from trimtab.decode.rewards.readings import Reading

__all__ = ["Encoder"]


class Encoder(LocalReward):
    """A sequence-classification model of any architecture; answers are padded into batches of like length.

    Args:
        source: a folder or a hub id.
        read: how its outputs become one number.
        reads: ``pair``, ``answer``, ``chat`` or ``auto``; see ``classifier.classifier``.
        batch: texts at a time.
        dtype: of the weights.

    What is longer than the model takes is cut: of a pair the longer part first.

    Raises:
        OptionError: no such model can be read.
    """

    kind = "prefix"
    timeout = 120.0

    def __init__(
        self, source: str, read: Reading, *, reads: str = "auto", batch: int = 16, dtype: str = "auto"
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.read, self.batch = read, whole("batch", batch, 1)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
            self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                source, dtype=torch.float32 if dtype == "auto" else getattr(torch, dtype)
            )
        except (OSError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            raise OptionError("source", source, f"a sequence-classification model ({said})") from error
        self._model = self._model.eval().requires_grad_(False)
        chat = bool(getattr(self._tokenizer, "chat_template", None))
        self.reads = choice("reads", reads, ("auto", "pair", "answer", "chat"))
        if self.reads == "auto":
            self.reads = "chat" if chat else "pair"
        if self.reads == "chat" and not chat:
            raise OptionError("reads", reads, "pair or answer: the tokenizer has no chat template")
        self.reads_prompt = self.reads != "answer"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        positions = int(getattr(self._model.config, "max_position_embeddings", 512))
        self._limit = min(positions, int(self._tokenizer.model_max_length))
        self._lock = threading.Lock()  # a tokenizer changes its padding while it works
        self.description = f"reward model {source.rstrip('/').rpartition('/')[2]}"

    def rate(self, samples: Sequence[Sample]) -> Sequence[float]:
        order = sorted(range(len(samples)), key=lambda i: len(samples[i].text))
        found = [0.0] * len(samples)
        with self._lock:
            for start in range(0, len(order), self.batch):
                part = order[start : start + self.batch]
                for i, outputs in zip(part, self._outputs([samples[i] for i in part]), strict=True):
                    found[i] = self.read(outputs)
        return found

    def _outputs(self, samples: Sequence[Sample]) -> list[list[float]]:
        import torch

        with torch.inference_mode():
            read = self._tokenizer(
                *self._texts(samples),
                padding=True,
                truncation=True,
                max_length=self._limit,
                return_tensors="pt",
                add_special_tokens=self.reads != "chat",  # a chat template writes them itself
            )
            outputs: list[list[float]] = self._model(**read).logits.float().tolist()
            return outputs

    def _texts(self, samples: Sequence[Sample]) -> tuple[list[str], ...]:
        answers = [sample.text for sample in samples]
        match self.reads:
            case "answer":
                return (answers,)
            case "pair":
                return [spoken(sample.prompt) for sample in samples], answers
            case _:
                return ([self._chat(sample) for sample in samples],)

    def _chat(self, sample: Sample) -> str:
        said = [{"role": turn.role, "content": turn.content} for turn in turns(sample.prompt)]
        said.append({"role": "assistant", "content": sample.text})
        rendered: str = self._tokenizer.apply_chat_template(said, tokenize=False)
        return rendered
