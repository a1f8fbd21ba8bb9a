"""eval.compare: arms, pairs and the table, from files of samples alone."""

import contextlib
import csv
import json
import math
from types import SimpleNamespace

import pytest

from eval.accuracy.errors import EvalError
from eval.compare import measure, registered, registration, table
from eval.compare import options as flags
from eval.compare.arms import FULL, Arm, arms, label
from eval.compare.plots import pareto, plot


def rows(correct: dict[str, list[int]], held: int | None) -> list[dict]:
    # P = 20, R = 10, c = 4: T = 5. Compressions at 30, 50, 70; before the third 2 * 5 + 10 + 20 entries are held.
    method = {"interval": 20, "window": 10, "ratio": 4, "min_kept": 0, "early": 0, "late": 0, "compressions": 3}
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
            *rows(solved[arm.policy], None if arm.policy == FULL else 55),
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
    # Held at the lengths 1 to 30, 31 to 50, 51 to 70, 71 to 100.
    mean = (sum(range(1, 31)) + sum(range(16, 36)) + sum(range(21, 41)) + sum(range(26, 56))) / 100
    assert (rpc["mean_entries"], rpc["peak_entries"], rpc["held_entries"]) == (pytest.approx(mean), 55, 55)
    assert (full["mean_entries"], full["peak_entries"], full["held_entries"]) == (50.5, 100, 100)
    assert rpc["mean_share"] == pytest.approx(mean / 50.5)
    assert (rpc["held_share"], rpc["peak_share"], rpc["tok_s"]) == (pytest.approx(0.55), pytest.approx(0.55), 100.0)
    assert (full["held_bytes"], rpc["held_bytes"], rpc["mean_bytes"]) == (100_000, 55_000, pytest.approx(1000 * mean))
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
    assert "55 (55.0%)" in text
    assert "not at equal KV" not in text
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


def test_arms_that_held_other_entries_are_told(measured, tmp_path):
    every, out = measured
    path = out / f"{every[2].name}.jsonl"
    damaged = path.read_text().replace('"late": 0', '"late": 1', 1)
    path.write_text(path.read_text().replace('"generated": 100, "held": 55', '"generated": 98, "held": 53'))
    samples = table.complete(every, out, ["a", "b", "c"], 1)
    result = table.summary(samples, table.at_once(samples, out), 1000)
    assert "random-P64-R32-c4 held 27 / 53 KV entries (mean / peak), rpc-P64-R32-c4 28 / 55: not" in table.show(result)
    path.write_text(damaged)
    samples = table.complete(every, out, ["a", "b", "c"], 1)
    result = table.summary(samples, table.at_once(samples, out), 1000)
    assert (result[2]["mean_entries"], result[2]["peak_share"], result[2]["mean_bytes"]) == (None, None, None)
    assert result[2]["held_entries"] == 55
    assert "random-P64-R32-c4 held not known KV entries" in table.show(result)
    table.write(result, tmp_path / "summary.csv")
    assert all(path.stat().st_size > 1000 for path in plot(result, tmp_path, "title"))


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
        return {"arm": name, "peak_entries": 200 * kv, "accuracy": accuracy}

    every = [arm("full", 1.0, 1.0), arm("a", 0.4, 0.9), arm("b", 0.4, 0.5), arm("c", 0.3, 0.5), arm("d", 0.6, 0.8)]
    assert [row["arm"] for row in pareto(every, "peak_entries")] == ["c", "a", "full"]
    assert [row["arm"] for row in pareto([arm("full", 1.0, 0.5), arm("a", 0.4, 0.5)], "peak_entries")] == ["a"]


def parse(*argv):
    return flags.parser("").parse_args(["--model-path", "m", *argv])


@pytest.fixture
def options(measured, monkeypatch):
    _, out = measured
    monkeypatch.setattr(measure.server, "running", lambda *_: 1 / 0)
    monkeypatch.setattr(measure, "_problems", lambda options: ["a", "b", "c", "d"][: options.problems])
    return parse("--out", str(out), "--problems", "3", "--ratios", "4")


def test_what_is_there_is_not_measured_again(measured, options):
    measure.measure_policy("rpc", [options])
    options.problems = 4
    with pytest.raises(ZeroDivisionError):
        measure.measure_policy("rpc", [options])
    options.problems, options.samples = 3, 2
    with pytest.raises(ZeroDivisionError):
        measure.measure_policy("rpc", [options])


