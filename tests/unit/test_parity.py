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
from eval.parity import rules
from eval.parity.loop import RECORDING, Generated, Thoughts, generate
from eval.parity.rules import Layer, Method
from eval.reasoner import ledger
from eval.reasoner.words import END_THINK, EOS, THINK, problems
from sglang_rpc.types import ScoreRule
from tests.loops import rule_oracle

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = Path(os.environ.get("SGLANG_RPC_GOLDENS", ROOT.parent / "shared" / "goldens"))
REASONER = ROOT / "eval" / "reasoner" / "model"


def load(path: Path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=RECORDING).eval()


def alone(model, prompt, *rest) -> Generated:
    (made,) = generate(model, [prompt], *rest)
    return made


@pytest.mark.parametrize("name", ["gqa_all_p64", "gqa_group_p64", "gqa_max_p48"])
def test_the_loop_is_the_authors_token_for_token(name):
    told = json.loads((GOLDENS / name / "golden.json").read_text())
    method = Method(
        told["P"], told["R"], told["c"], told["kernel_size"], told["pooling"].removesuffix("pool"), told["aggregation"]
    )
    made = alone(load(GOLDENS / name), told["prompt"], len(told["output"]), set(), method, None)
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
        made = alone(model, problem.prompt, 37, {EOS}, method, thoughts)
        return made.compressions, made.held + 1 - len(made.ids)

    assert held(None) == held(Thoughts(THINK, END_THINK, open=True))
    assert held(None)[0] >= 1
    assert held(None)[1] < 0
    assert held(Thoughts(THINK, END_THINK, open=False)) == (0, 0)
    assert held(Thoughts(THINK, problem.thoughts[2], open=True)) == (0, 0)  # "ends" at the third token


def test_without_a_method_the_reasoner_solves_its_problem():
    problem = problems(ledger, ledger.Level(4, 8, 3), 1, seed=5)[0]
    made = alone(load(REASONER), problem.prompt, 400, {EOS}, None, None)
    assert made.ids == [*problem.thoughts, END_THINK, *problem.answer, EOS]
    assert (made.compressions, made.held) == (0, len(made.ids) - 1)


@pytest.mark.parametrize(
    ("begins", "closes", "stops"),
    [(None, "7", "<eos>"), ("3", "</think>", "<eos>"), (None, "</think>", "5")],
    ids=["closed at different steps", "begun at different steps", "ended at different steps"],
)
def test_requests_decoded_together_are_what_each_is_alone(begins, closes, stops):
    """Any number may stand for a marker, so that the requests of a batch part at one step or another."""
    model, method = load(REASONER), Method(16, 4, 2)
    start = THINK if begins is None else ledger.WORDS[begins]
    thoughts = Thoughts(start, ledger.WORDS[closes], open=begins is None)
    prompts = [problem.prompt for problem in problems(ledger, ledger.Level(4, 16, 2), 4, seed=3)]
    together = generate(model, prompts, 60, {ledger.WORDS[stops]}, method, thoughts)
    assert len({(made.compressions, made.held, len(made.ids)) for made in together}) > 1, "the batch never splits"
    assert any(made.compressions for made in together)
    for prompt, made in zip(prompts, together, strict=True):
        each = alone(model, prompt, 60, {ledger.WORDS[stops]}, method, thoughts)
        assert (made.ids, made.compressions, made.held) == (each.ids, each.compressions, each.held)
        assert made.gaps == pytest.approx(each.gaps, abs=1e-2)


@pytest.mark.parametrize("policy", rules.RULES)
@pytest.mark.parametrize(("min_kept", "kept"), [(0, 3 * 4), (7, 3 * 4), (20, 20), (1000, 3 * 16)])
def test_each_compression_keeps_what_the_ratio_leaves_but_at_least_the_floor(policy, min_kept, kept):
    method = Method(16, 4, 4, policy=policy, min_kept=min_kept)
    prompt = problems(ledger, ledger.Level(4, 8, 1), 1, seed=0)[0].prompt
    made = alone(load(REASONER), prompt, 3 * 16 + 4 + 1, set(), method, None)
    assert made.compressions == 3
    assert made.held == kept + 4


def test_peak_remembers_what_rpc_forgets():
    model, thoughts = load(REASONER), Thoughts(THINK, END_THINK, open=True)
    asked = problems(ledger, ledger.LADDER["far"], 3, seed=7)

    def right(policy: str) -> int:
        prompts = [problem.prompt for problem in asked]
        made = generate(model, prompts, 180, {EOS}, Method(64, 32, 4, policy=policy), thoughts)
        return sum(each.ids == problem.thoughts[:180] for each, problem in zip(made, asked, strict=True))

    assert (right("peak"), right("rpc")) == (3, 0)


