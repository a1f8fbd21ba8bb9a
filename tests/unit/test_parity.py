"""eval.parity: the plain loop gives what the authors' code gave, and differences to a server's samples are seen."""

import csv
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from eval.accuracy import tasks
from eval.accuracy.errors import EvalError
from eval.parity import __main__ as parity
from eval.parity.loop import RECORDING, Method, Thoughts, generate
from eval.reasoner import ledger
from eval.reasoner.words import END_THINK, EOS, THINK, problems

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = Path(os.environ.get("SGLANG_RPC_GOLDENS", ROOT.parent / "shared" / "goldens"))
REASONER = ROOT / "eval" / "reasoner" / "model"


def load(path: Path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=RECORDING).eval()


@pytest.mark.parametrize("name", ["gqa_all_p64", "gqa_group_p64", "gqa_max_p48"])
def test_the_loop_is_the_authors_token_for_token(name):
    told = json.loads((GOLDENS / name / "golden.json").read_text())
    method = Method(
        told["P"], told["R"], told["c"], told["kernel_size"], told["pooling"].removesuffix("pool"), told["aggregation"]
    )
    made = generate(load(GOLDENS / name), told["prompt"], len(told["output"]), set(), method, None)
    assert made.ids == told["output"]
    last_entry = len(told["output"]) - 1  # the newest token has no KV yet
    events = (last_entry - told["R"]) // told["P"]
    assert made.compressions == events
    assert made.held == last_entry - events * (told["P"] - int(told["P"] / told["c"]))


def test_what_stands_outside_the_thoughts_is_not_compressed():
    """P = 16, R = 4: due at 20, 36, ... entries of the thoughts, which end with the marker or have not begun."""
    model, method = load(REASONER), Method(16, 4, 4)
    problem = problems(ledger, ledger.Level(4, 8, 1), 1, seed=0)[0]

    def held(thoughts: Thoughts | None) -> tuple[int, int]:
        made = generate(model, problem.prompt, 37, {EOS}, method, thoughts)
        return made.compressions, made.held + 1 - len(made.ids)

    assert held(None) == held(Thoughts(THINK, END_THINK, open=True))
    assert held(None)[0] >= 1
    assert held(None)[1] < 0
    assert held(Thoughts(THINK, END_THINK, open=False)) == (0, 0)
    assert held(Thoughts(THINK, problem.thoughts[2], open=True)) == (0, 0)  # "ends" at the third token


def test_without_a_method_the_reasoner_solves_its_problem():
    problem = problems(ledger, ledger.Level(4, 8, 3), 1, seed=5)[0]
    made = generate(load(REASONER), problem.prompt, 400, {EOS}, None, None)
    assert made.ids == [*problem.thoughts, END_THINK, *problem.answer, EOS]
    assert (made.compressions, made.held) == (0, len(made.ids) - 1)


# ---- a file of samples ----

LEVEL = "parity"


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """Two problems, as a server with its full KV answers them."""
    monkeypatch.setitem(ledger.LADDER, LEVEL, ledger.Level(4, 8, 3))
    rpc = {**asdict(Method(64, 32, 4)), "policy": "rpc"}
    config = {
        "task": f"reasoner:{LEVEL}",
        "problem_seed": 0,
        "temperature": 0.0,
        "max_tokens": 200,
        "rpc": {"enabled": False},
        "server": {"rpc": rpc, "scope_in_effect": "think"},
    }
    lines: list[dict] = [{"config": config}]
    asked = tasks.find(config["task"], 2, 0).problems
    for problem, solved in zip(asked, problems(ledger, ledger.LADDER[LEVEL], 2, 0), strict=True):
        said = ledger.WORDS.decode(solved.answer)
        lines.append(
            {
                "problem": problem.id,
                "sample": 0,
                "answer": said,
                "expected": problem.expected,
                "tokens": len(solved.thoughts) + len(solved.answer) + 2,
                "thoughts": ledger.WORDS.decode(solved.thoughts),
                "said": said,
            }
        )
    path = tmp_path / "full.jsonl"

    def write() -> Path:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return lines, write


def run(path: Path) -> int:
    return parity.main(["--samples", str(path), "--model-path", str(REASONER), "--quiet"])


def test_equal_answers(samples, capsys):
    path = samples[1]()
    assert run(path) == 0
    assert "2 problems: 2 answers equal, 2 texts equal" in capsys.readouterr().out
    rows = list(csv.DictReader(path.with_suffix(".parity.csv").open()))
    assert [row["same_answer"] for row in rows] == ["True", "True"]
    assert rows[0]["tokens"] == rows[0]["loop_tokens"]


def test_another_answer_or_another_thought_is_seen(samples, capsys):
    lines, write = samples
    lines[1]["said"] = lines[1]["answer"] = "0 0"
    lines[2]["thoughts"] = lines[2]["thoughts"].replace("A0", "A1", 1)
    assert run(write()) == 1
    assert "2 problems: 1 answers equal, 0 texts equal" in capsys.readouterr().out


def test_a_thought_that_was_compressed_is_compressed_here_too(samples, capsys):
    """Samples of the full KV said to be compressed ones: the loop, which does compress, goes other ways."""
    lines, write = samples
    lines[0]["config"]["rpc"] = {"interval": 16, "window": 4, "ratio": 8}
    assert run(write()) == 1
    assert "0 texts equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"temperature": 0.6}, "only greedy samples"),
        ({"rpc": None, "policy": "h2o"}, "these samples are of 'h2o'"),
        ({"problem_seed": 1}, "is not what the task"),
    ],
)
def test_what_cannot_be_compared_is_refused(samples, capsys, change, sentence):
    lines, write = samples
    config = lines[0]["config"]
    config["server"]["rpc"]["policy"] = change.pop("policy", "rpc")
    config.update(change)
    if "problem_seed" in change:  # the same names, other problems
        for line in lines[1:]:
            line["problem"] = line["problem"].replace("-0-", "-1-")
    assert run(write()) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_a_file_without_samples_and_a_directory_without_a_model(samples, tmp_path):
    lines, write = samples
    with pytest.raises(EvalError, match="holds no model"):
        parity.compare(
            parity._parser().parse_args(["--samples", str(write()), "--model-path", str(tmp_path), "--quiet"])
        )
    del lines[1:]
    with pytest.raises(EvalError, match="holds no samples"):
        parity.compare(parity._parser().parse_args(["--samples", str(write()), "--model-path", str(REASONER)]))