@pytest.fixture
def served(monkeypatch):
    """What servers would have been started, and what each would have been asked."""
    servers = []

    @contextlib.contextmanager
    def running(module, flags, log, env):
        servers.append((flags, []))
        yield SimpleNamespace(url=f"http://{len(servers)}", flush=lambda: None)

    monkeypatch.setattr(measure.server, "running", running)
    monkeypatch.setattr(
        measure, "sample", lambda asked: servers[-1][1].append(f"{asked.out.parent.name}/{asked.out.stem}")
    )
    return servers


def test_folders_share_a_server_per_policy_where_they_can(tmp_path, served):
    common = ["--policies", "peak", "--problems", "2"]
    near = parse("--out", str(tmp_path / "near"), *common, "--task", "reasoner:near", "--ratios", "4,8")
    far = parse("--out", str(tmp_path / "far"), *common, "--ratios", "2")
    wide = parse("--out", str(tmp_path / "wide"), *common, "--ratios", "2", "--window", "16")
    assert measure.measure([near, far, wide]) == []
    asked = [done for _, done in served]
    assert asked[:2] == [
        ["near/full", "far/full"],
        ["near/peak-P64-R32-c4", "near/peak-P64-R32-c8", "far/peak-P64-R32-c2"],
    ]
    assert asked[4:6] == [["wide/full"], ["wide/peak-P64-R16-c2"]]
    assert len(asked) == 8  # full, peak, random and streaming, twice
    assert [flags[flags.index("--rpc-window") + 1] for flags, _ in served] == ["32"] * 4 + ["16"] * 4


@pytest.mark.parametrize(("floors", "own"), [("16,0", "0"), ("24,16", "16")])
def test_a_server_has_a_floor_if_all_its_arms_have(tmp_path, served, floors, own):
    asked = parse("--out", str(tmp_path), "--policies", "peak", "--problems", "2", "--min-kept", floors)
    measure.measure_policy("peak", [asked])
    (flags, _) = served[0]
    assert flags[flags.index("--rpc-min-kept") + 1] == own


def test_a_policy_that_fails_keeps_no_other_from_being_measured(tmp_path, served, monkeypatch):
    def run(asked):
        if asked.out.stem.startswith("random"):
            raise EvalError("no answer")
        served[-1][1].append(asked.out.stem)

    monkeypatch.setattr(measure, "sample", run)
    failed = measure.measure([parse("--out", str(tmp_path), "--policies", "peak", "--ratios", "4", "--problems", "2")])
    assert failed == ["random: no answer"]
    assert [done for _, done in served] == [["full"], ["peak-P64-R32-c4"], [], ["streaming-P64-R32-c4"]]


def test_arms_that_lack_a_problem_are_left_out(measured):
    every, out = measured
    assert table.complete(every, out, ["a", "b", "c", "d"], 1) == {}
    result = table.complete(every, out, ["a", "b"], 1)
    assert [row["problems"] for row in table.summary(result, table.at_once(result, out), None)] == [2, 2, 2]


def test_another_comparison_is_refused(options):
    measure.claim(options)
    measure.claim(options)
    options.model_path = "another"
    with pytest.raises(EvalError, match="holds another comparison: model_path was 'm' and is 'another' now"):
        measure.claim(options)


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
        (["--policies", "rpc,foo"], "policy must be one of rpc, .* got 'foo'"),
        (["--policies", "full,rpc"], "got 'full'"),
        (["--policies", "no_such_package.rules:best"], "could not be loaded from no_such_package.rules:best"),
        (["--policies", "os.path:join,mine.path:join"], "could not be loaded from mine.path:join"),
        (["--min-kept", "-1"], "min_kept must be"),
    ],
)
def test_what_is_sure_to_fail_is_refused_before_a_server_starts(tmp_path, flags, named):
    with pytest.raises(EvalError, match=named) as told:
        measure.claim(parse("--out", str(tmp_path), *flags))
    assert "\n" not in str(told.value)
    assert not (tmp_path / "comparison.json").exists()


