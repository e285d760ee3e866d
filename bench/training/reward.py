"""Trains a real reward model for the bundled pair: SmolLM2's lower layers and a linear head, on preferences.

A model's last layers are about its next token; what an answer is worth is better read further down, and cheaper: of
heads alone on the state of the last token, fitted to 2,000 answers, one after layer 10 orders 75 % of the pairs of
other instructions right, one after layer 30 only 71 %. So the upper layers are left out.

Searches rate beginnings, too. A model that has seen whole answers only takes a beginning for an answer that stops
short. So of every answer a beginning of random length is learned from, as well, and with the liking of the whole: what
the model then says of a beginning is what to expect of the answer.

What is below the trained layers is computed once (``states``). First the head alone is fitted, which is convex, with
the regularisation that does best on held-out instructions; then the last of the kept layers learn with it. An answer
ends with the token that ends its turn, not with the line break that many templates write after it: a model says little
there. The head reads that token, or (``pooling = "mean"``) all tokens of the answer: what it says of a beginning is
then part of what it says of the whole. The result is an ordinary sequence-classification folder of Hugging Face, which
the type ``classifier`` loads and the engine runs with its pages. Preference data are often for research only, so this
script ships and weights don't.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from trimtab.bench.progress import Progress
from trimtab.bench.record import Recorder
from trimtab.bench.training.attention import TRAINING_ATTENTION
from trimtab.bench.training.bag_of_words import BagOfWords, pair_loss
from trimtab.bench.training.loop import Settings, train
from trimtab.bench.training.preferences import (
    Answered,
    Scores,
    by_instruction,
    choose,
    correlation,
    pair_accuracy,
    read_preferences,
)
from trimtab.bench.training.states import States, lower, upper
from trimtab.bench.weights import quantised
from trimtab.decode.errors import InvalidRequest
from trimtab.decode.models.sources import resolve
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.text.templates import PromptTemplate
from trimtab.decode.text.vocabulary import Vocabulary

__all__ = ["Options", "train_reward"]

_POOLINGS = ("last", "mean")
_HELD_OUT = 0.1  # of the instructions to learn from: watched while training, never learned from
_CLEAR = 0.3  # difference of preferences from which a pair is clear
_PER_STEP = 2  # instructions
_DECAYS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_BEGINNING = 32  # tokens that a beginning has where ratings of beginnings are evaluated
_LEAST = 8  # and at least where they are learned from
_DEPTH = 0.4  # of the layers, where no number is asked for
_PIECE = 40  # steps between looks at the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Of a run.

    Attributes:
        data: JSONL of preferences, perhaps compressed.
        out: folder for states, checkpoints, and the trained model under ``model``.
        source: a causal LM of an architecture laid out as Llama is.
        depth: layers of the reward model, the source's first; None: two fifths of them.
        layers: the last of these are trained, with the norm and the head.
        answer_tokens: of an answer that are read; a longer one is closed there.
        pooling: what the head reads: ``last`` token, or the ``mean`` of the answer's.
        answers: per instruction to learn from; None: all.
        beginnings: of every answer, of random length, that are learned from as well.
        instructions: to learn from; None: all of the split ``tune``.
        report_instructions: to evaluate on; None: all of the split ``report``.
        unseen: generators of which nothing is learned.
        epochs: passes over the answers in which the upper layers learn; 0 fits the head alone.
        group: answers to one instruction in a step.
        learning_rate: at its highest.
        seed: of everything that is random.
        stop_after: seconds after which the run is left with all it has, to be gone on with; at least one step is done.
        quick: whether the results are those of a smoke run.
    """

    data: Path
    out: Path = Path("build/reward")
    source: str = "smollm2-135m-instruct"
    depth: int | None = None
    layers: int = 4
    answer_tokens: int = 192
    pooling: str = "mean"
    answers: int | None = None
    beginnings: int = 1
    instructions: int | None = None
    report_instructions: int | None = None
    unseen: int = 6
    epochs: float = 2.0
    group: int = 8
    learning_rate: float = 5e-5
    seed: int = 0
    stop_after: float | None = None
    quick: bool = False

    def __post_init__(self) -> None:
        for name, least in (("layers", 1), ("answer_tokens", 1), ("group", 2), ("unseen", 0), ("beginnings", 0)):
            if getattr(self, name) < least:
                raise InvalidRequest.of(name, getattr(self, name), f"a whole number >= {least}")
        if self.pooling not in _POOLINGS:
            raise InvalidRequest.of("pooling", self.pooling, " or ".join(_POOLINGS))


