"""From a target to a draft that can be loaded: prompts, answers, training, evaluation, and the same for its head.

Everything is kept in one folder, and every stage goes on where it was cut short::

    prompts/ answers/ held_out/   the target's texts with its probabilities
    draft-run/ head-run/          checkpoint and curve
    draft/                        the result; ``source = "FOLDER/draft"`` loads it
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from trimtab.bench.record import Recorder
from trimtab.bench.training.corpus import Corpus, choose_ids
from trimtab.bench.training.draft import DraftRun, evaluate, train_draft
from trimtab.bench.training.head import (
    LABELS,
    Features,
    HeadRun,
    Reads,
    cumulated,
    features,
    predict,
    reliability,
    score,
    train_head,
)
from trimtab.bench.training.loop import Settings, plot_curve
from trimtab.bench.training.losses import Loss
from trimtab.bench.training.prompts import answers, asks_of_files, own_prompts, read_source
from trimtab.bench.training.rollout import Rollout, Trace
from trimtab.bench.training.shards import read_traces
from trimtab.bench.weights import quantised
from trimtab.decode.config import ModelConfig
from trimtab.decode.errors import InvalidRequest, TrimtabError
from trimtab.decode.models.draft import DraftSpec, read_draft, write_draft
from trimtab.decode.models.load import load
from trimtab.decode.models.sources import resolve
from trimtab.decode.text.templates import PromptTemplate
from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["DraftOptions", "HeadOptions", "make_draft", "make_head"]

_HELD_OUT_TOKENS = 96
_HELD_OUT_PROMPT = 1024  # longest held-out prompt: the figures should leave few prompts out
_RESERVED = 8  # one prompt in so many is kept from the draft, for its head

_Source = tuple[str, Sequence[str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOptions:
    """What ``trimtab bench train-draft`` does.

    Attributes:
        target: a bundled name, a folder or a hub id.
        out: the folder of the work and its result.
        data: prompts, ``PATH[@SPLIT][*TIMES][#LIMIT]`` each.
        held_out: the same, of prompts to evaluate on.
        own_prompts: how many beginnings of prompts the target itself continues; each is asked twice.
        more: folders of other runs whose texts are learned from, too.
        answer_tokens: length limit of an answer.
        prompt_tokens: longer prompts are left out.
        slots: answers written at a time.
        answer_seconds: time limit for writing answers; the training then takes what there is.
        layers: of the target, that the draft starts from.
        ids: tokens that the draft can propose.
        loss, warm_steps: see ``DraftRun``.
        steps, batch_tokens, learning_rate, weight_decay, seed: see ``Settings`` and ``Corpus``.
        stop_after: leave the training after so many steps, to go on later.
        start: folder of a draft to start from, in place of the target's layers.
        dtype: of the products.
        quick: whether this is a smoke run.
    """

    target: str
    out: Path
    data: Sequence[str] = ()
    held_out: Sequence[str] = ()
    own_prompts: int = 0
    more: tuple[Path, ...] = ()
    answer_tokens: int = 160
    prompt_tokens: int = 768
    slots: int = 64
    answer_seconds: float = 1e9
    layers: tuple[int, ...] = (0, 1)
    ids: int = 8192
    loss: Loss = "nla"
    warm_steps: int = 100
    steps: int = 2000
    batch_tokens: int = 4096
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0
    stop_after: int | None = None
    start: Path | None = None
    dtype: str = "auto"
    quick: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOptions:
    """What ``trimtab bench train-head`` does.

    Attributes:
        out: the folder that ``train-draft`` worked in.
        more: folders of other runs whose reserved texts are learned from, too.
        blocks, width, labels, reject_weight: of the head that is kept, see ``HeadRun``.
        steps, learning_rate, seed: see ``Settings``.
        compare: also train the other kinds of head and record how they do.
        quick: as for a draft.
    """

    out: Path
    more: tuple[Path, ...] = ()
    blocks: int = 2
    width: int = 192
    labels: Any = "analytic"
    reject_weight: float = 1.0
    steps: int = 300
    learning_rate: float = 1e-3
    seed: int = 0
    compare: bool = False
    quick: bool = False


def make_draft(options: DraftOptions) -> Recorder:
    """Write answers, train a draft on them, and write its folder ``out/draft``; what exists already is taken.

    Raises:
        InvalidRequest: an option, a data file or what the folder holds; names it.
        UnsupportedModel: no draft can be cut from the target.
    """
    if not options.data and not options.own_prompts:
        raise InvalidRequest.of("data", list(options.data), "prompts: --data FILE, --own-prompts N or both")
    out = options.out
    _write_answers(options)
    traces: list[Trace] = []
    for folder in (out, *options.more):
        traces += (trace for trace in _texts(folder, "answers") if not _reserved(trace))
        traces += _texts(folder, "prompts")  # those that the target wrote are its texts as well
    source = resolve(options.target)
    vocabulary = Vocabulary.from_pretrained(source)
    target = _eager(source)
    vocab_size = int(target.config.vocab_size)
    ids = choose_ids(traces, vocabulary, vocab_size, options.ids)
    corpus = Corpus(traces, ids, vocab_size, options.batch_tokens, options.seed)
    held_out = _held_out(out, ids, vocab_size)
    dtype = _dtype(options.dtype)
    settings = Settings(
        steps=options.steps,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        seed=options.seed,
        evaluate_every=max(1, min(500, options.steps)),
    )
    run = DraftRun(
        layers=options.layers, loss=options.loss, warm_steps=options.warm_steps, dtype=dtype, settings=settings
    )
    _say(f"training on {corpus.answer_tokens} tokens of {len(corpus.examples)} texts")
    draft = train_draft(
        target,
        ids,
        run,
        corpus,
        held_out,
        out / "draft-run",
        stop_after=options.stop_after,
        start=_weights(options.start, options.layers),
    )
    spec = DraftSpec(
        target=options.target, layers=options.layers, vocab_size=vocab_size, hidden_size=int(target.config.hidden_size)
    )
    write_draft(out / "draft", spec, ids, draft.state_dict())
    _plot(out / "draft-run", ("loss", "acceptance", "agreement"))
    made = {
        "target": options.target,
        "layers": list(options.layers),
        "ids": len(ids),
        "start": "" if options.start is None else options.start.name,
        "loss": options.loss,
        "warm_steps": options.warm_steps,
        "steps": options.steps,
        "batch_tokens": options.batch_tokens,
        "learning_rate": options.learning_rate,
        "weight_decay": options.weight_decay,
        "texts": len(corpus.examples),
        "answer_tokens": corpus.answer_tokens,
        "quantisation": quantised(options.target),
    }
    recorder = Recorder("draft_training", seed=options.seed, dtype=str(dtype), settings=made, quick=options.quick)
    if held_out is not None:
        for case, totals in sorted(evaluate(draft, held_out, dtype).items()):
            for metric in ("acceptance", "agreement", "missing"):
                recorder.value(case or "all", "draft", metric, "ratio", totals.means()[metric], totals.positions)
    return recorder


def make_head(options: HeadOptions) -> Recorder:
    """Train the acceptance head of ``out/draft`` and write it there.

    Raises:
        InvalidRequest: there is no draft or no answers; names the folder.
    """
    out = options.out
    files = read_draft(out / "draft")
    if files is None:
        raise InvalidRequest.of("out", str(out), "a folder that 'trimtab bench train-draft' worked in")
    draft = files.build(_eager(resolve(files.spec.target)))
    dtype = _dtype("auto")
    size = files.spec.vocab_size
    texts = [t for folder in (out, *options.more) for t in _texts(folder, "answers") if _reserved(t)]
    if not texts:
        raise InvalidRequest.of("answers", 0, f"more prompts: one in {_RESERVED} is kept from the draft, for its head")
    found = features(draft, Corpus(texts, files.ids, size, 4096, 0), dtype, options.seed)
    held_out = _held_out(out, files.ids, size)
    seen = None if held_out is None else features(draft, held_out, dtype, options.seed + 1)
    _say(f"training on {len(found.hidden)} positions of {len(texts)} texts")
    settings = Settings(
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        weight_decay=0.05,
        evaluate_every=max(1, min(500, options.steps)),
    )
    kept = HeadRun(
        blocks=options.blocks,
        width=options.width,
        labels=options.labels,
        reject_weight=options.reject_weight,
        settings=settings,
    )
    made: dict[str, Any] = {"target": files.spec.target, "positions": len(found.hidden), "steps": options.steps}
    made["quantisation"] = quantised(files.spec.target)
    recorder = Recorder("head_training", seed=options.seed, dtype="float32", settings=made, quick=options.quick)
    head = train_head(kept, found, seen, out / "head-run")
    if seen is not None:
        _record_head(recorder, f"kept: {_name(kept)}", head, seen, kept.reads)
        _record_tables(recorder, head, seen)
    spec = replace(files.spec, head_blocks=options.blocks, head_width=options.width)
    write_draft(out / "draft", spec, files.ids, files.weights, head.state_dict())
    _plot(out / "head-run", ("loss", "bce", "ece"))
    if options.compare and seen is not None:
        for index, run in enumerate(_others(kept)):
            other = train_head(run, found, None, out / f"head-run-{index}")
            _record_head(recorder, _name(run), other, seen, run.reads)
    return recorder


def _write_answers(options: DraftOptions) -> None:
    """Prompts, answers and held-out answers, as far as they are missing."""
    begun = time.monotonic()
    sources = [read_source(spec) for spec in options.data]
    held_out = [read_source(spec) for spec in options.held_out]
    model = load("target", ModelConfig(source=options.target))
    if model.draft_ids is not None or model.labels is not None:
        raise InvalidRequest.of("target", options.target, "a causal language model of its own, not a draft or a reward")
    template = PromptTemplate(model.vocabulary)
    seed, out = options.seed, options.out
    if options.own_prompts:
        own = own_prompts(model, options.own_prompts, seed, out / "prompts", options.slots)
        sources.append(("own", own, 2))

    def write(name: str, asked: Sequence[_Source], seed: int, longest: int, tokens: int, limit: float) -> None:
        longest = min(longest, model.context - tokens)
        asks = asks_of_files(template, asked, seed, longest)
        if not asks:
            raise InvalidRequest.of("data", name, f"at least one prompt of at most {longest} tokens")
        rollout = Rollout(
            model, slots=options.slots, max_new_tokens=tokens, max_prompt_tokens=longest, seed=options.seed
        )
        for _ in answers(rollout, asks, out / name, name, limit):
            pass

    if held_out:
        asked = [(name, prompts, 2) for name, prompts, _ in held_out]
        write("held_out", asked, seed + 1, _HELD_OUT_PROMPT, min(_HELD_OUT_TOKENS, options.answer_tokens), 1e9)
    left = options.answer_seconds - (time.monotonic() - begun)
    write("answers", sources, seed, options.prompt_tokens, options.answer_tokens, left)


def _texts(folder: Path, name: str) -> Iterator[Trace]:
    if name == "answers" and not (folder / name).is_dir():
        raise InvalidRequest.of("more", str(folder), "a folder that 'trimtab bench train-draft' worked in")
    return read_traces(folder / name)


def _weights(start: Path | None, layers: tuple[int, ...]) -> Mapping[str, Tensor] | None:
    if start is None:
        return None
    found = read_draft(resolve(str(start)))
    if found is None or len(found.spec.layers) != len(layers):
        raise InvalidRequest.of("start", str(start), f"a draft of {len(layers)} layers, as 'layers' has")
    return found.weights


def _reserved(trace: Trace) -> bool:
    """Whether an answer is kept from the draft. All answers to one prompt are, or none."""
    prompt = ",".join(map(str, trace.ask.prompt))
    return zlib.crc32(prompt.encode()) % _RESERVED == 0


def _held_out(out: Path, ids: Tensor, vocab_size: int) -> Corpus | None:
    traces = list(read_traces(out / "held_out"))
    return Corpus(traces, ids, vocab_size, 4096, 0) if traces else None


def _eager(source: str) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InvalidRequest.of("target", source, f"a causal language model ({error})") from error


def _dtype(wanted: str) -> torch.dtype:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if wanted == "auto":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32
    if wanted not in names:
        raise InvalidRequest.of("dtype", wanted, f"auto, {', '.join(names)}")
    return names[wanted]


def _others(kept: HeadRun) -> list[HeadRun]:
    """The heads that the kept one is compared with."""
    return [
        replace(kept, labels=next(label for label in LABELS if label != kept.labels)),
        replace(kept, reads="hidden"),
        replace(kept, labels="drawn", reads="hidden and ln q(Y)"),
        replace(kept, reads="top probability", width=1, blocks=0, settings=replace(kept.settings, learning_rate=0.03)),
        replace(kept, blocks=0),
        replace(kept, blocks=3, width=576),
        replace(kept, reject_weight=6.0),
    ]


def _name(run: HeadRun) -> str:
    weight = f", rejections x {run.reject_weight:g}" if run.reject_weight != 1 else ""
    shape = f"{run.blocks} blocks of {run.width}" if run.blocks else "linear"
    return f"{shape} on {run.reads}, {run.labels} labels{weight}"


def _record_head(recorder: Recorder, name: str, head: Any, seen: Features, reads: Reads) -> None:
    for metric, value in score(head, seen, reads).items():
        recorder.value("held out", name, metric, "nats" if metric.endswith("bce") else "", value, len(seen.hidden))


def _record_tables(recorder: Recorder, head: Any, seen: Features) -> None:
    """Reliability of one prediction, and of the product over 4 greedy tokens in a row."""
    predicted = predict(head, seen, "hidden and top probability")
    tables = {
        "acceptance": reliability(predicted[:, 0], seen.accepted),
        "greedy": reliability(predicted[:, 1], seen.agreed),
    }
    greedy = seen.greedy
    if bool(greedy.any()):
        chain = cumulated(predicted[greedy, 1], seen.agreed[greedy], seen.text[greedy], 4)
        tables["4 greedy tokens"] = reliability(*chain)
    for name, table in tables.items():
        for count, mean, observed in table.rows:
            recorder.value(f"{name}, predicted {mean:.3f}", "kept", "observed", "", observed, count)
        recorder.value(name, "kept", "ece", "", table.error, sum(row[0] for row in table.rows))


def _plot(folder: Path, names: tuple[str, ...]) -> None:
    try:
        plot_curve(folder, folder / "curve.png", names)
    except TrimtabError as error:
        _say(f"no picture of the curve: {error}")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