@pytest.mark.parametrize("flag", ["--problems", "--samples", "--concurrency", "--window"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_counts_are_whole_numbers_above_zero(flag, value, capsys):
    with pytest.raises(SystemExit):
        parse("--out", "o", f"{flag}={value}")
    assert "must be a whole number of at least 1" in capsys.readouterr().err


def test_chance_and_the_newest_are_always_measured():
    asked = parse("--out", "o")
    assert asked.policies == ["rpc", "peak", "random", "streaming", "tova", "h2o", "snapkv", "rkv"]
    assert flags.policies(asked) == asked.policies
    asked = parse("--out", "o", "--policies", "random,peak", "--ratios", "4")
    assert [arm.policy for arm in flags.arms_of(asked)] == ["full", "random", "peak", "streaming"]
    assert "full KV, random and streaming are always measured" in " ".join(flags.parser("").format_help().split())


def test_a_floor_is_a_dimension_of_an_arm():
    asked = parse("--out", "o", "--policies", "peak", "--ratios", "8", "--min-kept", "0,16")
    assert [arm.name for arm in flags.arms_of(asked)][1:3] == ["peak-P64-R32-c8", "peak-P64-R32-c8-F16"]
    assert flags.arms_of(asked)[1].rpc == {"interval": 64, "window": 32, "ratio": 8.0}
    assert flags.arms_of(asked)[2].rpc == {"interval": 64, "window": 32, "ratio": 8.0, "min_kept": 16}


@pytest.mark.parametrize(
    ("policy", "short"),
    [
        ("peak", "peak"),
        ("long-keys", "long-keys"),
        ("sglang_rpc.policy.peak:grouped", "peak-grouped"),
        ("long_keys:scores", "long_keys-scores"),
        ("mine.rules.rpc:rpc", "mine-rules-rpc-rpc"),
        ("x:full", "x-full"),
        ("full:full", "full-full"),
        ("a b/../c", "a-b-..-c"),
        ("../../etc", "etc"),
        ("///", "policy"),
    ],
)
def test_names_of_files_are_short_and_safe(policy, short):
    assert label(policy) == short
    assert Arm(policy, 64, 32, 4.0).name == f"{short}-P64-R32-c4"


def test_two_policies_of_one_name_are_refused(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
        (tmp_path / folder / "rules.py").write_text("def best(layer, config):\n    return layer.keys.sum(-1).T\n")
    monkeypatch.syspath_prepend(tmp_path)
    flags.check(parse("--out", "o", "--policies", "one.rules:best"))
    with pytest.raises(EvalError, match=r"one\.rules:best and two\.rules:best would both be called 'rules-best'"):
        flags.check(parse("--out", "o", "--policies", "one.rules:best,two.rules:best"))


def test_a_folder_is_measured_as_registered(tmp_path):
    asked = parse("--out", str(tmp_path), "--policies", "peak")
    registered = registration.Registration("?", "d", "c", 0.05, {tmp_path.name: flags.described(asked)}, [], [])
    (tmp_path / registration.NAME).write_text(json.dumps(registered.to_json()))
    measure.claim(asked)
    measure.claim(parse("--out", str(tmp_path), "--policies", "peak", "--concurrency", "99"))
    for other in (["--problems", "5"], ["--policies", "peak,rpc"], ["--problem-seed", "1"], ["--min-kept", "8"]):
        with pytest.raises(EvalError, match=f"is registered for another comparison: {other[0][2:].replace('-', '_')}"):
            measure.claim(parse("--out", str(tmp_path), "--policies", "peak", *other))
    registered = registration.Registration("?", "d", "c", 0.05, {"another": flags.described(asked)}, [], [])
    (tmp_path / registration.NAME).write_text(json.dumps(registered.to_json()))
    with pytest.raises(EvalError, match="registers another and not"):
        measure.claim(asked)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--task", "reasoner:near", "--ratios", "4,2.5", "--min-kept", "0,16", "--samples", "2", "--window", "16"],
        ["--server-flags", "--dtype float32 --chat-template 'a b'", "--data", "rows.jsonl"],
        ["--server-flags", ""],
    ],
)
def test_a_registration_says_the_whole_command_line(tmp_path, more):
    asked = parse("--out", str(tmp_path), "--policies", "peak,long-keys", *more)
    folder = {tmp_path.name: flags.described(asked)}
    made = registration.Registration("?", "d", "c", 0.05, folder, [], [])
    (tmp_path / registration.NAME).write_text(json.dumps(made.to_json()))
    found = registered.registered(tmp_path, 7)
    assert flags.described(found) == flags.described(asked)
    assert (found.out, found.concurrency) == (tmp_path, 7)


def test_only_what_is_registered_is_measured_by_its_registration(tmp_path, capsys):
    assert registered.main(["--results", str(tmp_path)]) == 1
    assert "has no registered.json; register it, or measure it with eval.compare" in capsys.readouterr().err
    made = registration.Registration("?", "d", "c", 0.05, {"far": {}}, [], [])
    (tmp_path / registration.NAME).write_text(json.dumps(made.to_json()))
    assert registered.main(["--results", str(tmp_path)]) == 1
    assert f"registers far and not {tmp_path.name}" in capsys.readouterr().err
