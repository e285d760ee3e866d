"""The trainer of reward models, end to end on a tiny random model: it learns, it resumes, the engine reads it."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from trimtab.bench.record import load as load_results
from trimtab.bench.training import reward as trainer
from trimtab.bench.training.bag_of_words import BagOfWords, pair_loss
from trimtab.bench.training.preferences import (
    Answered,
    Scores,
    choose,
    correlation,
    pair_accuracy,
    read_preferences,
)
from trimtab.bench.training.reward import Options, train_reward
from trimtab.bench.training.reward_table import reward_table
from trimtab.bench.training.states import States, lower, upper
from trimtab.decode.commands import main
from trimtab.decode.errors import InvalidRequest

GOOD, BAD = ("north", "ships", "then"), ("rains", "muddy", "rock")  # of like lengths


def rows(seed: int = 0, instructions: int = 10, answers: int = 6) -> list[dict[str, Any]]:
    """Answers that are liked for the good words in them; longer ones are no better."""
    draw = random.Random(seed)
    found = []
    for k in range(instructions):
        for a in range(answers):
            good = draw.randrange(5)
            words = [draw.choice(GOOD) for _ in range(good)] + [draw.choice(BAD) for _ in range(4 - good)]
            draw.shuffle(words)
            row = {"instruction": f"question {k} of {seed}?", "generator": f"model-{a}", "output": " ".join(words)}
            found.append({**row, "preference": good / 4, "split": "report" if k % 3 == 2 else "tune"})
    return found


def write(path: Path, data: Sequence[dict[str, Any]]) -> Path:
    lines = "".join(json.dumps(row) + "\n" for row in data)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def options(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Options]:
    data = write(tmp_path_factory.mktemp("data") / "preferences.jsonl.gz", rows(instructions=33))

    def make(**changes: Any) -> Options:
        given: dict[str, Any] = {
            "data": data,
            "out": tmp_path_factory.mktemp("reward"),
            "source": str(tiny_folder("llama")),
            "layers": 2,
            "answer_tokens": 40,
            "beginnings": 0,
            "pooling": "last",
            "unseen": 1,
            "epochs": 6.0,
            "group": 5,
            "learning_rate": 3e-3,
            "quick": True,
        }
        return Options(**{**given, **changes})

    return make


@pytest.fixture(scope="module")
def trained(options: Callable[..., Options]) -> tuple[Options, Any]:
    made = options()
    return made, train_reward(made)


def figure(recorder: Any, case: str, subject: str, metric: str = "pair accuracy") -> float:
    (row,) = (r for r in recorder.rows if (r.case, r.subject, r.metric) == (case, subject, metric))
    return float(row.value)


def curve(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "training" / "curve.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_it_learns_what_is_liked(trained: tuple[Options, Any]) -> None:
    made, recorder = trained
    losses = [line["loss"] for line in curve(made.out) if "loss" in line]
    assert losses[-1] < losses[0] - 0.02
    assert figure(recorder, "all generators", "reward model") > 0.75
    assert figure(recorder, "unseen generators", "reward model") > 0.65
    assert 0.3 < figure(recorder, "all generators", "longer answer") < 0.7
    assert figure(recorder, "all generators", "bag of words") > 0.8
    assert abs(figure(recorder, "all generators", "reward model", "correlation with length")) < 0.7


def test_results_are_recorded_rows(trained: tuple[Options, Any], tmp_path: Path) -> None:
    _, recorder = trained
    found = load_results(recorder.save(tmp_path))
    assert [row.to_json() for row in found] == [row.to_json() for row in recorder.rows]
    assert found[0].settings["unseen"] == random.Random(0).sample([f"model-{i}" for i in range(6)], 1)
    assert all(row.low <= row.value <= row.high for row in found if row.low is not None and row.high is not None)


def test_the_command_records_and_prints(options: Callable[..., Options], capsys: Any, tmp_path: Path) -> None:
    made = options()
    words = ["bench", "train-reward", "--data", str(made.data), "--out", str(tmp_path / "out"), "--source", made.source]
    words += ["--layers", "1", "--instructions", "4", "--report-instructions", "3", "--answers", "3", "--unseen", "1"]
    assert main([*words, "--results", str(tmp_path), "--quick"]) == 0
    found = load_results(tmp_path / "reward_training.jsonl")
    beginning = "the same, of the first 32 tokens"
    assert {row.subject for row in found} == {"reward model", beginning, "longer answer", "bag of words"}
    assert all(row.quick for row in found)
    table = "\n".join(reward_table(found))
    assert table in capsys.readouterr().out
    assert "| **reward model** |" in table
    assert f"{100 * found[0].value:.1f} %" in table
    assert main(["bench", "train-reward", "--data", str(tmp_path / "none.jsonl")]) != 0
    assert "none.jsonl" in capsys.readouterr().err


def test_the_engine_reads_what_was_trained(trained: tuple[Options, Any]) -> None:
    """The folder is an ordinary classifier, and its ratings are those of the trained part over the states below."""
    made, _ = trained
    check_against_transformers(made)


def test_a_head_may_read_all_tokens_of_the_answer(options: Callable[..., Options]) -> None:
    made = options(pooling="mean")
    train_reward(made)
    check_against_transformers(made)


def check_against_transformers(made: Options) -> None:
    import transformers as hf

    learned = choose([r for r in read_preferences(made.data) if r.split == "report"], None, None, 1)
    vocabulary = trainer._vocabulary(made.source)
    by_engine = trainer._scored(made, learned, vocabulary)
    model = hf.AutoModelForSequenceClassification.from_pretrained(made.out / "model", dtype=torch.float32).eval()
    assert model.config.id2label == {0: "reward"}
    with torch.inference_mode():
        expected = []
        for ids, read in zip(*trainer._tokens(made, learned), strict=True):
            scores = model.score(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0, :, 0]
            expected.append(float(scores[-read:].mean()))
    spread = torch.tensor(expected).std().item()
    assert by_engine == pytest.approx(expected, abs=0.15 * spread)  # in the weights' own dtype, perhaps bfloat16
    assert pair_accuracy(Scores(learned, by_engine)).value > 0.75


def test_a_run_cut_short_is_the_run_that_was_not(options: Callable[..., Options], trained: tuple[Options, Any]) -> None:
    whole, _ = trained
    cut = options(stop_after=0.0)
    for _ in range(30):
        if train_reward(cut) is not None:
            break
    else:
        pytest.fail("never done")
    assert curve(cut.out) == curve(whole.out)
    for name in ("model.safetensors",):
        assert (cut.out / "model" / name).read_bytes() == (whole.out / "model" / name).read_bytes()


@pytest.mark.full
def test_another_seed_is_another_run(options: Callable[..., Options], trained: tuple[Options, Any]) -> None:
    other = options(seed=1, epochs=1.0)
    train_reward(other)
    one, two = ((o.out / "model" / "model.safetensors").read_bytes() for o in (other, trained[0]))
    assert one != two


def test_beginnings_are_liked_as_the_whole(options: Callable[..., Options]) -> None:
    made = options(beginnings=2)
    rows = [r for r in read_preferences(made.data) if r.split == "tune"]
    cut = trainer._beginnings(made, rows)
    vocabulary = trainer._vocabulary(made.source)
    whole = {(row.instruction, row.generator): row for row in rows}
    lengths = []
    for row in cut:
        source = whole[row.instruction, row.generator]
        assert source.text.startswith(row.text)
        assert row.preference == source.preference
        lengths.append(len(vocabulary.encode(row.text, False, continues=True)))
    long = [r for r in rows if len(vocabulary.encode(r.text, False, continues=True)) > 8]
    assert len(cut) == 2 * len(long) > 0
    assert min(lengths) >= 8
    assert len(set(lengths)) > 3, "of all lengths"
    assert cut == trainer._beginnings(made, rows) != trainer._beginnings(options(beginnings=2, seed=1), rows)
    assert trainer._beginnings(options(beginnings=0), rows) == []


def test_states_and_trained_layers_are_the_model(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """What is cut in two gives what the whole gives; states of other sequences are refused."""
    import transformers as hf

    for kind in ("llama", "gemma3"):
        whole: Any = hf.AutoModel.from_pretrained(tiny_folder(kind)).eval().requires_grad_(False)
        sequences = [[5, 9, 40, 7, 8], [3, 100, 20], list(range(30, 60))]
        states = States(tmp_path / kind, sequences, {"model": kind})
        assert states.compute(lower(whole, 2))
        top = upper(whole, 2)
        for i, ids in enumerate(sequences):
            expected = whole(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
            found = top(inputs_embeds=states[i].float().unsqueeze(0), use_cache=False).last_hidden_state[0]
            assert torch.allclose(found, expected, atol=0.1), kind  # states are kept in bfloat16
        with pytest.raises(InvalidRequest, match="another folder"):
            States(tmp_path / kind, sequences[:2], {"model": kind})
        weight = whole.layers[0].mlp.up_proj.weight
        weight.copy_(weight.flip(0))  # the control: the lower part matters
        again = States(tmp_path / f"{kind}-changed", sequences, {})
        again.compute(lower(whole, 2))
        assert not torch.allclose(again[2], states[2], atol=0.1)


# ---------------------------------------------------------------------------------------------------------------- parts


def answered(instruction: str, generator: str, text: str, preference: float) -> Answered:
    return Answered(instruction, generator, text, preference, "report")


def test_pair_accuracy_counts_pairs_of_one_instruction() -> None:
    data = [answered("a", "x", "1", 0.9), answered("a", "y", "2", 0.5), answered("a", "z", "3", 0.1),
            answered("b", "x", "4", 0.2), answered("b", "y", "5", 0.8)]  # fmt: skip
    right = Scores(data, [3.0, 2.0, 1.0, 100.0, 101.0])
    assert pair_accuracy(right).value == 1
    assert pair_accuracy(right).pairs == 4
    wrong = Scores(data, [-v for v in right.values])
    assert pair_accuracy(wrong).value == 0
    assert pair_accuracy(Scores(data, [0.0] * 5)).value == 0.5
    assert pair_accuracy(right, margin=0.45).pairs == 2
    seen, new = (pair_accuracy(right, unseen=["z"], which=which).pairs for which in ("seen", "unseen"))
    assert (seen, new) == (2, 2)
    with pytest.raises(InvalidRequest, match="unseen pairs"):
        pair_accuracy(right, which="unseen")


def test_correlation_is_within_instructions() -> None:
    data = [answered(i, g, "", 0.5) for i in "ab" for g in "wxyz"]
    assert correlation(Scores(data, [1, 2, 3, 4, 40, 30, 20, 10]), [1, 2, 3, 4, 5, 6, 7, 8]) == pytest.approx(0)
    assert correlation(Scores(data, [1, 2, 3, 4, 1, 5, 6, 7]), [1, 2, 3, 9, 5, 6, 7, 80]) == pytest.approx(1)


def test_the_loss_is_least_at_the_preferences_themselves() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0])
    best = pair_loss(logits, logits)
    assert pair_loss(logits + 7, logits) == pytest.approx(float(best), abs=1e-6)
    for change in ([0.3, 0, 0], [0, -0.2, 0.1], [0, 0, 1]):
        assert pair_loss(logits + torch.tensor(change), logits) > best
    assert pair_loss(-logits, logits) > pair_loss(torch.zeros(3), logits) > best


def test_the_bag_of_words_knows_words_only() -> None:
    data = [answered(f"i{k}", f"g{j}", "", j / 3) for k in range(6) for j in range(4)]
    tokens = [[7] * j + [9] * (3 - j) + [k] for k in range(6) for j in range(4)]
    bag = BagOfWords(data, tokens, 12)
    values = bag.rate([[7, 7, 7], [7, 9, 9], [9, 9, 9], [11, 11], [9, 9, 7]])
    assert values[0] > values[1] > values[2]
    assert values[3] == 0
    assert values[4] == values[1]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", r"p\.jsonl:2 = .*JSON"),
        ('{"instruction": "a", "generator": "b", "output": "c", "split": "tune"}', r"p\.jsonl:2\.preference"),
        ('{"instruction": "a", "generator": "b", "output": 3, "split": "tune", "preference": 1}', r"p\.jsonl:2"),
        (
            '{"instruction": "a", "generator": "b", "output": "c", "split": "tune", "preference": 1.5}',
            "preference = 1.5",
        ),
    ],
)
def test_bad_rows_are_named(line: str, named: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", rows()[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(InvalidRequest, match=named):
        read_preferences(path)


def test_bad_data_and_options_are_named(options: Callable[..., Options], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"data = 'none\.jsonl'"):
        read_preferences(tmp_path / "none.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}' * 100)[:20])
    with pytest.raises(InvalidRequest, match=r"cut\.jsonl\.gz"):
        read_preferences(tmp_path / "cut.jsonl.gz")
    with pytest.raises(InvalidRequest, match="unseen = 6: accepted: less than the 6"):
        train_reward(options(unseen=6))
    with pytest.raises(InvalidRequest, match="layers = 3: accepted: less than the 3 that are kept"):
        train_reward(options(layers=3))
    for depth in (1, 4):
        with pytest.raises(InvalidRequest, match=f"depth = {depth}: accepted: 2 to 3"):
            train_reward(options(depth=depth))
    with pytest.raises(InvalidRequest, match="group = 1"):
        options(group=1)
    lonely = write(tmp_path / "lonely.jsonl", [row for row in rows() if row["generator"] == "model-1"])
    with pytest.raises(InvalidRequest, match="several answers"):
        train_reward(options(data=lonely, unseen=0))
