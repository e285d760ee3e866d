"""Reward models that the engine doesn't run: they read the whole text every time, in a thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from trimtab.decode.quiet import quiet
from trimtab.decode.rewards.base import LocalReward, Sample, spoken, turns, well_formed
from trimtab.decode.rewards.fitting import fitted
from trimtab.decode.rewards.options import OptionError, choice, text, whole
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
        partial: how a beginning of an answer is read from messages: ``closed`` as if the answer ended there, ``open``
            without the end of the turn. A pair and an answer have no such end.
        template: Jinja template of messages in place of the tokenizer's own.

    Where prompt and answer are longer than the model takes, the prompt's beginning is left out; the answer is always
    read whole, and one that doesn't fit alone is refused with a ValueError.

    Raises:
        OptionError: no such model can be read.
    """

    kind = "prefix"
    timeout = 120.0

    def __init__(
        self,
        source: str,
        read: Reading,
        *,
        reads: str = "auto",
        batch: int = 16,
        dtype: str = "auto",
        partial: str = "closed",
        template: str | None = None,
    ) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.read, self.batch = read, whole("batch", batch, 1)
        try:
            with quiet(source):
                self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
                self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                    source, dtype=torch.float32 if dtype == "auto" else getattr(torch, dtype)
                )
        except (OSError, ValueError) as error:
            said = str(error).strip().partition("\n")[0]
            raise OptionError("source", source, f"a sequence-classification model ({said})") from error
        self._model = self._model.eval().requires_grad_(False)
        if template is not None:
            self._tokenizer.chat_template = text("template", template)
        chat = bool(getattr(self._tokenizer, "chat_template", None))
        self.reads = choice("reads", reads, ("auto", "pair", "answer", "chat"))
        if self.reads == "auto":
            self.reads = "chat" if chat else "pair"
        if self.reads == "chat" and not chat:
            raise OptionError("reads", reads, "pair or answer: the tokenizer has no chat template")
        self.reads_prompt = self.reads != "answer"
        if template is not None and self.reads != "chat":
            raise OptionError("template", template, "no template where pairs or answers are read (reads)")
        self.partial = choice("partial", partial, ("closed", "open"))
        if partial == "open" and self.reads != "chat":
            raise OptionError("partial", partial, "closed where pairs or answers are read: they have no end of a turn")
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
            self._model.config.pad_token_id = self._tokenizer.pad_token_id
        self._tokenizer.truncation_side = "left"
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
            read = self._tokenizer.pad([self._ids(sample) for sample in samples], return_tensors="pt")
            outputs: list[list[float]] = self._model(**read).logits.float().tolist()
            return outputs

    def _ids(self, sample: Sample) -> Any:
        """What the model is given of one sample, at most ``self._limit`` tokens."""
        if self.reads == "chat":
            return self._chat(sample)
        prompt = [spoken(sample.prompt)] if self.reads == "pair" else []
        read = self._read(*prompt, sample.text)
        if len(read["input_ids"]) > self._limit:
            own = self._tokenizer.num_special_tokens_to_add(pair=bool(prompt))
            answer = len(self._read(sample.text, add_special_tokens=False)["input_ids"])
            fitted((), answer, self._limit - own)
            if answer == self._limit - own:
                return self._read(*([""] * len(prompt)), sample.text)
            # The tokenizer cuts the first of the two, from the left: it knows which special tokens belong to which.
            read = self._read(*prompt, sample.text, truncation="only_first", max_length=self._limit)
        return read

    def _chat(self, sample: Sample) -> Any:
        said: list[dict[str, str]] = [{"role": turn.role, "content": turn.content} for turn in turns(sample.prompt)]
        asked: str = self._tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        said.append({"role": "assistant", "content": sample.text})
        whole: str = self._tokenizer.apply_chat_template(said, tokenize=False)
        if self.partial == "open" and not sample.finished:
            at = whole.rfind(sample.text) if sample.text else -1
            whole = asked + sample.text if at < 0 else whole[: at + len(sample.text)]
        read = self._read(whole, add_special_tokens=False)  # the template writes them itself
        ids = read["input_ids"]
        if len(ids) <= self._limit:
            return read
        shared = len(asked) if whole.startswith(asked) else whole.rfind(sample.text)
        answer = len(self._read(whole[shared:], add_special_tokens=False)["input_ids"])
        keep = int(ids[0] in self._tokenizer.all_special_ids)
        cut = fitted(ids[: len(ids) - answer], answer, self._limit, keep) + ids[len(ids) - answer :]
        return {"input_ids": cut, "attention_mask": [1] * len(cut)}

    def _read(self, *texts: str, **options: Any) -> Any:
        return self._tokenizer(*map(well_formed, texts), verbose=False, **options)
