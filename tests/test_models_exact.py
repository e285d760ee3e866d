"""Law 2: a row of logits depends on the tokens before it and on nothing else, for every architecture.

The oracle is transformers' own eager forward over the whole sequence in float32. The engine computes the same rows in
random pieces, packed with other sequences, over scattered and shared pages, after forks, rewinds and evictions.
"""

from __future__ import annotations

import dataclasses
import gc
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from trimtab.decode.config import ModelConfig
from trimtab.decode.engine.batch import RaggedBatch, Span
from trimtab.decode.engine.model_instance import LiveSequence, ModelInstance
from trimtab.decode.engine.storage import Step, Storage
from trimtab.decode.errors import UnsupportedModel
from trimtab.decode.models import blueprint, self_test
from trimtab.decode.models.load import LoadedModel, load
from trimtab.decode.models.modules import ModuleForward
from trimtab.decode.models.stack import Stack

if TYPE_CHECKING:
    from conftest import RealModels

KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "opt")
STACKED = ("llama", "qwen2", "qwen3", "mistral", "gemma3")
TOLERANCE = 1e-4  # largest difference of a logit, in standard deviations of all of them; measured: 1e-6 to 1e-5

Folder = Callable[..., Path]


@pytest.fixture(autouse=True)
def _inference(request: pytest.FixtureRequest) -> Iterator[None]:
    """As on the engine's thread; a tiny model is slower on two threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if request.node.get_closest_marker("real") else 1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def eager(folder: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@dataclass
class Seen:
    """Rows that were computed: the tokens up to the last of them, and the logits after each."""

    tokens: tuple[int, ...]
    logits: Tensor


@dataclass
class Lab:
    """One model over a small pool, driven as the scheduler does, with every row read."""

    model: LoadedModel
    pages: int = 24
    page_tokens: int = 8
    copying: bool = True
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.view = ModelInstance(self.model, self.pages, self.page_tokens, None)
        self.view.pages.min_reuse = 3  # so that partial pages are copied here too
        self.open: dict[LiveSequence, None] = {}

    def begin(self, tokens: Sequence[int]) -> LiveSequence:
        return LiveSequence(self.view, tokens, self.open)

    def forward(self, parts: Sequence[tuple[LiveSequence, int]]) -> None:
        """One forward pass over the next tokens of some sequences, packed."""
        view, spans, rows = self.view, [], []
        for sequence, take in parts:
            table = sequence.table
            if not table.pages:
                self._copy(view.pages.adopt(table, sequence.tokens[:-1]))
            take = min(take, len(sequence.tokens) - table.length)
            self._copy(view.pages.reserve(table, take))
            new = sequence.tokens[table.length : table.length + take]
            spans.append(Span(new, table.length, table.pages, take))
            rows.append((sequence, table.length + take, take))
        batch = RaggedBatch.pack(spans, self.page_tokens)
        logits = self.model.forward(
            torch.from_numpy(batch.tokens),
            torch.from_numpy(batch.positions),
            view.storage.begin(batch),
            torch.from_numpy(batch.rows),
        )
        begin = 0
        for sequence, end, take in rows:
            view.pages.commit(sequence.table, sequence.tokens, end)
            self.seen.append(Seen(tuple(sequence.tokens[:end]), logits[begin : begin + take].float()))
            begin += take
        view.pages.check()

    def _copy(self, copies: Any) -> None:
        if self.copying:
            self.view.storage.copy(copies)

    def close(self) -> None:
        for sequence in list(self.open):
            sequence.close()
        self.view.pages.check()
        assert self.view.pages.held == 0

    def worst(self, reference: Any) -> float:
        return worst(self.seen, reference)


def worst(rows: Sequence[Seen], reference: Any) -> float:
    """Largest difference of a logit to the reference, in standard deviations."""
    found = 0.0
    for tokens in {seen.tokens for seen in rows}:
        truth = reference(input_ids=torch.tensor([tokens])).logits[0].float()
        for seen in rows:
            if seen.tokens == tokens:
                difference = (seen.logits - truth[-len(seen.logits) :]).abs().max() / truth.std()
                found = max(found, float(difference))
    return found


def random_program(lab: Lab, seed: int, steps: int, vocabulary: int) -> dict[str, int]:
    """Do random things to sequences, so that every row computed on the way must be right; counts what was done."""
    rng = random.Random(seed)
    alive: list[LiveSequence] = []
    done = dict.fromkeys(("open", "shared", "fork", "rewind", "evict", "close", "packed", "long"), 0)

    def fresh(count: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(count)]

    first = ["open", "open", "fork", "shared", "rewind", "evict", "close", "grow"]
    for kind in (first + [rng.choice(first) for _ in range(steps)])[:steps]:
        if (kind == "open" and len(alive) < 4) or not alive:
            alive.append(lab.begin(fresh(rng.choice([9, 25, 40]) if alive else 40)))
            done["open"] += 1
        elif kind == "shared" and len(alive) < 4:
            known = rng.choice(lab.seen).tokens if lab.seen else ()
            alive.append(lab.begin([*known[: rng.randrange(len(known) + 1)], *fresh(rng.randrange(1, 9))]))
            done["shared"] += 1
        elif kind == "fork" and len(alive) < 4:
            alive.append(rng.choice(alive).fork())
            done["fork"] += 1
        elif kind == "rewind":
            one = rng.choice(alive)
            one.rewind(rng.randrange(max(0, len(one.tokens) - 12), len(one.tokens)))
            done["rewind"] += 1
        elif kind == "evict":
            rng.choice(alive).evict()
            done["evict"] += 1
        elif kind == "close" and len(alive) > 2:
            alive.pop(rng.randrange(len(alive))).close()
            done["close"] += 1
        for one in alive:
            if len(one.tokens) > 44:
                one.rewind(40)
            one.tokens.extend(fresh(rng.choice([0, 1, 1, 4])))
        behind = [one for one in alive if one.table.length < len(one.tokens)]
        chosen = rng.sample(behind, rng.randrange(1, len(behind) + 1)) if behind else []
        if chosen:
            parts = [(one, rng.choice([1, 3, 17, 30]) if lab.seen else 20) for one in chosen]
            done["packed"] += len(parts) > 1
            lab.forward(parts)
            done["long"] += any(len(seen.logits) > 16 for seen in lab.seen[-len(parts) :])
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_rows_depend_only_on_the_tokens(kind: str, tiny_folder: Folder) -> None:
    folder = tiny_folder(kind)
    model = load(kind, ModelConfig(source=str(folder), dtype="float32"))
    assert isinstance(model.forward, Stack if kind in STACKED else ModuleForward)
    lab = Lab(model)
    done = random_program(lab, seed=KINDS.index(kind), steps=64, vocabulary=model.vocab_size)
    assert min(done.values()) >= 1, done
    assert lab.worst(eager(folder)) < TOLERANCE
    lab.close()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_pieces_fork_rewind_evict_and_packed_agree(kind: str, tiny_folder: Folder) -> None:
    """The named cases one by one, over page borders and beyond every window."""
    folder = tiny_folder(kind)
    model = load(kind, ModelConfig(source=str(folder), dtype="float32"))
    rng = random.Random(5)
    prompt = [rng.randrange(model.vocab_size) for _ in range(37)]
    other = [rng.randrange(model.vocab_size) for _ in range(23)]

    def last(lab: Lab) -> Tensor:
        return next(seen.logits[-1] for seen in reversed(lab.seen) if seen.tokens == tuple(prompt))

    found = {}
    lab = Lab(model)
    lab.forward([(lab.begin(prompt), 37)])
    found["whole"] = last(lab)

    lab = Lab(model)
    one = lab.begin(prompt)
    for piece in (1, 7, 8, 2, 17, 1, 1):
        lab.forward([(one, piece)])
    found["pieces"] = last(lab)

    lab = Lab(model)
    one = lab.begin(prompt[:30])
    lab.forward([(one, 30)])
    twin = one.fork()
    one.tokens.extend(other[:7])
    lab.forward([(one, 7)])
    twin.tokens.extend(prompt[30:])
    lab.forward([(twin, 7)])
    found["fork"] = last(lab)

    twin.rewind(11)
    twin.tokens.extend(other)
    lab.forward([(twin, 30)])
    twin.rewind(11)
    twin.tokens.extend(prompt[11:])
    lab.forward([(twin, 3)])
    lab.forward([(twin, 40)])
    found["rewind"] = last(lab)

    one.close()
    twin.evict()
    lab.view.pages.forget()
    lab.forward([(twin, 20)])
    lab.forward([(twin, 20)])
    found["evict"] = last(lab)

    twin.evict()
    lab.forward([(twin, 20)])
    found["evict and reuse"] = last(lab)
    assert len(lab.seen[-1].logits) == 1, "all but the last token were still there"

    lab = Lab(model)
    one, two, three = lab.begin(prompt), lab.begin(other), lab.begin(prompt[:20])
    lab.forward([(two, 9), (one, 18), (three, 1)])
    lab.forward([(three, 1), (one, 30), (two, 30)])
    found["packed"] = last(lab)

    truth = eager(folder)(input_ids=torch.tensor([prompt])).logits[0, -1]
    for name, logits in found.items():
        assert float((logits - truth).abs().max() / truth.std()) < TOLERANCE, name


def test_negative_control_forgotten_copies_show(tiny_folder: Folder) -> None:
    folder = tiny_folder("llama")
    lab = Lab(load("llama", ModelConfig(source=str(folder), dtype="float32")), copying=False)
    random_program(lab, seed=0, steps=64, vocabulary=lab.model.vocab_size)
    assert lab.worst(eager(folder)) > 1000 * TOLERANCE


@pytest.mark.parametrize("kind", ["mistral", "gemma3"])
def test_negative_control_a_window_off_by_one_shows(
    kind: str, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(kind)
    lab = Lab(load(kind, ModelConfig(source=str(folder), dtype="float32")))
    narrow(monkeypatch, by=1)
    random_program(lab, seed=0, steps=10, vocabulary=lab.model.vocab_size)
    assert lab.worst(eager(folder)) > 100 * TOLERANCE


def narrow(monkeypatch: pytest.MonkeyPatch, by: int) -> None:
    """Make every window smaller than the model has it."""
    attend = Step.attend

    def wrong(self: Step, layer: int, q: Tensor, kv: Tensor, scale: float, window: int | None) -> Tensor:
        return attend(self, layer, q, kv, scale, None if window is None else window - by)

    monkeypatch.setattr(Step, "attend", wrong)


def test_positions_beyond_the_first_table(tiny_folder: Folder) -> None:
    """Rotary tables grow while the model runs: step by step over the border at 1,024, then a chunk far beyond."""
    folder = tiny_folder("llama")
    model = load("llama", ModelConfig(source=str(folder), dtype="float32"))
    assert isinstance(model.forward, Stack)
    assert model.forward._length == 1024
    lab = Lab(model, pages=40, page_tokens=64)
    rng = random.Random(0)
    one = lab.begin([rng.randrange(model.vocab_size) for _ in range(1022)])
    for new in (0, 1, 1, 1, 1, 1200):
        one.tokens += [rng.randrange(model.vocab_size) for _ in range(new)]
        lab.forward([(one, 1200)])
    truth = eager(folder)(input_ids=torch.tensor([one.tokens])).logits[0]
    begin = 0
    for seen in lab.seen:
        part = truth[begin : begin + len(seen.logits)]
        assert float((seen.logits - part).abs().max() / truth.std()) < TOLERANCE
        begin += len(seen.logits)
    assert begin == 2226


@pytest.mark.parametrize("kind", STACKED)
def test_the_stack_equals_the_models_own_modules(kind: str, tiny_folder: Folder) -> None:
    folder = tiny_folder(kind)
    model = load(kind, ModelConfig(source=str(folder), dtype="float32"))
    flat = Lab(model)
    through = Lab(dataclasses.replace(model, forward=ModuleForward(eager(folder))))
    random_program(flat, 7, 20, model.vocab_size)
    random_program(through, 7, 20, model.vocab_size)
    assert [seen.tokens for seen in flat.seen] == [seen.tokens for seen in through.seen]
    for one, other in zip(flat.seen, through.seen, strict=True):
        assert float((one.logits - other.logits).abs().max() / other.logits.std()) < TOLERANCE


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_tied_embeddings_and_a_softcap(kind: str, tiny_folder: Folder) -> None:
    changes: dict[str, Any] = {"tie_word_embeddings": True}
    if kind == "gemma3":
        changes["final_logit_softcapping"] = 2.0
    folder = tiny_folder(kind, **changes)
    lab = Lab(load(kind, ModelConfig(source=str(folder), dtype="float32")))
    random_program(lab, 3, 15, lab.model.vocab_size)
    assert lab.worst(eager(folder)) < TOLERANCE
    if kind == "gemma3":
        assert max(float(seen.logits.abs().max()) for seen in lab.seen) <= 2.0


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_static_rotary_scalings_are_exact(rope: dict[str, Any], tiny_folder: Folder) -> None:
    folder = tiny_folder("llama", rope_parameters={"rope_theta": 10000.0, **rope})
    lab = Lab(load("llama", ModelConfig(source=str(folder), dtype="float32")))
    random_program(lab, 4, 15, lab.model.vocab_size)
    assert lab.worst(eager(folder)) < TOLERANCE


def test_bfloat16_stays_near_float32(tiny_folder: Folder) -> None:
    for kind in ("llama", "gemma3"):
        folder = tiny_folder(kind)
        lab = Lab(load(kind, ModelConfig(source=str(folder), dtype="bfloat16")))
        assert lab.model.kv_dtype is torch.float32
        random_program(lab, 4, 15, lab.model.vocab_size)
        assert TOLERANCE < lab.worst(eager(folder)) < 0.5


# ------------------------------------------------------------------------------------------------- the bundled pair


def _rows_of(folder: Path) -> list[Seen]:
    """Of a random program. The longest sequences cover most; the reference is slow, so only those are compared."""
    model = load("m", ModelConfig(source=str(folder), dtype="float32"))
    lab = Lab(model, pages=24, page_tokens=8)
    done = random_program(lab, seed=2, steps=16, vocabulary=model.vocab_size)
    assert min(done[kind] for kind in ("fork", "rewind", "packed", "long")) >= 1, done
    lab.close()
    return sorted(lab.seen, key=lambda seen: -len(seen.logits))[:6] + lab.seen[-6:]


@pytest.mark.real
@pytest.mark.parametrize("which", ["aligned", pytest.param("base", marks=pytest.mark.full)])
def test_the_bundled_models_depend_only_on_the_tokens(which: str, real_models: RealModels) -> None:
    folder = getattr(real_models, which)
    rows = _rows_of(folder)
    gc.collect()  # the model, before the reference is loaded
    assert worst(rows, eager(folder)) < TOLERANCE
    gc.collect()


@pytest.mark.real
@pytest.mark.full
def test_gemma_beyond_its_window(real_models: RealModels) -> None:
    """Gemma's sliding layers see 512 positions: 700 tokens in chunks, then some steps."""
    model = load("base", ModelConfig(source=str(real_models.base), dtype="float32"))
    lab = Lab(model, pages=12, page_tokens=64)
    rng = random.Random(1)
    one = lab.begin([rng.randrange(1000, 50_000) for _ in range(700)])
    lab.forward([(one, 500)])
    lab.forward([(one, 200)])
    for _ in range(3):
        one.tokens.append(rng.randrange(1000, 50_000))
        lab.forward([(one, 1)])
    truth = eager(real_models.base)(input_ids=torch.tensor([one.tokens])).logits[0]
    begin = 0
    for seen in lab.seen:
        part = truth[begin : begin + len(seen.logits)]
        assert (
            float((seen.logits - part).abs().max() / truth.std()) < 3 * TOLERANCE
        )  # measured, by machine: 5e-5 to 1.1e-4
        begin += len(seen.logits)


