"""The texts that are measured, and the command that measures them."""

from __future__ import annotations

import csv
import json

import pytest

from eval.redundancy import __main__ as command
from eval.redundancy import texts


def test_samples_give_a_text_each_of_the_part_asked_for(samples):
    def tokens(part):
        return [text.tokens for text in texts.read("g", samples, part, texts.WORDS)]

    assert tokens("generated") == [["a", "b", "a", "b", "c"], ["a"] * 5]
    assert tokens("thoughts") == [["a", "b", "a", "b"], ["a"] * 4]
    assert tokens("said") == [["c"], ["a"]]


def test_the_command_writes_its_table(samples, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("w x y z\n")
    (tmp_path / "two.txt").write_text("w\n")
    out = tmp_path / "out"
    given_groups = ["--group", f"reasoner={samples}", "--group", f"prose={tmp_path}/*.txt"]
    assert command.main([*given_groups, "--tokens", "4", "--part", "thoughts", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "n-grams of 4 words (words)" in printed
    assert "prose: 1 of 2 texts are shorter than 4" in printed
    rows = list(csv.DictReader((out / "texts.csv").open()))
    assert [(r["group"], r["n"], r["entropy"]) for r in rows if r["n"] == "1"] == [
        ("reasoner", "1", "1"),
        ("reasoner", "1", "0"),
        ("prose", "1", "2"),
    ]
    summary = list(csv.DictReader((out / "summary.csv").open()))
    assert [(r["group"], r["texts"], r["entropy"]) for r in summary if r["n"] == "1"] == [
        ("reasoner", "2", "0.5"),
        ("prose", "1", "2"),
    ]
    said = json.loads((out / "conditions.json").read_text())
    assert (said["tokens"], said["part"], said["tokenizer"]) == (4, "thoughts", "words")
    assert said["sources"]["reasoner"]["sha256"] == texts.sha256(samples)
    assert "commit" in said
    assert (out / "entropy.png").stat().st_size > 1000
    assert "<svg" in (out / "entropy.svg").read_text()


def test_a_local_tokenizer_is_used_and_said(samples, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("A0 3 A1 0 n55 a0 7\n")
    flags = ["--tokenizer", "eval/reasoner/model", "--tokens", "7", "--out", str(tmp_path / "out")]
    assert command.main(["--group", f"trace={tmp_path}/long.txt", *flags]) == 0
    assert "n-grams of 7 tokens (model/tokenizer.json, sha256 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--group", "nothing"], "--group must be NAME=FILE [FILE ...], got 'nothing'"),
        (["--group", "=x"], "--group must be NAME=FILE"),
        (["--group", "g=missing/*.txt"], "no file is at 'missing/*.txt'"),
        (["--group", "g={samples}", "--group", "g={samples}"], "--group g is there twice"),
        (["--group", "g={samples}"], "all 2 texts of group g are shorter than --tokens 2048: the longest has 5 words"),
        (["--group", "g={binary}"], "is no text in UTF-8"),
        (["--group", "g={other}"], "is no file of eval.accuracy's samples"),
        (["--group", "g={empty}"], "group g holds no text"),
        (["--group", "g={lacking}"], "lacks 'thoughts'"),
        (["--group", "g={samples}", "--tokenizer", "nowhere"], "--tokenizer must be a directory that holds"),
        (["--group", "g={samples}", "--tokenizer", "{directory}"], "--tokenizer must be a directory that holds"),
        (["--group", "g={samples}", "--tokenizer", "{other}"], "is no tokenizer that the library tokenizers can read"),
    ],
)
def test_bad_input_gets_one_sentence(samples, tmp_path, capsys, arguments, sentence):
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("other", "empty", "lacking")}
    paths["other"].write_text('{"text": "a"}\n')
    paths["empty"].write_text('{"config": {}}\n')
    paths["lacking"].write_text('{"config": {}}\n{"problem": "p", "sample": 0}\n')
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "directory").mkdir()
    known = dict(paths, samples=samples, binary=tmp_path / "binary", directory=tmp_path / "directory")
    flags = [argument.format(**known) for argument in arguments]
    assert command.main([*flags, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