def train_reward(options: Options) -> Recorder | None:
    """Train, save and evaluate a reward model; None if ``stop_after`` ended it before that.

    Returns:
        Rows of figures: accuracies over pairs and the correlation with length, beside two baselines.

    Raises:
        InvalidRequest: the data or the options can't be used.
    """
    begun = time.monotonic()
    rows = read_preferences(options.data)
    generators = sorted({row.generator for row in rows})
    if options.unseen >= len(generators):
        raise InvalidRequest.of("unseen", options.unseen, f"less than the {len(generators)} generators of the data")
    unseen = sorted(random.Random(options.seed).sample(generators, options.unseen))
    learned = [row for row in rows if row.split == "tune" and row.generator not in unseen]
    if len(by_instruction(learned)) < 2 or all(len(group) < 2 for group in by_instruction(learned).values()):
        raise InvalidRequest.of("data", options.data.name, "several answers to at least two instructions, split 'tune'")
    whole = choose(learned, options.instructions, options.answers, options.seed)
    learned = [*whole, *_beginnings(options, whole)]
    folder = options.out / "model"
    sequences, read = _tokens(options, learned)
    source = resolve(options.source)
    if not (folder / "config.json").exists():
        body: Any = AutoModel.from_pretrained(source, dtype=_dtype())
        body.requires_grad_(False).eval()
        depth = _depth(options, len(body.layers))
        body.layers = body.layers[:depth]
        _shorten(body.config, depth)
        made = {"source": options.source, "depth": depth, "layers": options.layers, "seed": options.seed}
        made |= {"answer_tokens": options.answer_tokens}
        states = States(options.out / "states", sequences, made)
        if not states.compute(lower(body, options.layers), options.stop_after):
            return None
        top = Top(upper(body, options.layers))
        del body
        until = None if options.stop_after is None else begun + options.stop_after
        if not _learn(top, states, read, learned, options, until):
            return None
        save(top, source, folder, depth, options.pooling)
    return evaluate(options, whole, sum(map(len, sequences)), rows, unseen)


def _depth(options: Options, layers: int) -> int:
    """Layers of the reward model, of a source that has so many.

    Raises:
        InvalidRequest: the source has fewer, or fewer than are to be trained.
    """
    depth = max(round(_DEPTH * layers), min(options.layers + 1, layers)) if options.depth is None else options.depth
    if not 2 <= depth <= layers:
        raise InvalidRequest.of("depth", depth, f"2 to {layers}, the model's layers")
    if options.layers >= depth:
        raise InvalidRequest.of("layers", options.layers, f"less than the {depth} that are kept")
    return depth


def _shorten(config: Any, depth: int) -> None:
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:depth]


class Top(nn.Module):
    """The trained part: hidden states below it -> one reward per sequence."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        body.set_attn_implementation(TRAINING_ATTENTION)
        self.body = body
        self.head = nn.Linear(body.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, states: Sequence[Tensor], read: Sequence[int]) -> Tensor:
        """states: [tokens, D] each -> [n], the head's mean over the last ``read`` tokens of each."""
        return self.head(self.features(states, read))[:, 0]  # type: ignore[no-any-return]

    def features(self, states: Sequence[Tensor], read: Sequence[int]) -> Tensor:
        """states: [tokens, D] each -> [n, D], float32: what the head reads, as a mean."""
        padded = nn.utils.rnn.pad_sequence([state.float() for state in states], batch_first=True)
        with torch.autocast("cpu", _dtype(), enabled=_dtype() is not torch.float32):
            hidden = self.body(inputs_embeds=padded, use_cache=False).last_hidden_state
        ends = [(row, len(state), count) for row, (state, count) in enumerate(zip(states, read, strict=True))]
        return torch.stack([hidden[row, end - count : end].float().mean(0) for row, end, count in ends])


