"""What was kept of a trace, beside what could have been."""

from __future__ import annotations

import base64
import csv
import json
import zlib

import numpy as np
import pytest

from eval.redundancy import __main__ as command
from eval.redundancy import kept
from eval.redundancy.entropy import entropy


def trace(path, sets, *, output=(1, 2, 3, 1, 2, 1, 3, 5), after=(9,), prompt=(7, 7, 7), start=0, window=2):
    """A request of one compression: of `output` from `start` to its window, each set keeps the positions named."""
    candidates, keep = len(output) - window - start, len(sets[0])
    masks = np.zeros((len(sets), candidates), bool)
    for mask, positions in zip(masks, sets, strict=True):
        mask[[position - start for position in positions]] = True
    packed = base64.b64encode(zlib.compress(np.packbits(masks, axis=1, bitorder="little").tobytes())).decode()
    held = len(output) + len(after) - candidates + keep
    header = {"kind": "request", "format": 1, "rid": "r", "layers": len(sets), "heads": 1, "prompt": prompt}
    lines = [
        {**header, "options": {}, "config": {}, "model": "m"},
        {
            **{"kind": "compression", "event": 1, "prompt_length": len(prompt), "generated": len(output)},
            **{"begin": len(prompt) + start, "end": len(prompt) + len(output), "keep": keep, "window": window},
            **{"late": False, "early": False, "think": None, "output": output, "kept": packed},
        },
        {
            **{"kind": "end", "finish": {}, "think": None, "output": after},
            "receipt": {
                **{"compressions": 1, "generated": len(output) + len(after), "held": held},
                "evicted": candidates - keep,
            },
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_was_kept_stands_beside_what_could_have_been(tmp_path):
    """In 1 2 3 1 2 1 the last three repeat a token, the fifth a bigram too; a layer kept one 1 2, one the other."""
    result = {(r.choice, r.n): r for r in kept.choices(trace(tmp_path / "r.jsonl", [(0, 1), (3, 4)]))}
    assert {choice: result[choice, 1].tokens for choice in kept.CHOICES} == dict(all=6, kept=2, newest=2, random=2)
    repeated = {choice: [result[choice, n].repeated for n in (1, 2, 3)] for choice in ("all", "kept", "newest")}
    assert repeated == {"all": [1 / 2, 1 / 6, 0], "kept": [1 / 2, 1 / 4, 0], "newest": [1, 1 / 2, 0]}
    assert result["kept", 1].entropy == result["newest", 1].entropy == 1
    assert result["kept", 2].entropy == 0
    assert result["all", 1].entropy == entropy([1, 2, 3, 1, 2, 1], 1)
    assert result["kept", 1].sets == 2


def test_what_stands_before_the_thoughts_is_no_choice(tmp_path):
    """The first two tokens are kept whatever happens; but what comes after may repeat them."""
    result = {(r.choice, r.n): r for r in kept.choices(trace(tmp_path / "r.jsonl", [(2, 3), (2, 3)], start=2))}
    assert {choice: result[choice, 1].tokens for choice in kept.CHOICES} == dict(all=4, kept=2, newest=2, random=2)
    assert [result[choice, 1].repeated for choice in ("all", "kept", "newest")] == [3 / 4, 1 / 2, 1]


def test_lots_are_drawn_from_the_same_tokens_and_are_the_same_again(tmp_path):
    output = [0, 1] * 500 + [8, 8]
    path = trace(tmp_path / "r.jsonl", [range(400)], output=output)
    (first,) = [r for r in kept.choices(path) if (r.choice, r.n) == ("random", 1)]
    # Of 1000 tokens all but the first two are repeats; of 400 drawn, most draws lack at least one of the two.
    assert first.tokens == 400
    assert 398 / 400 < first.repeated < 1
    assert first in kept.choices(path)
    assert first not in kept.choices(path, seed=1)


def test_the_command_compares_request_by_request(tmp_path, capsys):
    trace(tmp_path / "a.jsonl", [(0, 1), (3, 4)])
    trace(tmp_path / "b.jsonl", [(0, 2), (0, 2)])
    assert command.main(["--traces", f"{tmp_path}/*.jsonl", "--out", str(tmp_path / "out")]) == 0
    assert "2 requests; tokens before the last compression's window" in capsys.readouterr().out
    rows = {(r["choice"], r["n"]): r for r in csv.DictReader((tmp_path / "out" / "kept_summary.csv").open())}
    assert float(rows["kept", "1"]["repeated"]) == 0.25
    assert float(rows["all", "1"]["repeated"]) == 0.5
    random = float(rows["random", "1"]["repeated"])
    assert float(rows["kept", "1"]["repeated_to_random"]) == pytest.approx(0.25 - random, abs=1e-5)
    assert float(rows["kept", "1"]["repeated_error"]) == 0.25  # of 0.5 and 0
    assert len(list(csv.DictReader((tmp_path / "out" / "kept.csv").open()))) == 2 * 4 * 3
    said = json.loads((tmp_path / "out" / "conditions.json").read_text())["sources"]["traces"]
    assert said["files"] == 2
    assert said["said"] == [{"model": "m"}]
    assert (tmp_path / "out" / "kept.png").exists()
    assert (tmp_path / "out" / "kept.svg").exists()


def test_a_trace_that_does_not_say_what_was_kept_is_refused(tmp_path, samples, capsys):
    path = trace(tmp_path / "r.jsonl", [(0, 1)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["kept"] = None  # the writer was too slow
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for given_path, sentence in ((path, "does not say what was kept last"), (samples, "is no trace")):
        assert command.main(["--traces", str(given_path), "--out", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1
