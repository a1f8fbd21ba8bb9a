"""eval.compare.losses: after which compression a sample first went wrong."""

import csv
import json
from dataclasses import replace

import pytest

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.compare import losses
from eval.reasoner import words

RECEIPT = {"interval": 64, "window": 32, "ratio": 4.0, "min_kept": 0, "compressions": 8, "generated": 557}


@pytest.mark.parametrize(
    ("token", "count"), [(0, 0), (95, 0), (96, 0), (97, 1), (160, 1), (161, 2), (544, 7), (545, 8), (557, 8)]
)
def test_a_compression_is_felt_after_its_date(token, count):
    assert losses.compressions_before(token, RECEIPT) == count


def test_dates_on_which_nothing_is_evicted_do_not_count():
    floor = {**RECEIPT, "min_kept": 64, "compressions": 7}
    assert [losses.compressions_before(token, floor) for token in (97, 160, 161, 225)] == [0, 0, 1, 2]
    assert losses.compressions_before(557, {**RECEIPT, "compressions": 3}) == 3
    assert losses.compressions_before(557, {**RECEIPT, "compressions": 0}) == 0


@pytest.mark.parametrize("kind", tasks.MADE_UP)
def test_it_is_the_tasks_own_first_wrong(kind):
    family, level = tasks.MADE_UP[kind]
    problem = words.problems(family, family.LADDER[level], 1, seed=3)[0]
    (right,) = losses.right_texts(tasks.find(kind, 1, seed=3)).values()
    assert family.WORDS.encode(" ".join(right)) == [*problem.thoughts, words.END_THINK, *problem.answer]
    for place in (0, 50, len(problem.thoughts) - 1, None):
        thoughts = list(problem.thoughts)
        if place is not None:
            thoughts[place] = words.PAD
        row = {
            "thoughts": f" {family.WORDS.decode(thoughts)} ",
            "said": f" {family.WORDS.decode(problem.answer)} <eos>",
        }
        assert losses.first_wrong(right, row) == words.first_wrong(problem, [*thoughts, words.END_THINK]) == place


@pytest.mark.parametrize(
    ("thoughts", "said", "token"),
    [
        ("a b", "1 2", None),
        ("a b", "1 3", 4),
        ("a", "1 2", 1),
        ("a b c", "1 2", 2),
        ("a b", "", 3),
        ("a b", "1 2 3", 5),
    ],
)
def test_the_end_of_the_thoughts_and_the_answer_count_too(thoughts, said, token):
    right = ["a", "b", losses.END_OF_THOUGHTS, "1", "2"]
    assert losses.first_wrong(right, {"thoughts": thoughts, "said": said}) == token


@pytest.fixture
def folder(tmp_path):
    """Four problems; of `rpc` one is right, two go wrong after the first compression and one after the third."""
    task = tasks.find("reasoner:far", 4, seed=0)
    (tmp_path / "comparison.json").write_text(json.dumps({"task": "reasoner:far", "problem_seed": 0}))
    with (tmp_path / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "policy", "interval", "window", "ratio", "problems", "mean_entries"])
        writer.writerow(["full", "full", 64, 32, 4, 4, 279])
        writer.writerow(["rpc-P64-R32-c4", "rpc", 64, 32, 4, 4, 116])
    for arm, wrong in (("full", [None] * 4), ("rpc-P64-R32-c4", [None, 97, 120, 230])):
        lines = [{"config": {}, "said": {}}]
        for problem, token in zip(task.problems, wrong, strict=True):
            thoughts = task.thoughts[problem.id].split()
            if token is not None:
                thoughts[token] = "<pad>"
            receipt = {**RECEIPT, "compressions": 0 if arm == "full" else 8}
            row = {"problem": problem.id, "sample": 0, "thoughts": " ".join(thoughts), "said": problem.expected}
            lines.append({**row, "receipt": receipt})
        (tmp_path / f"{arm}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_table(folder, capsys):
    assert losses.main(["--results", str(folder)]) == 0
    assert (folder / "losses.md").read_text().splitlines() == [
        "| arm | all right | after 0 | after 1 | after 2 | after 3 |",
        "|---|---|---|---|---|---|",
        "| `full` | 100.0 ± 18.6 | · | · | · | · |",
        "| `rpc-P64-R32-c4` | 25.0 ± 25.0 | · | 50.0 ± 28.9 | · | 25.0 ± 25.0 |",
    ]
    rows = list(csv.DictReader((folder / "losses.csv").open()))
    assert [(row["compressions"], row["share"]) for row in rows if row["arm"] != "full"] == [
        ("right", "0.25"), ("0", "0"), ("1", "0.5"), ("2", "0"), ("3", "0.25"),
    ]  # fmt: skip


def test_without_samples_or_right_thoughts_there_is_no_table(folder, capsys):
    (folder / "full.jsonl").unlink()
    assert losses.main(["--results", str(folder)]) == 1
    assert "full.jsonl is not there" in capsys.readouterr().err
    task = tasks.find("reasoner:far", 4, seed=0)
    with pytest.raises(EvalError, match="no thoughts that alone are right"):
        losses.right_texts(replace(task, thoughts={}))
