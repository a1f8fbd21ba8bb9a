"""eval.compare.register and .verdict: what is written down before a run, and what came of it."""

import csv
import json

import pytest

from eval.compare import register, registration, verdict
from tests.unit.compare.folders import comparison, first

PLAN = """
question = "Does peak forget less than rpc?"
[all]
model-path = "m"
policies = ["rpc", "peak"]
problems = 40
problem-seed = 7
[folders.near]
task = "reasoner:near"
ratios = [4, 8]
[folders.far]
task = "reasoner:far"
ratios = [4]
[[comparisons]]
first = "peak"
second = "rpc"
expect = "better"
[[comparisons]]
first = "peak"
second = "random"
expect = "not worse"
folders = ["near"]
ratios = [8]
[[goals]]
policy = "peak"
at_least = 0.9
folders = ["near"]
[[goals]]
policy = "random"
at_most = 0.05
folders = ["far"]
"""


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(PLAN)
    return path


def registered(plan):
    assert register.main(["--plan", str(plan), "--out", str(plan.parent / "r")]) == 0
    return [plan.parent / "r" / "near", plan.parent / "r" / "far"]


def measured(folders, **near):
    marks = {("full", 4): first(40), ("streaming", 4): first(0), ("streaming", 8): first(0)}
    for name, right in {
        "rpc_4": 30,
        "peak_4": 38,
        "random_4": 2,
        "rpc_8": 0,
        "peak_8": 30,
        "random_8": 31,
        **near,
    }.items():
        policy, _, ratio = name.partition("_")
        marks[policy, int(ratio)] = first(right)
    comparison(folders[0], "reasoner:near", marks)
    far = {("full", 4): first(40), ("streaming", 4): first(0), ("random", 4): first(3)}
    comparison(folders[1], "reasoner:far", {**far, ("rpc", 4): first(38), ("peak", 4): first(40)})


def test_a_registration_stands_in_every_folder(plan):
    near, far = registered(plan)
    assert (near / "registered.json").read_text() == (far / "registered.json").read_text()
    said = json.loads((near / "registered.json").read_text())
    assert said["folders"]["near"]["arms"][:3] == ["full", "rpc-P64-R32-c4", "rpc-P64-R32-c8"]
    assert said["folders"]["far"]["policies"] == ["rpc", "peak", "random", "streaming"]
    assert [said["folders"][name]["problem_seed"] for name in ("near", "far")] == [7, 7]
    assert [(c["folder"], c["first"], c["second"], c["expect"]) for c in said["comparisons"]] == [
        ("near", "peak-P64-R32-c4", "rpc-P64-R32-c4", "better"),
        ("near", "peak-P64-R32-c8", "rpc-P64-R32-c8", "better"),
        ("far", "peak-P64-R32-c4", "rpc-P64-R32-c4", "better"),
        ("near", "peak-P64-R32-c8", "random-P64-R32-c8", "not worse"),
    ]
    assert [(g["folder"], g["arm"], g["at_least"], g["at_most"]) for g in said["goals"]] == [
        ("near", "peak-P64-R32-c4", 0.9, None),
        ("near", "peak-P64-R32-c8", 0.9, None),
        ("far", "random-P64-R32-c4", None, 0.05),
    ]
    assert said["commit"]
    assert said["date"].startswith("20")
    assert (said["level"], said["correction"]) == (0.05, registration.CORRECTION)
    assert set(said["success"]) == {"better", "not worse"}


def test_the_verdict(plan, capsys):
    folders = registered(plan)
    measured(folders)
    assert verdict.main(["--results", *map(str, folders)]) == 0
    rows = list(csv.DictReader((folders[0] / "verdict.csv").open()))
    assert [(row["difference"], row["more"], row["fewer"]) for row in rows] == [
        ("0.2", "8", "0"), ("0.75", "30", "0"), ("0.05", "2", "0"), ("-0.025", "0", "1"),
    ]  # fmt: skip
    p = [2 * 0.5**8, 2 * 0.5**30, 0.5, 1.0]
    assert [float(row["p"]) for row in rows] == pytest.approx(p, rel=1e-4)
    # Holm: the least of four times four, the next times three, and so on.
    assert [float(row["p_adjusted"]) for row in rows] == pytest.approx([3 * p[0], 4 * p[1], 1.0, 1.0], rel=1e-4)
    assert [row["met"] for row in rows] == ["yes", "yes", "no", "yes"]
    text = (folders[0] / "verdict.md").read_text()
    assert "**3 of 4 comparisons and 1 of 3 goals are as registered.**" in text
    assert "| reasoner:near | `peak-P64-R32-c8` | 75.0 [71.0, 79.0] | at least 90 % | **no** |" in text
    assert "| reasoner:far | `random-P64-R32-c4` | 7.5 [3.5, 11.5] | at most 5 % | **no** |" in text
    assert "measured at commit abc" in text
    assert "not equal" not in text


