"""eval.compare: arms, pairs and the table, from files of samples alone."""

import csv
import json
import math

import pytest

from eval.accuracy.errors import EvalError
from eval.compare import __main__ as compare
from eval.compare import table
from eval.compare.arms import FULL, Arm, arms
from eval.compare.plots import pareto, plot


def rows(correct: dict[str, list[int]], held: int | None) -> list[dict]:
    # P = 20, R = 10, c = 4: T = 5; before the third compression 2 * 5 + 10 + 20 entries are held.
    method = {"interval": 20, "window": 10, "ratio": 4, "early": 0, "compressions": 3}
    receipt = None if held is None else {**method, "evicted": 100 - held, "generated": 100, "held": held}
    plain = {"answer": "1", "finish": "stop", "tokens": 100, "looping": False, "receipt": receipt, "seconds": 2.0}
    return [
        {"problem": problem, "sample": number, "correct": bool(mark), **plain}
        for problem, marks in correct.items()
        for number, mark in enumerate(marks)
    ]


@pytest.fixture
def measured(tmp_path):
    every = arms(["rpc", "random"], [64], 32, [4.0])
    solved = {
        "full": {"a": [1], "b": [1], "c": [1]},
        "rpc": {"a": [1], "b": [1], "c": [0]},
        "random": {"a": [0], "b": [0], "c": [0]},
    }
    for arm in every:
        lines = [
            {"config": {}, "said": {"commit": "1", "concurrency": 2}},
            *rows(solved[arm.policy], None if arm.policy == FULL else 40),
        ]
        (tmp_path / f"{arm.name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return every, tmp_path


def test_full_is_measured_once_and_first():
    made = arms(["rpc", "tova"], [64, 128], 32, [4.0, 8.0])
    assert [arm.name for arm in made[:3]] == ["full", "rpc-P64-R32-c4", "rpc-P64-R32-c8"]
    assert len(made) == 1 + 2 * 2 * 2
    assert len({arm.name for arm in made}) == len(made)
    assert made[0].rpc == {"enabled": False}
    assert Arm("tova", 64, 32, 8.0).rpc == {"interval": 64, "window": 32, "ratio": 8.0}


def test_differences_are_taken_problem_by_problem(measured):
    result = table.complete(*measured, ["a", "b", "c"], 1)
    full, rpc, chance = table.summary(result, table.at_once(result, measured[1]), entry_bytes=1000)
    assert (full["accuracy"], full["to_full"], full["held_share"]) == (1.0, 0.0, 1.0)
    assert rpc["accuracy"] == pytest.approx(2 / 3)
    assert rpc["to_full"] == pytest.approx(-1 / 3)
    assert rpc["to_full_error"] == pytest.approx(math.sqrt((1 / 3) / 3))  # of 0, 0, -1
    assert rpc["to_full_high"] - rpc["to_full"] == pytest.approx(1.96 / 3)
    assert (rpc["held_share"], rpc["peak_share"], rpc["tok_s"]) == (pytest.approx(0.4), pytest.approx(0.4), 100.0)
    assert (full["held_bytes"], rpc["held_bytes"], rpc["peak_bytes"]) == (100_000, 40_000, 40_000)
    assert (chance["accuracy"], chance["to_full_error"]) == (0.0, 0.0)


def test_the_table_the_file_and_the_plot(measured, tmp_path):
    samples = table.complete(*measured, ["a", "b", "c"], 1)
    result = table.summary(samples, table.at_once(samples, measured[1]), None)
    table.write(result, tmp_path / "summary.csv")
    read = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [row["arm"] for row in read] == ["full", "rpc-P64-R32-c4", "random-P64-R32-c4"]
    assert read[1]["accuracy"] == "0.666667"
    text = table.show(result)
    assert "0.667 (0.1" in text
    assert "-0.333 (-0.987, +0.320)" in text
    assert "40.0%" in text
    assert all(path.stat().st_size > 1000 for path in plot(result, tmp_path, "title"))
    table.write_problems(samples, tmp_path / "problems.csv")
    assert (tmp_path / "problems.csv").read_text().splitlines() == [
        "problem,full,rpc-P64-R32-c4,random-P64-R32-c4", "a,1,1,0", "b,1,1,0", "c,1,0,0",
    ]  # fmt: skip
    path = tmp_path / "full.jsonl"
    path.write_text(path.read_text().replace('"config": {}', '"config": {"rpc": 1}'))
    table.write_conditions(samples, tmp_path)
    said = json.loads((tmp_path / "conditions.json").read_text())
    assert said["all"] == {"commit": "1", "concurrency": 2}
    assert said["arms"]["full"] == {"rpc": 1}


def test_the_peak_is_what_stood_before_the_last_due_compression():
    (row,) = rows({"a": [1]}, 25)
    assert table.peak(row) == 2 * 5 + 10 + 20
    row["receipt"]["early"] = 3  # no due date was met: what is held at the end is all that is known
    assert table.peak(row) == 25
    row["receipt"].update(early=0, held=70)
    assert table.peak(row) == 70


@pytest.mark.parametrize(("right", "count"), [(0, 300), (1, 300), (150, 300), (299, 300), (300, 300), (2, 3)])
def test_intervals_are_wilsons(right, count):
    from scipy.stats import binomtest

    share = right / count
    error = math.sqrt(share * (1 - share) / count)
    low, high = table.wilson(share, error, count)
    told = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert (low, high) == (pytest.approx(told.low, abs=1e-4), pytest.approx(told.high, abs=1e-4))


def test_the_front_is_what_none_beats():
    def arm(name, kv, accuracy):
        return {"arm": name, "peak_share": kv, "accuracy": accuracy}

    every = [arm("full", 1.0, 1.0), arm("a", 0.4, 0.9), arm("b", 0.4, 0.5), arm("c", 0.3, 0.5), arm("d", 0.6, 0.8)]
    assert [row["arm"] for row in pareto(every)] == ["c", "a", "full"]
    assert [row["arm"] for row in pareto([arm("full", 1.0, 0.5), arm("a", 0.4, 0.5)])] == ["a"]


@pytest.fixture
def options(measured, monkeypatch):
    _, out = measured
    monkeypatch.setattr(compare.server, "running", lambda *_: 1 / 0)
    monkeypatch.setattr(compare, "_problems", lambda options: ["a", "b", "c", "d"][: options.problems])
    return compare._parser().parse_args(["--model-path", "m", "--out", str(out), "--problems", "3", "--ratios", "4"])


def test_what_is_there_is_not_measured_again(measured, options):
    compare._measure(measured[0], options)
    options.problems = 4
    with pytest.raises(ZeroDivisionError):
        compare._measure(measured[0], options)
    options.problems, options.samples = 3, 2
    with pytest.raises(ZeroDivisionError):
        compare._measure(measured[0], options)


def test_arms_that_lack_a_problem_are_left_out(measured):
    every, out = measured
    assert table.complete(every, out, ["a", "b", "c", "d"], 1) == {}
    result = table.complete(every, out, ["a", "b"], 1)
    assert [row["problems"] for row in table.summary(result, table.at_once(result, out), None)] == [2, 2, 2]


def test_another_comparison_is_refused(options):
    compare._claim(options)
    compare._claim(options)
    options.model_path = "another"
    with pytest.raises(EvalError, match="holds another comparison: model_path was 'm' and is 'another' now"):
        compare._claim(options)


@pytest.mark.parametrize("other", ["model_sha", "data_sha256"])
def test_samples_of_another_model_or_of_other_problems_are_not_compared(measured, other):
    every, out = measured
    path = out / f"{every[1].name}.jsonl"
    path.write_text(path.read_text().replace('"config": {}', f'"config": {{"{other}": "other"}}'))
    with pytest.raises(EvalError, match="different models, problems or graders"):
        table.complete(every, out, ["a", "b", "c"], 1)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--ratios", "1"], "ratio must be a number above 1"),
        (["--intervals", "4", "--ratios", "8"], "at most the interval"),
        (["--server-flags", "'"], "--server-flags can't be read"),
        (["--policies", "rpc,foo"], "got 'foo'"),
        (["--policies", "full,rpc"], "got 'full'"),
    ],
)
def test_what_is_sure_to_fail_is_refused_before_a_server_starts(tmp_path, flags, named):
    given = compare._parser().parse_args(["--model-path", "m", "--out", str(tmp_path), *flags])
    with pytest.raises(EvalError, match=named):
        compare._claim(given)


@pytest.mark.parametrize("flag", ["--problems", "--samples", "--concurrency", "--window"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_counts_are_whole_numbers_above_zero(flag, value, capsys):
    with pytest.raises(SystemExit):
        compare._parser().parse_args(["--model-path", "m", "--out", "o", f"{flag}={value}"])
    assert "must be a whole number of at least 1" in capsys.readouterr().err
