"""The benchmark of the kernels: both sides do the same work, and its rows, table and picture say what was measured."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kernel_oracles as oracles
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench.commands import register
from trimtab.bench.kernels import clock as kernel_clock
from trimtab.bench.kernels import eager
from trimtab.bench.kernels import run as kernels
from trimtab.bench.kernels.cases import KERNELS, Work, logits
from trimtab.bench.kernels.clock import copy_rate, seconds
from trimtab.bench.kernels.names import COMPILED, COPY, EAGER, GRAPH, OURS, PLAIN, TITLES, Case, share_of
from trimtab.bench.kernels.run import Options, bench_kernels
from trimtab.bench.kernels.table import GOALS
from trimtab.bench.record import Device, Recorder, Row, latest, load
from trimtab.bench.tables import table
from trimtab.bench.timing import paired_ratio
from trimtab.decode.commands import main
from trimtab.decode.errors import InvalidRequest
from trimtab.kernels import dispatch, paths
from trimtab.kernels.types import Blend, Draft, Filters, Key, Pick, Window

CPU = torch.device("cpu")
needs_interpreter = pytest.mark.skipif("interpret" not in paths.available(CPU), reason="needs Triton's interpreter")


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def p_value(counts: np.ndarray, law: np.ndarray) -> float:
    """Of a chi-square test, by the normal approximation of its cube root (Wilson and Hilferty)."""
    expected = counts.sum() * law
    assert expected.min() > 5
    freedom = len(law) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    deviation = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return 0.5 * math.erfc(deviation / math.sqrt(2))


# --------------------------------------------------------------------- the formulas do what the kernels do


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_and_greedy_agree(dtype: torch.dtype) -> None:
    x = logits(6, 5000, dtype, CPU, 3)
    tokens = torch.arange(6)
    ours, theirs = dispatch.stats(x, tokens), eager.statistics(x, tokens)
    for mine, other in zip((ours.argmax, ours.logprob, ours.entropy, ours.top_prob), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)
    picked = dispatch.pick(x, [Pick()] * 6)
    token, logprob, entropy, top = eager.greedy(x)
    assert torch.equal(picked.token, token)
    for mine, other in zip(
        (picked.stats.logprob, picked.stats.entropy, picked.stats.top_prob), (logprob, entropy, top), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 1.0), (0.8, 0.9), (1.0, 0.5)])
def test_both_draw_from_one_law(temperature: float, top_p: float) -> None:
    x = normal(4, 300)

    def ours(top_p: float) -> torch.Tensor:
        row = Pick(Filters(temperature, top_p=top_p))
        found: torch.Tensor = oracles.cpu_logprobs(x, [row] * 4).exp()
        return found

    law, ids = eager.temperature_distribution(x, temperature, top_p)
    placed = law if ids is None else torch.zeros_like(law).scatter(1, ids, law)
    torch.testing.assert_close(placed, ours(top_p), rtol=1e-4, atol=1e-6)
    assert float((placed - ours(0.7 * top_p)).abs().max()) > 1e-3


def test_tokens_of_the_formulas_follow_the_law() -> None:
    count, z = 200_000, normal(1, 12, scale=1.0)
    models = [z.expand(count, -1), (z + normal(1, 12, seed=1, scale=0.5)).expand(count, -1)]
    torch.manual_seed(0)
    token, logprob, entropy, top = eager.mixed(models, (1.0, 0.5), 0.8, 0.95)
    mixture = dispatch.blend([model[:1] for model in models], [Blend((1.0, 0.5))])
    law = oracles.cpu_logprobs(mixture, [Pick(Filters(0.8, top_p=0.95))]).exp()[0].double().numpy()
    counts = np.bincount(token.numpy(), minlength=12)
    assert not counts[law == 0].any()
    kept = law > 0
    assert p_value(counts[kept], law[kept] / law.sum()) > 1e-4
    warmer = oracles.cpu_logprobs(mixture, [Pick(Filters(0.8 * 1.03, top_p=0.95))]).exp()[0].double().numpy()
    assert p_value(counts[kept], warmer[kept] / warmer[kept].sum()) < 1e-4, "the test can't tell a wrong temperature"
    whole = dispatch.stats(mixture)
    assert float(entropy[0]) == pytest.approx(float(whole.entropy[0]), abs=1e-5)
    assert float(top[0]) == pytest.approx(float(whole.top_prob[0]), abs=1e-5)
    assert float(logprob[0]) == pytest.approx(float(mixture[0, token[0]] - whole.lse[0]), abs=1e-5)


def test_masked_mixtures_agree() -> None:
    models = [normal(5, 400, seed=seed) for seed in range(3)]
    weights = (1.0, 0.6, -0.4)
    _, _, entropy, top = eager.plausible(models, weights, 0.1)
    found = dispatch.mix(models, [Blend(weights, plausibility=0.1)] * 5, [Pick()] * 5)
    torch.testing.assert_close(entropy, found.stats.entropy, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(top, found.stats.top_prob, rtol=1e-4, atol=1e-5)


def test_speculative_sampling_of_the_formula_is_exact_and_accepts_as_often() -> None:
    count, size, drafted = 100_000, 9, 2
    target, draft = normal(drafted + 1, size, scale=1.0), normal(drafted, size, seed=1, scale=1.0)
    torch.manual_seed(1)
    tokens = torch.multinomial(draft.softmax(-1), count, replacement=True).T.contiguous()
    accepted, token, logprob, entropy = eager.verified(
        target.expand(count, -1, -1), draft.expand(count, -1, -1), tokens
    )
    first = torch.where(accepted > 0, tokens[:, 0], token)
    p, q = target.double().softmax(-1).numpy(), draft.double().softmax(-1).numpy()
    assert p_value(np.bincount(first, minlength=size), p[0]) > 1e-4
    assert p_value(np.bincount(tokens[:, 0], minlength=size), p[0]) < 1e-4
    bonus = token[accepted == drafted]
    assert p_value(np.bincount(bonus, minlength=size), p[2]) > 1e-4
    stands = np.minimum(p[:2], q).sum(-1)
    expected = stands[0] * (1 + stands[1])
    assert float(accepted.double().mean()) == pytest.approx(expected, abs=0.02)
    picks = [[Pick(Filters(1.0), Key(i), j) for j in range(drafted + 1)] for i in range(2000)]
    windows = [Window(tokens[i].tolist(), picks[i], Draft(draft, picks[i][:-1])) for i in range(2000)]
    ours = dispatch.verify(target.repeat(2000, 1), windows)
    assert float(ours.accepted.double().mean()) == pytest.approx(expected, abs=0.1)
    torch.testing.assert_close(entropy[0], ours.stats.entropy[: drafted + 1], rtol=1e-5, atol=1e-5)
    assert float(logprob[0, 1]) == pytest.approx(math.log(p[1][tokens[0, 1]]), abs=1e-5)


# ------------------------------------------------------------------------------------------------- what is timed


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_runs_and_is_recorded(name: str) -> None:
    """By the dispatcher, and with other draws in other calls."""
    work = KERNELS[name](3, 700, torch.bfloat16, CPU, 0)
    with paths.record() as calls:
        found = [work.ours(i) for i in range(8)]
    assert {call.path for call in calls} == {"torch"}
    work.formula(*work.inputs)
    tokens = {tuple(answer.token.tolist()) for answer in found if hasattr(answer, "token")}
    assert len(tokens) > 1 or name in ("stats", "greedy")


@needs_interpreter
@pytest.mark.parametrize("name", KERNELS)
def test_what_a_graph_would_hold_is_the_same_call(name: str) -> None:
    """The launches alone, through the interpreter, draw the tokens of the whole call."""
    work = KERNELS[name](2, 300, torch.float32, CPU, 1)
    ours: Any = work.ours(0)
    for _ in range(2):
        found: Any = work.captured()
    if name == "stats":
        torch.testing.assert_close(found[0][1], ours.entropy, rtol=1e-5, atol=1e-5)
    elif name == "verify":
        assert torch.equal(found[1], ours.token)
        assert torch.equal(found[0], ours.accepted)
    else:
        assert torch.equal(found[1][0], ours.token)


def test_bytes_are_those_that_must_be_read() -> None:
    def read(name: str, dtype: torch.dtype = torch.bfloat16) -> int:
        return KERNELS[name](5, 640, dtype, CPU, 0).read

    one = 5 * 640 * 2
    assert read("stats") == read("top-p") == one
    assert read("stats", torch.float32) == 2 * one
    assert (read("mixture"), read("mix3")) == (2 * one, 3 * one)
    assert read("verify") == 7 * one  # five rows of the target, and one more of it and of the draft


def test_logits_are_like_a_language_models() -> None:
    found = dispatch.stats(logits(200, 20_000, torch.bfloat16, CPU, 0)).entropy
    assert 1 < float(found.median()) < 4
    assert torch.equal(logits(3, 50, torch.float32, CPU, 5), logits(3, 50, torch.float32, CPU, 5))
    assert not torch.equal(logits(3, 50, torch.float32, CPU, 5), logits(3, 50, torch.float32, CPU, 6))


# ---------------------------------------------------------------------------------------------------------- clocks


class Clock:
    """Time that passes in calls alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: dict[str, list[int]] = {}
        monkeypatch.setattr(kernel_clock, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def call(self, name: str, takes: float) -> Callable[[int], None]:
        def run(i: int) -> None:
            self.calls.setdefault(name, []).append(i)
            self.now += takes

        return run


def test_seconds_are_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    runs = {"slow": clock.call("slow", 0.02), "fast": clock.call("fast", 0.0021)}
    found = seconds(runs, 5, 60.0, CPU)
    assert found == {"slow": pytest.approx([0.02] * 5), "fast": pytest.approx([0.0021] * 5)}
    rounds = 1 + 5  # one to warm up
    assert len(clock.calls["slow"]) == 2 + rounds, "single calls suffice"
    assert len(clock.calls["fast"]) == 2 + 5 * rounds, "10 ms are five of them"
    assert sorted(set(clock.calls["fast"])) == list(range(-5, 25)), "each draws anew"


@pytest.mark.parametrize(("limit", "repeats", "rounds"), [(0.001, 9, 3), (0.001, 2, 2), (60.0, 5, 5), (0.1, 9, 5)])
def test_long_cases_get_fewer_rounds_but_three(
    monkeypatch: pytest.MonkeyPatch, limit: float, repeats: int, rounds: int
) -> None:
    clock = Clock(monkeypatch)
    assert len(seconds({"a": clock.call("a", 0.0199)}, repeats, limit, CPU)["a"]) == rounds


def test_a_copy_has_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_clock, "_COPIED", 1 << 22)
    assert all(1e8 < rate < 1e13 for rate in copy_rate(CPU, 2))