def _learn(
    top: Top,
    states: States,
    read: Sequence[int],
    rows: Sequence[Answered],
    options: Options,
    until: float | None,
) -> bool:
    """Train; False if the time was over before the end."""

    def values_of(chosen: Sequence[int]) -> Any:
        return top([states[i] for i in chosen], [read[i] for i in chosen])

    place = {id(row): i for i, row in enumerate(rows)}
    groups = [[place[id(row)] for row in group] for group in by_instruction(rows).values() if len(group) > 1]
    held = max(1, round(_HELD_OUT * len(groups)))
    watched, groups = groups[:held], groups[held:]
    _fit_head(top, states, read, rows, groups, watched)
    if not options.epochs:
        return True
    # An epoch deals every instruction's answers out in groups of ``group``.
    dealt = sum(-(-len(group) // options.group) for group in groups)
    steps = max(1, round(options.epochs * dealt / _PER_STEP))
    logits = torch.tensor([row.logit for row in rows])

    def deal(epoch: int) -> list[list[int]]:
        draw = random.Random(f"{options.seed} {epoch}")
        hands = []
        for group in groups:
            shuffled = draw.sample(group, len(group))
            count = -(-len(group) // options.group)
            hands += [shuffled[k::count] for k in range(count)]
        draw.shuffle(hands)
        return hands

    hands: dict[int, list[list[int]]] = {}

    def hand(number: int) -> list[int]:
        epoch = number // dealt
        if epoch not in hands:
            hands.clear()
            hands[epoch] = deal(epoch)
        return hands[epoch][number % dealt]

    def step(number: int) -> tuple[Tensor, Mapping[str, float]]:
        chosen = [hand(_PER_STEP * number + k) for k in range(_PER_STEP)]
        values = values_of([i for group in chosen for i in group])
        parts = values.split([len(group) for group in chosen])
        losses = [pair_loss(v, logits[g]) for v, g in zip(parts, chosen, strict=True) if len(g) > 1]
        right = [_agreement(v.detach(), logits[g]) for v, g in zip(parts, chosen, strict=True) if len(g) > 1]
        if not losses:  # only single answers were left over
            return values.sum() * 0.0, {"accuracy": 0.5}
        return torch.stack(losses).mean(), {"accuracy": sum(right) / len(right)}

    @torch.no_grad()
    def watch() -> Mapping[str, float]:
        losses, right = [], []
        for group in watched:
            values = torch.cat([values_of(group[k : k + 16]) for k in range(0, len(group), 16)])
            losses.append(float(pair_loss(values, logits[group])))
            right.append(_agreement(values, logits[group]))
        return {"loss": sum(losses) / len(losses), "accuracy": sum(right) / len(right)}

    settings = Settings(
        steps=steps,
        learning_rate=options.learning_rate,
        warmup=0.05,
        seed=options.seed,
        log_every=min(20, steps),
        evaluate_every=max(1, steps // 6),
    )
    made = {"group": options.group, "layers": options.layers, "source": options.source, "answers": len(rows)}
    made |= {"depth": options.depth, "pooling": options.pooling}
    done = 0

    def counted(number: int) -> tuple[Tensor, Mapping[str, float]]:
        nonlocal done
        done = number + 1
        return step(number)

    # In pieces of a few steps, so that the clock is looked at; a piece ends with a checkpoint.
    piece = None if until is None else _PIECE
    while True:
        before = done
        train(
            top,
            counted,
            settings,
            options.out / "training",
            name="reward",
            made=made,
            evaluate=watch,
            checkpoint_every=60,
            stop_after=piece,
        )
        if done in (before, steps):  # nothing was left to do
            return True
        if until is not None and time.monotonic() >= until:
            return False


def _fit_head(
    top: Top,
    states: States,
    read: Sequence[int],
    rows: Sequence[Answered],
    groups: Sequence[Sequence[int]],
    watched: Sequence[Sequence[int]],
) -> None:
    """Fit the head to the frozen layers' features, standardised, with the decay that does best on ``watched``."""
    order = sorted(range(len(rows)), key=lambda i: len(states.sequences[i]))
    features = torch.empty(len(rows), top.head.in_features)
    with torch.no_grad():
        for at in range(0, len(order), 8):
            part = order[at : at + 8]
            features[part] = top.features([states[i] for i in part], [read[i] for i in part])
    unit = features.std(0).clamp(min=1e-3)
    features = (features - features.mean(0)) / unit
    logits = torch.tensor([row.logit for row in rows])

    def loss(weight: Tensor, of: Sequence[Sequence[int]]) -> Tensor:
        values = features @ weight
        return torch.stack([pair_loss(values[group], logits[group]) for group in of]).mean()

    best = float("inf")
    for decay in _DECAYS:
        weight = torch.zeros(features.shape[1], requires_grad=True)
        solver = torch.optim.LBFGS([weight], max_iter=80, line_search_fn="strong_wolfe")

        def closure(weight: Tensor = weight, solver: Any = solver, decay: float = decay) -> Tensor:
            solver.zero_grad()
            total = loss(weight, groups) + decay * weight.square().sum()
            total.backward()  # type: ignore[no-untyped-call]
            return total

        solver.step(closure)  # type: ignore[no-untyped-call]
        found = float(loss(weight.detach(), watched))
        values = features @ weight.detach()
        right = sum(_agreement(values[g], logits[g]) for g in watched) / len(watched)
        sys.stderr.write(f"reward: head alone, decay {decay:g}: held out: loss {found:.4f}, accuracy {right:.3f}\n")
        if found < best:
            best = found
            with torch.no_grad():
                top.head.weight[0] = weight / unit


def _agreement(values: Tensor, logits: Tensor) -> float:
    first, second = torch.triu_indices(len(values), len(values), 1)
    product = (values[first] - values[second]) * (logits[first] - logits[second])
    return float(((product > 0).float() + 0.5 * (product == 0).float()).mean())


def save(top: Top, source: str, folder: Path, depth: int, pooling: str) -> None:
    """Write the trained model, of so many layers, as a sequence-classification model with one label, ``reward``."""
    config = AutoConfig.from_pretrained(source, num_labels=1, id2label={0: "reward"}, label2id={"reward": 0})
    _shorten(config, depth)
    model: Any = AutoModelForSequenceClassification.from_pretrained(source, config=config, dtype=_dtype())
    tokenizer: Any = AutoTokenizer.from_pretrained(source)
    inner = model.model
    first = len(inner.layers) - len(top.body.layers)
    with torch.no_grad():
        for target, trained in zip(inner.layers[first:], top.body.layers, strict=True):
            target.load_state_dict(trained.state_dict())
        inner.norm.load_state_dict(top.body.norm.state_dict())
        model.score.weight.copy_(top.head.weight)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.answer_end = _vocabulary(source).decode(_end(source))
    model.config.reward_pooling = pooling
    work = folder.with_name(folder.name + ".tmp")
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    work.rename(folder)


def evaluate(
    options: Options,
    learned: Sequence[Answered],
    tokens_learned_from: int,
    rows: Sequence[Answered],
    unseen: Sequence[str],
) -> Recorder:
    """Score the answers to the ``report`` instructions through the engine and compare with the baselines."""
    report = choose([r for r in rows if r.split == "report"], options.report_instructions, None, options.seed + 1)
    if not report:
        raise InvalidRequest.of("data", options.data.name, "rows of the split 'report'")
    vocabulary = _vocabulary(resolve(options.source))
    tokens = [vocabulary.encode(row.text, False, continues=True) for row in report]
    answers = [vocabulary.encode(row.text, False, continues=True) for row in learned]
    bag = BagOfWords(learned, answers, len(vocabulary.tokenizer))
    scores = {
        "reward model": Scores(report, _scored(options, report, vocabulary)),
        f"the same, of the first {_BEGINNING} tokens": Scores(report, _scored(options, report, vocabulary, _BEGINNING)),
        "longer answer": Scores(report, [float(len(row.text)) for row in report]),
        "bag of words": Scores(report, bag.rate(tokens)),
    }
    settings = {
        "source": options.source,
        "depth": AutoConfig.from_pretrained(options.out / "model").num_hidden_layers,
        "layers": options.layers,
        "answer_tokens": options.answer_tokens,
        "pooling": options.pooling,
        "answers_learned_from": len(learned),
        "beginnings": options.beginnings,
        "tokens_learned_from": tokens_learned_from,
        "instructions_learned_from": len(by_instruction(learned)),
        "epochs": options.epochs,
        "unseen": list(unseen),
        "quantisation": quantised(options.source),
    }
    recorder = Recorder(
        "reward_training",
        seed=options.seed,
        dtype=str(_dtype()).removeprefix("torch."),
        settings=settings,
        quick=options.quick,
    )
    lengths = [float(len(ids)) for ids in tokens]
    for subject, found in scores.items():
        for which in ("all", "seen", "unseen") if unseen else ("all",):
            for case, margin in ((f"{which} generators", 0.0), (f"{which} generators, clear pairs", _CLEAR)):
                with suppress(InvalidRequest):  # of few answers there may be no such pair; the table leaves it open
                    a = pair_accuracy(found, margin, unseen, which)
                    recorder.value(case, subject, "pair accuracy", "share", a.value, a.pairs, a.interval)
        groups = len(found.groups())
        recorder.value("all generators", subject, "correlation with length", "", correlation(found, lengths), groups)
    return recorder


def _scored(options: Options, rows: Sequence[Answered], vocabulary: Vocabulary, most: int | None = None) -> list[float]:
    """By the engine, as a search would: answers are cut where the training cut them, or after ``most`` tokens."""
    from trimtab.decode.config import EngineOptions, ModelConfig
    from trimtab.decode.engine.engine import Engine

    cut, most = [], min(most or options.answer_tokens, options.answer_tokens)
    for row in rows:
        ids = vocabulary.encode(row.text, False, continues=True)
        cut.append(row.text if len(ids) <= most else vocabulary.decode(ids[:most]))
    values: list[float] = []
    models = {"reward": ModelConfig(source=str(options.out / "model"), role="reward")}
    trained = {"trained": {"type": "classifier", "model": "reward"}}
    with Engine(models, rewards=trained, options=EngineOptions(memory_bytes=400 << 20)) as engine:
        place = 0
        with Progress("scoring", len(rows), unit="answer") as progress:
            for group in by_instruction(rows).values():
                items = [((ChatMessage("user", row.instruction),), cut[place + i]) for i, row in enumerate(group)]
                values += [scored.value for scored in engine.score(items, reward="trained")]
                place += len(group)
                progress.add(pieces=len(group))
    return values


def _tokens(options: Options, rows: Sequence[Answered]) -> tuple[list[list[int]], list[int]]:
    """What a reward model reads: the prompt by the template, the answer, the end of the turn; and how many of the last
    tokens the head does.
    """
    vocabulary = _vocabulary(resolve(options.source))
    template = PromptTemplate(vocabulary)
    end = _end(resolve(options.source))
    prompts = {row.instruction: template.encode((ChatMessage("user", row.instruction),)) for row in rows}
    answers = [[*vocabulary.encode(row.text, False, continues=True)[: options.answer_tokens], *end] for row in rows]
    sequences = [[*prompts[row.instruction], *answer] for row, answer in zip(rows, answers, strict=True)]
    return sequences, [len(answer) if options.pooling == "mean" else 1 for answer in answers]


def _beginnings(options: Options, rows: Sequence[Answered]) -> list[Answered]:
    """Beginnings of answers, as liked as the whole; of answers too short to have one, none."""
    vocabulary = _vocabulary(resolve(options.source))
    draw = random.Random(f"{options.seed} beginnings")
    found = []
    for row in rows:
        ids = vocabulary.encode(row.text, False, continues=True)[: options.answer_tokens]
        if len(ids) > _LEAST:
            cuts = (draw.randrange(_LEAST, len(ids)) for _ in range(options.beginnings))
            found += [replace(row, text=vocabulary.decode(ids[:cut])) for cut in cuts]
    return found


def _end(source: str) -> list[int]:
    """What the template writes after an answer, up to and with the token that ends its turn."""
    vocabulary = _vocabulary(source)
    end = PromptTemplate(vocabulary).turn_end()
    last = next((i for i, token in enumerate(end) if token in vocabulary.special_ids), len(end) - 1)
    return end[: last + 1]


def _vocabulary(source: str) -> Vocabulary:
    AutoConfig.from_pretrained(source)  # a fault of the model is told as such, not as one of its tokenizer
    return Vocabulary(AutoTokenizer.from_pretrained(source), name="reward")


def _dtype() -> torch.dtype:
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast else torch.float32