def test_comparisons_at_other_entries_are_told(plan):
    folders = registered(plan)
    measured(folders)
    path = folders[1] / "summary.csv"
    path.write_text(
        path.read_text().replace(
            "peak,64,32,4,0,40,1.0,0.02,0.96,1.0,115.6,208.0", "peak,64,32,4,0,40,1.0,0.02,0.96,1.0,130,250"
        )
    )
    assert verdict.main(["--results", *map(str, folders)]) == 0
    assert "| 130 / 250 and 116 / 208: not equal |" in (folders[0] / "verdict.md").read_text()


def test_who_loses_by_more_than_the_error_is_worse(plan):
    folders = registered(plan)
    measured(folders, peak_8=20)
    assert verdict.main(["--results", *map(str, folders)]) == 0
    assert "| not worse | **no** |" in (folders[0] / "verdict.md").read_text()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("a folder missing", "must be the folders registered, near, far; got near"),
        ("none registered", "must be folders of one registration"),
        ("two registrations", "must be folders of one registration"),
        ("another seed", "holds another comparison than was registered: its problem_seed is another"),
        ("an arm missing", "has no complete arm peak-P64-R32-c4 yet"),
        ("other problems", "has 39 problems and is registered for 40"),
        ("cut short", "is no registration"),
    ],
)
def test_what_was_not_registered_gets_no_verdict(plan, capsys, damage, reason):
    folders = registered(plan)
    measured(folders)
    far, problems = folders[1] / "registered.json", folders[1] / "problems.csv"
    if damage == "a folder missing":
        folders.pop()
    if damage == "none registered":
        for folder in folders:
            (folder / "registered.json").unlink()
    if damage == "two registrations":
        far.write_text(far.read_text().replace("rpc?", "tova?"))
    if damage == "another seed":
        (folders[1] / "comparison.json").write_text('{"task": "reasoner:far", "problem_seed": 8}')
    if damage == "an arm missing":
        problems.write_text(problems.read_text().replace("peak", "speak"))
    if damage == "other problems":
        problems.write_text("".join(problems.read_text().splitlines(keepends=True)[:-1]))
    if damage == "cut short":
        far.write_text(far.read_text()[:-20])
    assert verdict.main(["--results", *map(str, folders)]) == 1
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1
    assert not (folders[0] / "verdict.md").exists()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("problem-seed = 7", "problem-seeds = 7", "unrecognized arguments: --problem-seeds=7"),
        ("problems = 40", "concurrency = 40", "concurrency is not registered; give it to eval.compare"),
        ('"reasoner:far"', '"reasoner:fart"', "needs a level of"),
        ('["rpc", "peak"]', '["rpc", "peek"]', "got 'peek'"),
        ('second = "rpc"', 'second = "tova"', "no setting of its folders has arms of both peak and tova"),
        ('expect = "better"', 'expect = "best"', "expect must be one of better, not worse"),
        ('expect = "better"', "", "needs expect"),
        ("at_most = 0.05", "", "the goal of random needs at_least or at_most"),
        ('folders = ["far"]', 'folders = ["fur"]', "there is no table [folders.fur]"),
        ('second = "random"', 'second = "rpc"', "name the same pair of arms"),
        ('policy = "random"', 'policy = "tova"', "no folder of the goal of tova has an arm of it"),
        ("question", "answer", "the plan takes"),
    ],
)
def test_a_plan_that_can_not_be_carried_out_is_refused(plan, capsys, old, new, reason):
    text = plan.read_text()
    if new == 'second = "rpc"' and "random" in old:
        text = text.replace('expect = "not worse"', 'expect = "better"')
    plan.write_text(text.replace(old, new))
    assert plan.read_text() != PLAN
    assert register.main(["--plan", str(plan), "--out", str(plan.parent / "r")]) == 1
    told = capsys.readouterr().err
    assert reason in told
    assert told.count("\n") == 1
    assert not (plan.parent / "r").exists()


@pytest.mark.parametrize("there", ["rpc-P64-R32-c4.jsonl", "summary.csv", "registered.json"])
def test_what_is_measured_already_can_not_be_registered(plan, capsys, there):
    folder = plan.parent / "r" / "far"
    folder.mkdir(parents=True)
    (folder / there).write_text("")
    assert register.main(["--plan", str(plan), "--out", str(plan.parent / "r")]) == 1
    assert "register before the run, into another folder" in capsys.readouterr().err
    assert not (plan.parent / "r" / "near").exists()