# ------------------------------------------------------------------------------------------------------- the command


def run(*arguments: object) -> int:
    """The command, without the other layers."""
    plugin: Any = SimpleNamespace(name="bench", load=lambda: register)
    return main([str(argument) for argument in arguments], entry_points=[plugin])


def test_a_smoke_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_clock, "_COPIED", 1 << 22)
    assert run("bench", "kernels", "--quick", "--device", "cpu", "--threads", 1, "--results", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "mixture of 2" in shown
    assert "H200 are not measured yet" in shown
    rows = load(tmp_path / "kernels.jsonl")
    assert rows
    assert not latest(rows), "a smoke run is no result"
    assert {row.settings["device"] for row in rows} == {"cpu"}
    found = {(row.case, row.subject, row.metric): row for row in rows}
    case = str(Case("mixture", 4, 4096, "bfloat16", 1))
    ours, theirs = found[case, OURS, PLAIN], found[case, EAGER, PLAIN]
    ratio, share = found[case, f"{EAGER} / {OURS}", PLAIN], found[case, OURS, share_of(PLAIN)]
    assert (ours.repeats, ours.unit, ratio.repeats) == (3, "s", 3)
    assert ours.p20 is not None
    assert ours.p20 <= ours.value <= (ours.p80 or 0)
    assert ratio.low is not None
    assert ratio.low <= ratio.value
    assert 0.2 < ratio.value / (theirs.value / ours.value) < 5
    read = found[case, OURS, f"bytes, {PLAIN}"].value
    rate = next(row.value for row in rows if row.subject == COPY)
    assert read == 2 * 4 * 4096 * 2
    assert share.value == pytest.approx(read / ours.value / rate, rel=1e-3)


def test_threads_are_set_for_what_is_measured_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def make(*_: Any) -> Work:
        def ours(_: int) -> None:
            seen.append(torch.get_num_threads())

        return Work(ours, lambda: None, (), lambda: None, 1)

    monkeypatch.setattr(kernels, "KERNELS", {"stats": make})
    monkeypatch.setattr(kernels, "copy_rate", lambda *_: [1.0, 2.0, 3.0])
    before = torch.get_num_threads()
    recorder = bench_kernels(Options(device="cpu", kernels=("stats",), rows=(1,), vocabularies=(8,), threads=(1, 2)))
    assert list(dict.fromkeys(seen)) == [1, 2]
    assert torch.get_num_threads() == before
    assert {Case.parse(row.case).threads for row in recorder.rows} == {1, 2}


class Replay:
    """Stands for a CUDA graph: refuses what waits for the host, else takes a second for each call it holds."""

    def __init__(self, calls: list[Callable[[], object]]) -> None:
        self.answers = [call() for call in calls]
        if None in self.answers:
            raise RuntimeError("operation not permitted\nwhile capturing")

    def seconds(self, _: int) -> float:
        return float(len(self.answers))


def test_graphs_hold_every_subjects_calls(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernels, "Graph", Replay)
    x = torch.ones(2)
    case = Case("stats", 2, 8, "float32", 0)

    def works(captured: Callable[[], object], formula: Callable[..., object]) -> list[Work]:
        return [Work(lambda _: 0, formula, (x,), captured, 8)] * 3

    found = kernels._replays(case, works(lambda: 1, lambda x: x.sum().item()), lambda x: x.sum().item(), 2)
    assert found == {OURS: [3.0, 3.0], EAGER: [3.0, 3.0], COMPILED: [3.0, 3.0]}
    found = kernels._replays(case, works(lambda: 1, lambda x: None), None, 2)
    assert found == {OURS: [3.0, 3.0]}
    assert "stats, 2 x 8, float32: eager is not captured: operation not permitted\n" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="not permitted"):
        kernels._replays(case, works(lambda: None, lambda x: 1), None, 2)


