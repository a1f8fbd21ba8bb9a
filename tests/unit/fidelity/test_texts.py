"""Texts as tokens of a model, and what does not fit: a sentence each, before any server starts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from eval.accuracy.errors import EvalError
from eval.compare.arms import FULL, Arm
from eval.fidelity import __main__ as command
from eval.fidelity import serving, texts
from eval.fidelity.measuring import Measuring
from eval.fidelity.texts import Text

REASONER = Path(__file__).resolve().parents[3] / "eval" / "reasoner" / "model"
WORDS = "A0 +6 A1 +8 A2 +0 A3 +8 A0 6 A1 4 A2 4 A3 2"


@pytest.fixture
def reasoner(tmp_path):
    """The model's configuration and tokenizer, which can be changed."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REASONER / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def words(tmp_path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


def test_a_text_is_cut_into_prompt_and_forced_tokens(reasoner, words):
    model = texts.model(str(reasoner))
    text = texts.read(words, model, 4, 6)
    assert model.tokenizer.decode(text.prompt + text.tokens) == "A0 +6 A1 +8 A2 +0 A3 +8 A0 6"
    assert (len(text.prompt), len(text.tokens), text.name) == (4, 6, "words")
    assert text.sha256 == hashlib.sha256(WORDS.encode()).hexdigest()
    assert model.vocabulary == json.loads((reasoner / "config.json").read_text())["vocab_size"]


def test_what_the_tokenizer_puts_first_is_in_the_prompt(reasoner, words):
    model = texts.model(str(reasoner))
    encoded = namedtuple("Encoded", "input_ids")([0, *model.tokenizer(WORDS).input_ids])
    with_begin = texts.Model(lambda text, **_: encoded, 99, 99)
    assert texts.read(words, with_begin, 4, 6).prompt == [0, *texts.read(words, model, 4, 6).prompt[:3]]


def run(folder: Path, *flags: str) -> int:
    given = ["--model-path", str(folder), "--out", str(folder / "out"), "--intervals", "4", "--window", "2"]
    return command.main([*given, "--prompt-tokens", "4", "--tokens", "10", *flags])


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--texts", "{text}", "--tokens", "13"], "words.txt is too short: it has 16 tokens"),
        (["--texts", "{text}", "--tokens", "13"], "give a longer text, or --tokens 12 at most"),
        (["--texts", "{binary}"], "binary is no text in UTF-8"),
        (["--texts", "nowhere.txt"], "no file is at 'nowhere.txt'"),
        (["--texts", "{text}", "{again}"], "two of --texts are named words"),
        (["--texts", "{text}", "--policies", "rpc,foo"], "policy must be one of"),
        (["--texts", "{text}", "--policies", "full"], "full KV is always there"),
        (["--texts", "{text}", "--policies", "lightthinker"], "'lightthinker' does not"),
        (["--texts", "{text}", "--policies", "no.module:rule"], "policy 'no.module:rule' could not be loaded"),
        (["--texts", "{text}", "--policies", "peak", "--baseline", "rpc"], "--baseline must be of --policies, peak"),
        (["--texts", "{text}", "--policies", "tova,tova"], "would be called the same"),
        (["--texts", "{text}", "--min-kept", "4"], "the first compression shows from token 12 on"),
        (["--texts", "{text}", "--tokens", "7"], "the first compression shows from token 8 on"),
        (["--texts", "{text}", "--ratios", "1"], "ratio must be a number above 1"),
        (["--texts", "{text}", "--server-flags", "'"], "--server-flags can't be read"),
        (["--texts", "{text}", "--model-path", "{empty}"], "holds no model and tokenizer that transformers loads"),
        (["--texts", "{text}", "--tokens", "12", "--prompt-tokens", "8000"], "positions, and the model has"),
    ],
)
def test_what_does_not_fit_is_one_sentence(reasoner, words, capsys, monkeypatch, flags, sentence):
    monkeypatch.setattr(command.Measuring, "measure", lambda *_: 1 / 0)
    (reasoner / "binary").write_bytes(b"\xff\xfe\x00")
    for folder in ("empty", "other"):
        (reasoner / folder).mkdir()
    shutil.copy(words, reasoner / "other" / "words.txt")
    known = {
        **{name: reasoner / name for name in ("binary", "empty")},
        "text": words,
        "again": reasoner / "other" / "words.txt",
    }
    assert run(reasoner, *(flag.format(**known) for flag in flags)) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1


