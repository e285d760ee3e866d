"""The trainers of drafts and acceptance heads: gradients, labels, resumption, and the whole way on a tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab.bench.data import read_rows
from trimtab.bench.record import load as load_results
from trimtab.bench.training import rollout as rollouts
from trimtab.bench.training.corpus import Corpus, choose_ids
from trimtab.bench.training.draft import evaluate
from trimtab.bench.training.head import cumulated, reliability, soft_bce
from trimtab.bench.training.instructions import beginnings, opened_user_turn
from trimtab.bench.training.loop import Settings, train
from trimtab.bench.training.losses import LOSSES, Sparse, Totals, distil
from trimtab.bench.training.prompts import read_source
from trimtab.bench.training.rollout import Ask, Rollout, Trace
from trimtab.bench.training.shards import read_traces, write_traces
from trimtab.bench.training.workflow import DraftOptions, HeadOptions, make_draft, make_head
from trimtab.decode.commands import main
from trimtab.decode.config import ModelConfig
from trimtab.decode.errors import InvalidRequest, UnsupportedModel
from trimtab.decode.models.draft import assemble, read_draft
from trimtab.decode.models.load import LoadedModel, load
from trimtab.decode.request.prompt import ChatMessage
from trimtab.decode.text.templates import PromptTemplate

Folder = Callable[..., Path]
PROMPTS = [f"the ring of the {word} and then" for word in ("one", "red", "heat", "thing", "nation", "ends", "answer")]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums in a fixed order, so that equal runs are equal to the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def target(tiny_folder: Folder) -> LoadedModel:
    return load("target", ModelConfig(source=str(tiny_folder("llama")), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def traces(target: LoadedModel) -> list[Trace]:
    template = PromptTemplate(target.vocabulary)
    asks = [Ask(i, tuple(template.encode((ChatMessage("user", p),))), float(i % 2)) for i, p in enumerate(PROMPTS)]
    return list(Rollout(target, slots=3, max_new_tokens=12, max_prompt_tokens=64).run(asks))


def prompts_file(folder: Path, name: str = "asked.jsonl", prompts: Sequence[str] = PROMPTS) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps({"prompt": p, "split": "tune"}) + "\n" for p in prompts), encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_and_its_gradient_are_those_of_autograd(kind: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(300, 16, dtype=torch.float64, generator=generator).requires_grad_()
    head = torch.randn(40, 16, dtype=torch.float64, generator=generator)
    p = torch.softmax(3 * torch.randn(300, 40, generator=generator), -1)
    kept = p > 0.03  # also leaves some rows without any entry
    row, column = kept.nonzero(as_tuple=True)
    starts = torch.searchsorted(row, torch.arange(301))
    totals = Totals()
    loss = distil(hidden, head, Sparse(starts, column, p[row, column], p.argmax(-1)), kind, totals)
    (found,) = torch.autograd.grad(loss, hidden)
    q = torch.softmax(hidden @ head.T, -1)
    known = (p * kept).double()
    accepted = torch.minimum(known, q).sum(-1)
    expected = {"kl": -(known * q.log()).sum(-1), "tv": 1 - accepted, "nla": -(accepted + 1e-6).log()}[kind].mean()
    (gradient,) = torch.autograd.grad(expected, hidden)
    accepted = accepted.detach()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=1e-6 * float(gradient.abs().max()))
    assert totals.means()["acceptance"] == pytest.approx(float(accepted.mean()), rel=1e-5)
    assert totals.means()["agreement"] == pytest.approx(float((q.argmax(-1) == p.argmax(-1)).float().mean()))
    assert totals.means()["missing"] == pytest.approx(float((1 - known.sum(-1)).mean()), rel=1e-4)


def test_an_unknown_loss_is_named() -> None:
    empty = Sparse(torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
    with pytest.raises(InvalidRequest, match=r"loss = 'l2': accepted: one of kl, tv, nla"):
        distil(torch.zeros(0, 4), torch.zeros(8, 4), empty, "l2", Totals())  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------------- rollout


def test_recorded_distributions_are_the_targets_own(traces: list[Trace], tiny: Any) -> None:
    model = tiny.make("llama")
    assert sorted(trace.ask.index for trace in traces) == list(range(len(PROMPTS)))
    for trace in traces:
        count = len(trace.tokens) - len(trace.ask.prompt)
        assert 0 < count <= 12
        assert len(trace.starts) == count + 1
        with torch.inference_mode():
            logits = model(torch.from_numpy(trace.tokens[None].astype(np.int64))).logits[
                0, len(trace.ask.prompt) - 1 : -1
            ]
        expected = torch.log_softmax(logits.float(), -1)
        for i in range(count):
            own = slice(trace.starts[i], trace.starts[i + 1])
            known = torch.full_like(expected[i], float("-inf"))
            known[torch.from_numpy(trace.ids[own].astype(np.int64))] = torch.from_numpy(
                trace.log_probs[own].astype("f4")
            )
            seen = known > float("-inf")
            torch.testing.assert_close(known[seen], expected[i][seen], rtol=0, atol=0.02)
            assert float(expected[i][~seen].exp().max()) < 1.1 * rollouts.FLOOR
            if trace.ask.temperature == 0:
                assert int(trace.tokens[len(trace.ask.prompt) + i]) == int(expected[i].argmax())


def test_answers_do_not_depend_on_what_else_is_written(target: LoadedModel, traces: list[Trace]) -> None:
    asks = [trace.ask for trace in traces]
    alone = {t.ask.index: t for ask in asks[:3] for t in Rollout(target, slots=1, max_new_tokens=12).run([ask])}
    together = {trace.ask.index: trace for trace in traces}
    for index, trace in alone.items():
        assert trace.tokens.tolist() == together[index].tokens.tolist()
    other = list(Rollout(target, slots=3, max_new_tokens=12, seed=1).run(asks))
    sampled = [t for t in other if t.ask.temperature > 0]
    assert any(t.tokens.tolist() != together[t.ask.index].tokens.tolist() for t in sampled)


def test_sampled_tokens_follow_the_targets_distribution(target: LoadedModel) -> None:
    prompt = tuple(target.vocabulary.encode("the ring", True))
    asks = [Ask(i, prompt, 1.0) for i in range(3000)]
    found = list(Rollout(target, slots=500, max_new_tokens=1).run(asks))
    counts = np.bincount([int(trace.tokens[-1]) for trace in found], minlength=target.vocab_size)
    p = np.zeros(target.vocab_size)
    p[found[0].ids] = np.exp(found[0].log_probs.astype(np.float64))

    def statistic(p: np.ndarray[Any, Any]) -> float:
        likely = p > 0.005
        expected = np.append(p[likely], 1 - p[likely].sum()) * len(found)
        seen = np.append(counts[likely], counts[~likely].sum())
        return float(((seen - expected) ** 2 / expected).sum() / len(expected))

    assert statistic(p) < 2
    assert statistic(np.roll(p, 1)) > 2  # what an off-by-one would look like


def test_prompts_that_do_not_fit_are_named(target: LoadedModel) -> None:
    with pytest.raises(InvalidRequest, match=r"prompt\[5\] = 9: accepted: 1 to 8 tokens"):
        list(Rollout(target, slots=1, max_prompt_tokens=8).run([Ask(5, (1,) * 9, 0.0)]))


def test_traces_survive_the_disk(traces: list[Trace], tmp_path: Path) -> None:
    write_traces(tmp_path, traces[:4])
    path = write_traces(tmp_path, traces[4:])
    for before, after in zip(traces, read_traces(tmp_path), strict=True):
        assert before.ask == after.ask
        for name in ("tokens", "starts", "ids", "log_probs"):
            np.testing.assert_array_equal(getattr(before, name), getattr(after, name))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidRequest, match=r"traces = 'traces-00001.safetensors'"):
        list(read_traces(tmp_path))


# --------------------------------------------------------------------------------------------------------------- corpus


def test_kept_ids_are_the_likely_ones_with_bytes_and_ends(traces: list[Trace], target: LoadedModel) -> None:
    vocabulary = target.vocabulary
    ids = choose_ids(traces, vocabulary, target.vocab_size, 280)
    assert bool((ids.diff() > 0).all())
    kept = set(ids.tolist())
    assert set(vocabulary.eos_token_ids) <= kept
    assert {i for i in range(vocabulary.size) if len(vocabulary.piece(i)) == 1} <= kept
    mass = np.zeros(target.vocab_size)
    for trace in traces:
        np.add.at(mass, trace.ids, np.exp(trace.log_probs.astype(np.float32)))
    left = [i for i in range(target.vocab_size) if i not in kept]
    free = [i for i in kept if len(vocabulary.piece(i)) != 1 and i not in vocabulary.eos_token_ids]
    assert max(mass[left]) <= min(mass[free])
    with pytest.raises(InvalidRequest, match=r"ids = 10: accepted: \d+ to 304"):
        choose_ids(traces, vocabulary, target.vocab_size, 10)
    with pytest.raises(InvalidRequest, match="answers = 0"):
        choose_ids([], vocabulary, target.vocab_size, 280)


def test_every_epoch_has_every_example_once(traces: list[Trace], target: LoadedModel) -> None:
    corpus = Corpus(traces, torch.arange(target.vocab_size), target.vocab_size, 64, 0)
    wanted = sorted(tuple(t.tokens[len(t.ask.prompt) :].tolist()) for t in traces)
    sizes = []
    number = 0
    for _ in range(3):
        seen: list[int] = []
        while len(seen) < corpus.answer_tokens:
            seen += corpus.batch(number).drawn.tolist()
            number += 1
        assert sorted(seen) == sorted(token for answer in wanted for token in answer)
        sizes.append(seen)
    assert sizes[0] != sizes[1]  # in an order of its own
    again = corpus.batch(0)
    torch.testing.assert_close(again.tokens, Corpus(traces, torch.arange(304), 304, 64, 0).batch(0).tokens)


def test_the_targets_own_layers_draft_perfectly(traces: list[Trace], target: LoadedModel, tiny: Any) -> None:
    """All layers and all ids are the target itself: every label, position and column must then agree."""
    model = tiny.make("llama")
    ids = torch.arange(target.vocab_size)
    draft = assemble(model, (0, 1, 2), ids)
    means = evaluate(draft, Corpus(traces, ids, 304, 64, 0), torch.float32)[""].means()
    assert means["acceptance"] > 0.97
    assert means["agreement"] == 1
    wrong = evaluate(assemble(model, (0, 2, 1), ids), Corpus(traces, ids, 304, 64, 0), torch.float32)[""].means()
    assert wrong["acceptance"] < 0.9


# ----------------------------------------------------------------------------------------------------------------- loop


def small_run(folder: Path, settings: Settings, stop_after: int | None = None) -> torch.nn.Linear:
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 3)
    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))

    def step(number: int) -> tuple[torch.Tensor, dict[str, float]]:
        x = data[number % 8 * 8 :][:8]
        return (module(x) - x[:, :3].roll(1, -1)).square().mean(), {"half": 0.5}

    train(module, step, settings, folder, name="small", made={"kind": "small"}, stop_after=stop_after)
    return module


def test_a_resumed_run_is_the_run_that_was_not_cut(tmp_path: Path) -> None:
    settings = Settings(steps=30, learning_rate=0.05, log_every=4)
    whole = small_run(tmp_path / "whole", settings)
    for _ in range(3):
        cut = small_run(tmp_path / "cut", settings, stop_after=11)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = read_rows(tmp_path / "whole" / "curve.jsonl")
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
    other = small_run(tmp_path / "other", replace(settings, learning_rate=0.04))
    assert not torch.equal(other.weight, whole.weight)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    settings = Settings(steps=3, learning_rate=0.05)
    small_run(tmp_path, settings)
    with pytest.raises(InvalidRequest, match=r"out = .*steps.*3.*another folder"):
        small_run(tmp_path, replace(settings, steps=4))


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("warmup", 1.0), ("clip", -1.0)],
)
def test_settings_out_of_range_are_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name):
        Settings(**{"steps": 1, "learning_rate": 0.1, name: value})


# ----------------------------------------------------------------------------------------------------------------- head


def test_soft_bce_is_least_at_the_labels_unless_weighted() -> None:
    labels = torch.tensor([0.1, 0.5, 0.9])
    best = torch.logit(labels)
    for shift in (-0.3, 0.3):
        assert float(soft_bce(best, labels)) < float(soft_bce(best + shift, labels))
    assert float(soft_bce(best - 0.3, labels, 6.0)) < float(soft_bce(best, labels, 6.0))


def test_reliability_of_calibrated_and_of_shifted_predictions() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.rand(40_000, generator=generator)
    happened = (torch.rand(40_000, generator=generator) < predicted).float()
    table = reliability(predicted, happened)
    assert sum(row[0] for row in table.rows) == 40_000
    assert table.error < 0.015
    assert reliability((predicted + 0.2).clamp_max(1), happened).error > 0.1


def test_products_stay_inside_a_text() -> None:
    text = torch.tensor([0, 0, 0, 1, 1, 2])
    values = torch.tensor([0.5, 0.5, 1.0, 0.25, 1.0, 1.0])
    found, _ = cumulated(values, values, text, 2)
    assert found.tolist() == [0.25, 0.5, 0.25]


# -------------------------------------------------------------------------------------------------------------- prompts


def test_data_files_are_given_as_path_split_times_limit(tmp_path: Path) -> None:
    path = prompts_file(tmp_path)
    assert read_source(f"{path}@tune*3#2") == ("asked", PROMPTS[:2], 3)
    assert read_source(str(path)) == ("asked", PROMPTS, 1)
    assert read_source(f"{path}#1-3") == ("asked", PROMPTS[1:3], 1)
    for spec, accepted in (
        (f"{path}@report", "split"),
        (f"{path}*0", "data.times"),
        *((f"{path}#{limit}", "data.limit") for limit in ("x", "3-1", "2-2", "-3", "1-", "x-3")),
    ):
        with pytest.raises(InvalidRequest, match=accepted):
            read_source(spec)
    path.write_text("{broken\n", encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"asked.jsonl:1"):
        read_source(str(path))


def test_an_open_user_turn_ends_where_the_message_would_begin(target: LoadedModel) -> None:
    template = PromptTemplate(target.vocabulary)
    before, after = opened_user_turn(template)
    assert before + "Why?" + after == template.text((ChatMessage("user", "Why?"),))
    assert beginnings(50, 0) == beginnings(50, 0) != beginnings(50, 1)


# -------------------------------------------------------------------------------------------------------- the whole way


def options(folder: Path, target: Path, **changes: Any) -> DraftOptions:
    more = prompts_file(folder, "more.jsonl", [f"{a} {b}" for a in PROMPTS[:3] for b in "abcdefg"])
    data = (f"{prompts_file(folder)}*2", str(more))
    held_out = (str(prompts_file(folder, "held.jsonl")),)
    given: dict[str, Any] = {"target": str(target), "out": folder / "work", "data": data, "held_out": held_out}
    given |= {"own_prompts": 6, "answer_tokens": 10, "slots": 4, "layers": (0, 2), "ids": 280, "warm_steps": 5}
    given |= {"steps": 40, "batch_tokens": 256, "learning_rate": 3e-3, "dtype": "float32", "prompt_tokens": 128}
    return DraftOptions(**{**given, **changes})


def test_a_draft_and_its_head_from_end_to_end(tiny_folder: Folder, tmp_path: Path) -> None:
    asked = options(tmp_path, tiny_folder("llama"))
    recorder = make_draft(asked)
    curve = [row for row in read_rows(tmp_path / "work/draft-run/curve.jsonl") if "acceptance" in row]
    assert curve[-1]["acceptance"] > curve[0]["acceptance"] + 0.02
    assert {"all", "held", "held, greedy", "held, sampled"} == {row.case for row in recorder.rows}
    heads = make_head(HeadOptions(out=tmp_path / "work", blocks=1, width=16, steps=20, compare=True))
    assert {"bce", "ece", "drawn_bce", "greedy_ece"} <= {row.metric for row in heads.rows}
    assert len({row.subject for row in heads.rows if row.case == "held out"}) == 8
    draft = load("draft", ModelConfig(source=str(tmp_path / "work/draft"), role="draft", dtype="float32"))
    assert draft.draft_ids is not None
    assert draft.acceptance is not None
    assert len(draft.draft_ids) == 280


def test_the_commands_record_and_print(
    tiny_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # where bench/results is, unless --results says something else
    data = prompts_file(tmp_path, "more.jsonl", [f"{a} {b}" for a in PROMPTS[:3] for b in "abcdefg"])
    held_out = prompts_file(tmp_path, "held.jsonl")
    words = ["bench", "train-draft", "--target", str(tiny_folder("llama")), "--out", "work", "--data", str(data)]
    words += ["--held-out", str(held_out), "--answer-tokens", "10", "--slots", "4", "--ids", "280", "--steps", "2"]
    assert main([*words, "--batch-tokens", "256", "--dtype", "float32"]) == 0
    assert main(["bench", "train-head", "--out", "work", "--width", "16", "--steps", "2"]) == 0
    printed = capsys.readouterr().out
    for bench, column in (("draft_training", "same first token"), ("head_training", "BCE, drawn token")):
        assert {row.bench for row in load_results(Path(f"bench/results/{bench}.jsonl"))} == {bench}
        assert column in printed


def test_a_draft_is_the_same_however_often_its_training_was_cut(tiny_folder: Folder, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "cut")]
    cut: list[list[int | None]] = [[None], [15, 15, None]]
    weights = []
    for folder, stops in zip(folders, cut, strict=True):
        folder.mkdir()
        for stop in stops:
            make_draft(options(folder, tiny_folder("llama"), stop_after=stop, own_prompts=0, held_out=()))
        found = read_draft(folder / "work/draft")
        assert found is not None
        weights.append(found.weights)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_what_training_cannot_use_is_named(tiny_folder: Folder, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="data = "):
        make_draft(DraftOptions(target="x", out=tmp_path))
    with pytest.raises(InvalidRequest, match="out = "):
        make_head(HeadOptions(out=tmp_path))
    with pytest.raises(UnsupportedModel, match=r"layers \[7\] asked for; accepted: 0 to 2"):
        make_draft(options(tmp_path, tiny_folder("llama"), layers=(7,), own_prompts=0))
    with pytest.raises(InvalidRequest, match="more = "):
        make_draft(options(tmp_path, tiny_folder("llama"), more=(tmp_path / "nothing",), own_prompts=0))


def test_texts_of_other_runs_are_learned_from_too(
    tiny_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learned = {}
    for name, more in (("first", ()), ("second", (tmp_path / "first/work",))):
        (tmp_path / name).mkdir()
        asked = options(tmp_path / name, tiny_folder("llama"), more=more, seed=len(more), own_prompts=0, steps=1)
        learned[name] = make_draft(asked).rows[0].settings
    assert learned["second"]["texts"] > 1.5 * learned["first"]["texts"]
    counts = []
    for more in ((), (tmp_path / "first/work",)):
        shutil.rmtree(tmp_path / "second/work/head-run", ignore_errors=True)  # which another head's training is in
        make_head(HeadOptions(out=tmp_path / "second/work", more=more, blocks=1, width=16, steps=1))
        counts.append(int(capsys.readouterr().err.rsplit("training on ")[-1].split()[0]))
    assert counts[1] > counts[0]