@pytest.mark.gpu
@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_is_measured_on_a_gpu(name: str) -> None:
    options = Options(device="cuda", kernels=(name,), rows=(3,), vocabularies=(5008,), repeats=3, limit=1.0)
    found = {(row.subject, row.metric): row.value for row in bench_kernels(options).rows}
    for subject in (OURS, EAGER, COMPILED):
        assert 1e-6 < found[subject, GRAPH] < 1e-2
        assert found[subject, PLAIN] < 1
    assert 0 < found[OURS, share_of(GRAPH)] < 1


@pytest.mark.full
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_formulas_are_measured_too() -> None:
    options = Options(
        device="cpu", kernels=("stats",), rows=(2,), vocabularies=(64,), threads=(1,), compiled=True, repeats=1
    )
    found = {row.subject for row in bench_kernels(options).rows}
    assert {OURS, EAGER, COMPILED, f"{COMPILED} / {OURS}"} < found


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"device": "tpu"}, "device"),
        ({"kernels": ("stats", "nothing")}, "kernels"),
        ({"dtypes": ("float8",)}, "dtypes"),
        ({"rows": (0,)}, "rows"),
        ({"vocabularies": ()}, "vocabularies"),
        ({"threads": (-1,)}, "threads"),
        ({"repeats": 0}, "repeats"),
        ({"limit": float("nan")}, "limit"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        Options(**options).checked()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(InvalidRequest, match="no CUDA device"):
        Options(device="cuda").checked()


# --------------------------------------------------------------------------------------------- names, table, picture


def test_every_kernel_has_a_title_and_goals_have_kernels() -> None:
    assert set(TITLES) == set(KERNELS)
    assert {name for name, _, _ in GOALS} <= set(KERNELS)


def test_a_gpu_measures_what_has_a_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    shapes = kernels._shapes(Options().checked())
    assert set(GOALS) < set(shapes)
    assert len(shapes) == len(set(shapes)) < 45
    assert {("stats", rows, 128_256) for rows in kernels._GPU_ROWS} < set(shapes)
    assert {shape[0] for shape in kernels._shapes(Options(kernels=("verify",)).checked())} == {"verify"}
    only = kernels._shapes(Options(rows=(2,), vocabularies=(64, 32), kernels=("verify", "stats")).checked())
    assert only == [("verify", 2, 32), ("verify", 2, 64), ("stats", 2, 32), ("stats", 2, 64)]


@given(
    st.builds(
        Case,
        st.sampled_from(sorted(TITLES)),
        st.integers(1, 10**6),
        st.integers(1, 10**7),
        st.sampled_from(["bfloat16", "float32"]),
        st.integers(0, 64),
    )
)
def test_cases_are_read_back(case: Case) -> None:
    assert Case.parse(str(case)) == case


@pytest.mark.parametrize("text", ["", "stats", "stats, 1 x 2", "stats, -1 x 2, float32", "stats, 1 x 2, float32, x"])
def test_other_texts_are_no_cases(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"result\.case"):
        Case.parse(text)


def _rows(device: str, cases: dict[Case, dict[str, dict[str, list[float]]]]) -> list[Row]:
    recorder = Recorder("kernels", seed=0, dtype="bfloat16", settings={"device": device})
    recorder.spread(str(Case(COPY, 1, 1, "int8", 0)), COPY, "bandwidth", "B/s", [4.2e12])
    for case, metrics in cases.items():
        for how, found in metrics.items():
            for name, values in found.items():
                recorder.spread(str(case), name, how, "s", values)
                if name != OURS:
                    recorder.ratio(str(case), f"{name} / {OURS}", how, paired_ratio(values, found[OURS]))
            recorder.spread(str(case), OURS, share_of(how), "share", [0.5])
    return recorder.rows


def test_the_table_of_a_cpu() -> None:
    cases = {
        Case("stats", rows, 49_152, "bfloat16", threads): {PLAIN: {OURS: [rows / threads * 1e-3], EAGER: [6e-3 * rows]}}
        for rows in (1, 16)
        for threads in (1, 2)
    }
    lines = table("kernels", _rows("cpu", cases)).splitlines()
    assert lines[0] == "| kernel | vocabulary | 1 row | 16 rows |"
    assert lines[2] == "| statistics | 49,152 | 500 µs, **12.0×** (6.0×) | 8 ms, **12.0×** (6.0×) |"
    assert "in brackets on 1" in lines[4]
    assert "H200 are not measured yet" in lines[5]


def test_the_table_of_a_gpu_has_goals_beside_readings() -> None:
    case = Case("stats", 256, 151_936, "bfloat16", 0)
    other = Case("stats", 8, 151_936, "bfloat16", 0)
    times = {OURS: [20e-6], EAGER: [400e-6], COMPILED: [60e-6]}
    rows = _rows("cuda", {case: {PLAIN: {OURS: [90e-6]}, GRAPH: times}, other: {PLAIN: {OURS: [80e-6]}, GRAPH: times}})
    lines = table("kernels", rows).splitlines()
    assert lines[2] == (
        "| statistics | 256 × 151,936 | **20.0 µs** | ≤ 25 µs | 90 µs | 50 % | ≥ 72 % | 20.0× | ≥ 15× | 3.0× |"
    )
    assert lines[3] == "| statistics | 8 × 151,936 | **20.0 µs** |  | 80 µs | 50 % |  | 20.0× |  | 3.0× |"
    assert "4.20 TB/s" in lines[5]
    assert "not measured" not in "\n".join(lines)


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from trimtab.bench.kernels.plot import plot_kernels

    cases = {
        Case(name, rows, 49_152, "bfloat16", threads): {PLAIN: {OURS: [1e-3], EAGER: [2e-3]}}
        for name in ("stats", "mixture")
        for rows in (1, 16)
        for threads in (1, 2)
    }
    rows = _rows("cpu", cases)
    plot_kernels(rows, tmp_path / "deep" / "kernels.svg")
    text = (tmp_path / "deep" / "kernels.svg").read_text()
    assert "<svg" in text
    plot_kernels(rows, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").stat().st_size > 1000
    with pytest.raises(InvalidRequest, match="bench kernels"):
        plot_kernels([row for row in rows if row.subject == COPY], tmp_path / "none.png")


def test_a_row_of_another_device_reads_back() -> None:
    (row, *_) = _rows("cpu", {})
    assert Row.from_json(row.to_json()) == row
    assert isinstance(row.device, Device)
    assert dataclasses.asdict(row)["bench"] == "kernels"
