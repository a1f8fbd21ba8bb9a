"""eval.compare: arms, pairs and the table, from files of samples alone."""

import csv
import json
import math

import pytest

from eval import compare
from eval.accuracy.errors import EvalError
from eval.compare import Arm


def rows(correct: dict[str, list[int]], held: int | None) -> list[dict]:
    receipt = None if held is None else {"compressions": 3, "evicted": 100 - held, "generated": 100, "held": held}
    plain = {"answer": "1", "finish": "stop", "tokens": 100, "looping": False, "receipt": receipt, "seconds": 2.0}
    return [
        {"problem": problem, "sample": number, "correct": bool(mark), **plain}
        for problem, marks in correct.items()
        for number, mark in enumerate(marks)
    ]


@pytest.fixture
def measured(tmp_path):
    every = compare.arms(["rpc", "random"], [64], 32, [4.0])
    solved = {
        "full": {"a": [1], "b": [1], "c": [1]},
        "rpc": {"a": [1], "b": [1], "c": [0]},
        "random": {"a": [0], "b": [0], "c": [0]},
    }
    for arm in every:
        lines = [{"config": {}}, *rows(solved[arm.policy], None if arm.policy == "full" else 40)]
        (tmp_path / f"{arm.name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return every, tmp_path


def test_full_is_measured_once_and_first():
    made = compare.arms(["rpc", "tova"], [64, 128], 32, [4.0, 8.0])
    assert [arm.name for arm in made[:3]] == ["full", "rpc-P64-R32-c4", "rpc-P64-R32-c8"]
    assert len(made) == 1 + 2 * 2 * 2 and len({arm.name for arm in made}) == len(made)
    assert made[0].rpc == {"enabled": False}
    assert Arm("tova", 64, 32, 8.0).rpc == {"interval": 64, "window": 32, "ratio": 8.0}


def test_differences_are_taken_problem_by_problem(measured):
    full, rpc, chance = compare.summary(*measured, ["a", "b", "c"], 1)
    assert (full["accuracy"], full["to_full"], full["held_share"]) == (1.0, 0.0, 1.0)
    assert rpc["accuracy"] == pytest.approx(2 / 3) and rpc["to_full"] == pytest.approx(-1 / 3)
    assert rpc["to_full_error"] == pytest.approx(math.sqrt((1 / 3) / 3))  # of 0, 0, -1
    assert (rpc["held_share"], rpc["tok_s"]) == (pytest.approx(0.4), 50.0)
    assert (chance["accuracy"], chance["to_full_error"]) == (0.0, 0.0)


def test_the_table_the_file_and_the_plot(measured, tmp_path):
    found = compare.summary(*measured, ["a", "b", "c"], 1)
    compare.write(found, tmp_path / "summary.csv")
    read = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [row["arm"] for row in read] == ["full", "rpc-P64-R32-c4", "random-P64-R32-c4"] and read[1][
        "accuracy"
    ] == "0.666667"
    text = compare.show(found)
    assert "0.667 +- 0.333" in text and "-0.333 +- 0.333" in text and "40.0%" in text
    assert all(path.stat().st_size > 1000 for path in compare.plot(found, tmp_path))


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
    assert compare.summary(every, out, ["a", "b", "c", "d"], 1) == []
    assert [row["problems"] for row in compare.summary(every, out, ["a", "b"], 1)] == [2, 2, 2]


def test_another_comparison_is_refused(options):
    compare._claim(options)
    compare._claim(options)
    options.model_path = "another"
    with pytest.raises(EvalError, match="holds another comparison: model_path was 'm' and is 'another' now"):
        compare._claim(options)


def test_samples_of_another_model_are_not_compared(measured):
    every, out = measured
    path = out / f"{every[1].name}.jsonl"
    path.write_text(path.read_text().replace('{"config": {}}', '{"config": {"model_sha": "other"}}'))
    with pytest.raises(EvalError, match="different models or graders"):
        compare.summary(every, out, ["a", "b", "c"], 1)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--ratios", "1"], "ratio must be a number above 1"),
        (["--intervals", "4", "--ratios", "8"], "at most the interval"),
        (["--server-flags", "'"], "--server-flags can't be read"),
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
