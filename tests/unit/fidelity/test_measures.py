"""KL, agreement and loss against a hand computation, and what the logit processor writes and forces."""

from __future__ import annotations

import math
from array import array
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.fidelity import forced
from eval.fidelity.measures import measure

# p = (1/2, 1/4, 1/4) with the full cache, q = (1/4, 1/2, 1/4) with the other.
FULL = torch.tensor([2.0, 1.0, 1.0]).log() + 3.0
OURS = torch.tensor([1.0, 2.0, 1.0]).log() - 5.0


def test_kl_is_of_the_full_distribution_from_ours():
    found = measure(OURS, FULL, 0)
    assert found.kl == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-6)
    assert found.agree == 0
    assert found.loss == pytest.approx(math.log(4), rel=1e-6)
    # The other way round it is the same number here; of unequal ones it is not.
    skewed = torch.tensor([6.0, 1.0, 1.0]).log()
    there = 0.75 * math.log(0.75 / 0.25) + 0.125 * math.log(0.125 / 0.5) + 0.125 * math.log(0.125 / 0.25)
    assert measure(OURS, skewed, 0).kl == pytest.approx(there, rel=1e-6)


def test_equal_predictions_have_no_distance_whatever_their_scale():
    assert measure(FULL, FULL, 2) == measure(FULL.clone(), FULL, 2)
    assert (measure(FULL, FULL, 2).kl, measure(FULL, FULL, 2).agree) == (0.0, 1.0)
    assert measure(FULL + 7, FULL, 2).kl == pytest.approx(0, abs=1e-12)
    assert measure(FULL * 2, FULL, 0).agree == 1


def test_a_token_without_probability_adds_nothing():
    full = torch.tensor([0.0, 0.0, -math.inf])
    assert measure(torch.zeros(3), full, 0).kl == pytest.approx(math.log(3 / 2))
    assert measure(full, torch.zeros(3), 0).kl == math.inf


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_distribution_is_refused(value):
    with pytest.raises(ValueError, match="no numbers"):
        measure(torch.tensor([0.0, value]), torch.zeros(2), 0)


class Requests:
    """Rows of a server's batch, as SGLang hands them to the processor."""

    def __init__(self, tmp_path, tokens: list[list[int]]):
        self.tmp_path, self.tokens = tmp_path, tokens
        for number, ids in enumerate(tokens):
            (tmp_path / f"{number}.f32").write_bytes(b"")
            for arm in ("full", "ours"):
                forced.begin(tmp_path / f"{arm}-{number}", len(ids))

    def step(self, logits: torch.Tensor, arm: str, done: list[int], held: list[int]) -> torch.Tensor:
        """`done` tokens of each request have been generated, `held` KV entries of them are there."""
        params = []
        for number, ids in enumerate(self.tokens):
            request = SimpleNamespace(
                output_ids=array("q", ids[: done[number]]),
                origin_input_ids=array("q", [5, 5]),
                kv=SimpleNamespace(kv_committed_len=2 + held[number]),
            )
            files = (self.tmp_path / f"{arm}-{number}", self.tmp_path / f"{number}.f32", arm == "full")
            params.append({"__req__": request, **forced.params(ids, *files)})
        return forced.Forced()(logits.clone(), params)

    def read(self, arm: str, number: int) -> np.ndarray:
        return forced.read(self.tmp_path / f"{arm}-{number}")


def test_the_processor_forces_each_requests_own_next_token_and_measures_before(tmp_path):
    requests = Requests(tmp_path, [[2, 0, 1], [1, 1]])
    for done in ([0, 0], [1, 1], [2, 1]):
        made = requests.step(torch.stack([FULL, OURS]), "full", done, done)
        assert made.softmax(-1).tolist()[0][requests.tokens[0][done[0]]] == 1.0
        assert made.argmax(-1).tolist() == [requests.tokens[0][done[0]], 1]
    requests.step(torch.stack([OURS, OURS]), "ours", [1, 1], [1, 0])
    kl, agree, loss, held = requests.read("ours", 0)[1]
    assert (agree, held) == (0, 1)
    assert kl == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert loss == pytest.approx(math.log(4), rel=1e-6)
    assert np.isnan(requests.read("ours", 0)[[0, 2]]).all()
    assert requests.read("ours", 1)[1].tolist() == [0, 1, pytest.approx(math.log(2)), 0]
    full = requests.read("full", 0)
    assert full[:, :2].tolist() == [[0, 1]] * 3
    assert full[:, 3].tolist() == [0, 1, 2]


def test_a_step_that_is_taken_again_replaces_what_it_wrote(tmp_path):
    """A prompt's chunk is sampled as well, and thrown away: its row is the next chunk's."""
    requests = Requests(tmp_path, [[0, 0]])
    requests.step(OURS[None], "full", [0], [0])
    requests.step(FULL[None], "full", [0], [0])
    requests.step(OURS[None], "full", [1], [1])
    requests.step(FULL[None], "ours", [0], [0])
    requests.step(OURS[None], "ours", [1], [1])
    assert requests.read("ours", 0)[:, 0].tolist() == [0, 0]


def test_the_server_gets_the_class_by_its_name():
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    assert isinstance(CustomLogitProcessor.from_str(forced.processor()), forced.Forced)