# ---------------------------------------------------------------------------------------------------------- refusals


def refusal(folder: Path, **config: Any) -> str:
    with pytest.raises(UnsupportedModel) as caught:
        load("m", ModelConfig(source=str(folder), dtype="float32", **config))
    assert caught.value.model == "m"
    return caught.value.reason


def test_a_model_without_an_attention_interface_is_refused(tiny: Any, tmp_path: Path) -> None:
    config = hf.BloomConfig(vocab_size=304, hidden_size=32, n_layer=2, n_head=2)
    assert "BloomForCausalLM does not take its attention" in refusal(
        tiny.save(hf.BloomForCausalLM(config), tmp_path / "bloom")
    )


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_depend_on_the_batch_are_refused(kind: str, tiny: Any, tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "original_max_position_embeddings": 64}
    reason = refusal(tiny.save(tiny.make("llama", rope_parameters=rope), tmp_path))
    assert kind in reason
    assert "one request would change another's answer" in reason


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (hf.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2), "encoder-decoder"),
        (hf.Qwen3NextConfig(num_hidden_layers=4), "linear_attention"),
        (hf.Lfm2Config(num_hidden_layers=2, full_attn_idxs=[1]), "conv"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_architectures_that_hold_other_state_are_refused(config: Any, words: str, tmp_path: Path) -> None:
    """Before any weight is read: the folder has none."""
    config.save_pretrained(tmp_path)
    assert words in refusal(tmp_path)


def test_a_recurrent_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    config = hf.MambaConfig(vocab_size=304, hidden_size=16, state_size=4, num_hidden_layers=2)
    assert "attention" in refusal(tiny.save(hf.MambaForCausalLM(config), tmp_path))


def test_scores_that_are_capped_are_refused(tiny: Any, tmp_path: Path) -> None:
    """Gemma 2 caps its scores inside the attention, which ours would silently leave out."""
    config = hf.Gemma2Config(
        vocab_size=304,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    assert "softcap" in refusal(tiny.save(hf.Gemma2ForCausalLM(config), tmp_path))


@pytest.mark.parametrize("source", ["nowhere/at-all", "./no-such-folder", "gemma"])
def test_a_source_that_is_no_model_is_refused(source: str) -> None:
    with pytest.raises(UnsupportedModel, match="no model can be read"):
        load("m", ModelConfig(source=source))


def test_a_device_that_is_not_there_is_refused(tiny_folder: Folder) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "'cuda' is not available" in refusal(tiny_folder("llama"), device="cuda")


# ----------------------------------------------------------------------------------------------------- the self-test


def _no_positions(self: Any, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor:
    return _CALL(self, tokens, torch.zeros_like(positions), step, rows)


def _shifted_tokens(self: Any, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor:
    return _CALL(self, tokens.roll(1), positions, step, rows)


def _not_a_number(self: Any, tokens: Tensor, positions: Tensor, step: Step, rows: Tensor) -> Tensor:
    return _CALL(self, tokens, positions, step, rows) * float("nan")


_CALL = Stack.__call__


@pytest.mark.parametrize("broken", [_no_positions, _shifted_tokens, _not_a_number])
def test_the_self_test_catches_a_broken_forward(
    broken: Any, tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stack, "__call__", broken)
    assert "self-test" in refusal(tiny_folder("llama"))


def test_the_self_test_catches_a_broken_layer(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture taken for one of the checked families although its layer differs: Gemma without its offset."""
    monkeypatch.setattr(blueprint, "_SANDWICH", frozenset())
    assert "self-test" in refusal(tiny_folder("gemma3"))


def test_the_self_test_catches_a_window_off_by_one(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, by=1)
    assert "self-test" in refusal(tiny_folder("gemma3"))


def test_the_self_test_catches_lost_cache(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values that are not kept: right within a piece, wrong over two."""
    write = Storage.write

    def forget(self: Storage, layer: int, rows: Tensor, kv: Tensor) -> None:
        self.pools[layer].zero_()
        write(self, layer, rows, kv)

    monkeypatch.setattr(Storage, "write", forget)
    assert "self-test" in refusal(tiny_folder("llama"))


def test_the_self_test_passes_what_is_right(tiny_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control of the four above: how far from its bound an unbroken model is."""
    monkeypatch.setitem(self_test._BOUND, torch.float32, 2e-5)
    for kind in KINDS:
        load(kind, ModelConfig(source=str(tiny_folder(kind)), dtype="float32"))
