"""eval.fidelity through a server: it measures what a plain transformers loop does, and nothing without an eviction."""

from __future__ import annotations

import contextlib
import csv
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.bench.server import Server
from eval.compare.arms import FULL, Arm
from eval.fidelity import __main__ as command
from eval.fidelity import measuring, serving, texts
from eval.fidelity.forced import read
from eval.fidelity.measures import measure
from eval.parity.loop import RECORDING, Method, generate
from tests.conftest import ROOT
from tests.engine.servers import server

MODEL = ROOT / "eval" / "reasoner" / "model"
PROMPT, TOKENS, P, R = 12, 100, 16, 4
NAMES = ("one", "two")
#: Bounds of what float32 leaves of equal computations, which the server may do for one text or for both: it decides by
#: the moment in which each arrives. A compression makes 0.01 nats and more.
SAME_KL, SAME_LOSS = 1e-6, 1e-3


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    flags = ["--dtype", "float32", "--max-total-tokens", "1024", "--rpc-query-slots", "4"]
    with server(folder, "--model-path", str(MODEL), *flags, *serving.FLAGS) as started:
        yield Server(started.url, started.process, started.log)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Words in no order: the model is sure of none, so that all of its distribution counts."""
    folder = tmp_path_factory.mktemp("texts")
    vocabulary = sorted(word for word in AutoTokenizer.from_pretrained(MODEL).get_vocab() if not word.startswith("<"))
    draw = random.Random(1)
    for name in NAMES:
        (folder / f"{name}.txt").write_text(" ".join(draw.choices(vocabulary, k=PROMPT + TOKENS)))
    return [folder / f"{name}.txt" for name in NAMES]


class Told:
    """A model made to say given tokens; the logits that it would have chosen by are kept."""

    def __init__(self, whole: Any, tokens: list[int]):
        self._whole, self._tokens, self.logits = whole, tokens, list[torch.Tensor]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def __call__(self, **inputs: Any) -> Any:
        output = self._whole(**inputs)
        self.logits.append(output.logits[0, -1].clone())
        output.logits[0, -1] = -torch.inf
        output.logits[0, -1, self._tokens[len(self.logits) - 1]] = 0
        return output


def by_the_loop(text: texts.Text, method: Method) -> tuple[np.ndarray, int]:
    """[tokens, 3] of KL, agreement and loss, and entries held at the end."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation=RECORDING).eval()
    full, ours = Told(model, text.tokens), Told(model, text.tokens)
    generate(full, [text.prompt], len(text.tokens), set(), None, None)
    (made,) = generate(ours, [text.prompt], len(text.tokens), set(), method, None)
    assert made.ids == text.tokens
    each = [measure(*logits, token) for *logits, token in zip(ours.logits, full.logits, text.tokens, strict=True)]
    return np.array([[one.kl, one.agree, one.loss] for one in each]), made.held


def test_the_command_measures_what_a_plain_loop_does(running, files, tmp_path, monkeypatch, capsys):
    started = []

    @contextlib.contextmanager
    def same_server(module, flags, *_):
        started.append((module, flags))
        yield running

    monkeypatch.setattr(measuring.server, "running", same_server)
    paths = [str(path) for path in files]
    given = ["--model-path", str(MODEL), "--texts", *paths, "--policies", "rpc", "--intervals", str(P), "--ratios", "4"]
    sizes = ["--window", str(R), "--prompt-tokens", str(PROMPT), "--tokens", str(TOKENS), "--out", str(tmp_path)]
    assert command.main([*given, *sizes]) == 0, capsys.readouterr().err
    assert len(started) == 1
    assert started[0][0] == "sglang_rpc.launch_server"
    assert {"--rpc-policy", "rpc", *serving.FLAGS} <= set(started[0][1])

    told = {(row["policy"], row["text"]): row for row in csv.DictReader((tmp_path / "texts.csv").open())}
    assert set(told) == {(policy, name) for policy in (FULL, "rpc") for name in NAMES}
    model = texts.model(str(MODEL))
    for text in texts.read_all(files, model, PROMPT, TOKENS):
        loop, held = by_the_loop(text, Method(P, R, 4))
        ours = read(tmp_path / "tokens" / f"rpc-P{P}-R{R}-c4" / f"{text.name}.f64")
        assert np.allclose(ours[:, [0, 2]], loop[:, [0, 2]], rtol=1e-3, atol=1e-6)
        assert (ours[:, 1] == loop[:, 1]).all()
        assert ours[-1, 3] == held
        row = told["rpc", text.name]
        assert float(row["kl"]) == pytest.approx(loop[R + P + 1 :, 0].mean(), rel=1e-3)
        assert float(row["kl"]) > 0.01
        assert abs(float(row["kl_before"])) < SAME_KL
        assert (row["compressions"], row["peak_entries"]) == ("5", str(TOKENS - 1 - 5 * (P - P // 4)))
        assert (told[FULL, text.name]["kl"], told[FULL, text.name]["to_full"]) == ("0", "0")
    assert command.main([*given, *sizes]) == 0
    assert len(started) == 1  # all is there


def test_without_an_eviction_nothing_changes(running, files, tmp_path):
    """A request whose first compression would be due after its end, against the full KV cache."""
    read_texts = texts.read_all(files, texts.model(str(MODEL)), PROMPT, TOKENS)
    store = serving.Files(tmp_path)
    full, late = Arm(FULL, P, R, 4.0), Arm("rpc", TOKENS, R, 4.0)
    serving.measure(running, full, read_texts, store)
    serving.measure(running, late, read_texts, store)
    for text in read_texts:
        ours = read(store.tokens(late, text))
        assert np.abs(ours[:, 0]).max() < SAME_KL
        assert ours[:, 1].all()
        assert ours[:, 3].tolist() == list(range(TOKENS))
        assert np.allclose(ours[:, 2], read(store.tokens(full, text))[:, 2], rtol=SAME_LOSS)