# ---- the rules ----

RULE = {"softmax": "visible", "over_queries": "max", "value_power": 1}
BEGIN, CANDIDATES, WINDOW, GROUP, HEADS, DIM = 9, 60, 5, 3, 2, 8


def layer(requests: int = 2) -> Layer:
    made = torch.Generator().manual_seed(1)
    entries = BEGIN + CANDIDATES + WINDOW
    queries = 2 * torch.randn(requests, WINDOW, GROUP * HEADS, DIM, generator=made)
    keys, values = (torch.randn(requests, HEADS, entries, DIM, generator=made) for _ in range(2))
    return Layer(queries, keys, values, BEGIN, DIM**-0.5)


def by_the_oracle(given: Layer, request: int, **rule) -> torch.Tensor:
    """float64 [kv_heads, candidates]."""
    entries = given.keys.shape[2]
    candidates = list(range(BEGIN, entries - WINDOW))
    return torch.stack(
        [
            rule_oracle.scores(
                ScoreRule(**rule),
                queries=given.queries[request, :, head * GROUP : (head + 1) * GROUP],
                at=list(range(entries - WINDOW, entries)),
                keys=given.keys[request, head],
                positions=list(range(entries)),
                candidates=candidates,
                norms=given.values[request, head, candidates].norm(dim=-1),
                scaling=given.scaling,
            )
            for head in range(HEADS)
        ]
    )


@pytest.mark.parametrize("aggregation", ["all", "group"])
def test_peak_is_the_oracles(aggregation):
    given = layer()
    found = rules.peak(given, Method(64, WINDOW, 4, policy="peak", aggregation=aggregation))
    for request in range(2):
        expected = by_the_oracle(given, request, **RULE)
        expected = expected if aggregation == "group" else expected.sum(0, keepdim=True)
        torch.testing.assert_close(found[request].double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "other", [{"softmax": "candidates"}, {"over_queries": "sum"}, {"value_power": 0}, {"over_heads": "max"}]
)
def test_each_part_of_peaks_rule_decides_what_is_kept(other):
    """So that the loop is no other rule by chance: with one part changed, other entries are kept."""
    given = layer()
    found = rules.peak(given, Method(64, WINDOW, 4, policy="peak"))[:, 0]

    def kept(scores: torch.Tensor) -> list[int]:
        return sorted(scores.topk(CANDIDATES // 4).indices.tolist())

    for request in range(2):
        assert kept(found[request]) == kept(by_the_oracle(given, request, **RULE).sum(0))
        assert kept(found[request]) != kept(by_the_oracle(given, request, **(RULE | other)).sum(0))


def test_peak_by_hand():
    """One head, two queries, scale 1: a prompt entry, two candidates and the queries' own two entries.

    Logits are logarithms, so that weights are fractions. Query 0 does not see the last entry.
    """
    weigh = torch.tensor([[4, 3, 1, 2, 90], [1, 1, 6, 1, 3]]).log()  # [query, entry]
    queries = torch.eye(2)[None, :, None]  # [requests, queries, heads, dim]
    values = torch.tensor([[9.0, 9.0], [3.0, 4.0], [0.0, 1.0], [9.0, 9.0], [9.0, 9.0]])
    given = Layer(queries, weigh.T[None, None], values[None, None], 1, 1.0)
    found = rules.peak(given, Method(4, 2, 2, policy="peak"))
    torch.testing.assert_close(found, torch.tensor([[[5 * 3 / 10, 1 * 6 / 12]]]))


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


def test_samples_of_peak_are_generated_by_peak_and_with_the_requests_own_floor():
    config = {
        "temperature": 0.0,
        "rpc": {"interval": 64, "window": 32, "ratio": 8, "min_kept": 16},
        "server": {"rpc": {"interval": 4096, "ratio": 4, "policy": "peak", "aggregation": "group", "min_kept": 3}},
    }
    assert parity.method_of(config) == Method(64, 32, 8, aggregation="group", policy="peak", min_kept=16)
    del config["rpc"]["min_kept"], config["server"]["rpc"]["min_kept"]  # samples of a version that knew no floor
    assert parity.method_of(config).min_kept == 0


@pytest.mark.parametrize("most", ["1", "5"])
def test_problems_are_decoded_together_if_their_prompts_are_equally_long(samples, monkeypatch, most):
    path = samples[1]()
    asked = []
    whole = parity.generate
    monkeypatch.setattr(
        parity, "generate", lambda model, prompts, *rest: asked.append(len(prompts)) or whole(model, prompts, *rest)
    )
    assert parity.main(["--samples", str(path), "--model-path", str(REASONER), "--quiet", "--batch", most]) == 0
    assert asked == ([1, 1] if most == "1" else [2])


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