def test_another_models_tokenizer_is_refused(reasoner, words, capsys):
    config = json.loads((reasoner / "config.json").read_text())
    (reasoner / "config.json").write_text(json.dumps(config | {"vocab_size": 20}))
    assert run(reasoner, "--texts", str(words)) == 1
    assert "the tokenizer in --model-path must be the model's own" in capsys.readouterr().err


def test_a_full_disk_is_said_before(reasoner, words, capsys, monkeypatch):
    monkeypatch.setattr(command.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    assert run(reasoner, "--texts", str(words)) == 1
    assert "0.0 GB are free" in capsys.readouterr().err


def test_a_directory_holds_one_measurement(reasoner, words, capsys, monkeypatch):
    monkeypatch.setattr(command.Measuring, "measure", lambda *_: [])
    assert run(reasoner, "--texts", str(words)) == 0
    assert run(reasoner, "--texts", str(words), "--ratios", "2,4") == 0
    words.write_text(WORDS + " ")
    assert run(reasoner, "--texts", str(words)) == 1
    assert "holds another measurement: texts was" in capsys.readouterr().err


def test_a_policy_of_another_package_is_an_arm(reasoner, words, monkeypatch):
    measured = []
    monkeypatch.setattr(command.Measuring, "measure", lambda _, every: measured.extend(every) or [])
    assert run(reasoner, "--texts", str(words), "--policies", "rpc,sglang_rpc.policy.tova:tova") == 0
    assert [arm.policy for arm in measured] == [FULL, "rpc", "sglang_rpc.policy.tova:tova"]


def test_an_arm_without_what_it_would_be_compared_with_is_refused(tmp_path):
    with pytest.raises(EvalError, match=r"t\.f32 is gone, with which rpc-P4-R2-c2 would be compared"):
        Measuring("m", [], [TEXT], tmp_path)._serve("rpc", [ARM])


TEXT = Text("t", [0, 0], list(range(10)), "")
ARM = Arm("rpc", 4, 2, 2.0)


def answer(made: list[int] = TEXT.tokens, **receipt) -> dict:
    told = {"compressions": 1, "early": 0, "late": 0, "retractions": 0, **receipt}
    return {"output_ids": made, "meta_info": {"rpc": told, "finish_reason": {"type": "length"}}}


def test_an_answer_as_expected_is_taken():
    serving.check(ARM, TEXT, 200, answer())
    serving.check(Arm(FULL, 4, 2, 2.0), TEXT, 200, answer(compressions=0))


@pytest.mark.parametrize(
    ("status", "given", "sentence"),
    [
        (400, "ratio is bad", "rpc-P4-R2-c2, t: the server answered 400: ratio is bad"),
        (200, answer([0, 1, 2, 9, *range(4, 10)]), "generated 10 tokens, of which 3 are the text's 10"),
        (200, answer([0, 1]), "generated 2 tokens, of which 2 are the text's 10; it ended with {'type': 'length'}"),
        (200, {"output_ids": TEXT.tokens, "meta_info": {}}, "no receipt of RPC"),
        (200, answer(compressions=0, reason="no query slot"), "the receipt has 0 (no query slot)"),
        (200, answer(compressions=2), "1 compressions were due, and the receipt has 2"),
        (200, answer(late=1), "the receipt has 1, 1 late; give the server memory"),
        (200, answer(early=1, retractions=2), "1 early, 2 retractions"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_said(status, given, sentence):
    with pytest.raises(EvalError) as error:
        serving.check(ARM, TEXT, status, given)
    assert sentence in str(error.value)


def test_a_token_that_nothing_was_written_of_is_said(tmp_path):
    serving.forced.begin(tmp_path / "t.f64", 3)
    with pytest.raises(EvalError, match="lacks 3 of 3 tokens"):
        serving._check_file(tmp_path / "t.f64")
