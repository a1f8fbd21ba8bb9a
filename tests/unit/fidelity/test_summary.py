"""Rows of texts, and what they say of an arm: by hand."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest

from eval.compare.arms import FULL, Arm, arms
from eval.fidelity import rows, summary
from eval.fidelity.rows import Row, compressions, row

P, R = 4, 2
RPC, PEAK = Arm("rpc", P, R, 2.0), Arm("peak", P, R, 2.0)


def test_only_tokens_after_the_first_compression_count():
    """R + P entries are held when token 6 is predicted; it is compressed after that, so token 7 is the first."""
    tokens = 10
    ours, full = np.zeros((tokens, 4)), np.zeros((tokens, 4))
    ours[:, 0] = [1, 1, 1, 1, 1, 1, 1, 4, 5, 6]
    ours[:, 1] = [0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    ours[:, 2], full[:, 2] = 3.0, [9, 9, 9, 9, 9, 9, 9, 1, 2, 3]
    ours[:, 3], full[:, 3] = [0, 1, 2, 3, 4, 5, 6, 5, 6, 7], range(10)
    found = row(RPC, "t", ours, full)
    assert (found.tokens, found.compressions) == (3, 1)
    assert (found.kl, found.kl_before, found.agree) == (5.0, 1.0, pytest.approx(2 / 3))
    assert (found.loss, found.to_full) == (3.0, 1.0)
    assert (found.mean_entries, found.peak_entries, found.mean_share) == (3.9, 7, pytest.approx(3.9 / 4.5))


@pytest.mark.parametrize(("tokens", "due"), [(6, 0), (7, 0), (8, 1), (11, 1), (12, 2), (15, 2), (16, 3)])
def test_due_dates(tokens, due):
    assert compressions(RPC, tokens) == due
    assert compressions(Arm(FULL, P, R, 2.0), tokens) == 0


def test_a_floor_puts_the_first_compression_off():
    """5 are kept: on the first date there are 4 candidates, on the second 8."""
    floor = Arm("rpc", P, R, 2.0, min_kept=5)
    assert rows.first_compressed(floor) == R + 2 * P + 1
    assert [compressions(floor, tokens) for tokens in (11, 12, 15, 16)] == [0, 1, 1, 2]


def of(arm: Arm, kl: list[float], agree: list[float], to_full: list[float]) -> list[Row]:
    return [
        Row(
            *(arm.name, arm.policy, arm.interval, arm.window, arm.ratio, arm.min_kept, f"t{number}", 10, 1),
            *(kl[number], 0.0, agree[number], 1.0, to_full[number], 4.0, 6, 0.5),
        )
        for number in range(len(kl))
    ]


@pytest.fixture
def found():
    return {
        Arm(FULL, P, R, 2.0): of(Arm(FULL, P, R, 2.0), [0, 0, 0], [1, 1, 1], [0, 0, 0]),
        RPC: of(RPC, [1.0, 2.0, 4.0], [0.5, 0.5, 0.8], [0.1, 0.2, 0.6]),
        PEAK: of(PEAK, [0.5, 2.0, 1.0], [0.6, 0.5, 0.9], [0.1, 0.2, 0.3]),
    }


def test_texts_are_the_units_of_every_error(found):
    full, rpc, peak = summary.summary(found, "rpc")
    assert (full["kl"], full["agree"], full["lower_on"]) == (0, 1, None)
    assert math.isnan(full["ratio_to_baseline"])
    assert (rpc["texts"], rpc["tokens"], rpc["ratio_to_baseline"]) == (3, 30, 1.0)
    assert rpc["kl"] == pytest.approx(7 / 3)
    assert rpc["kl_error"] == pytest.approx(math.sqrt(7 / 3 / 3))  # variance of 1, 2, 4: 7/3
    assert (rpc["to_full"], rpc["to_full_error"]) == (pytest.approx(0.3), pytest.approx(math.sqrt(0.07 / 3)))
    # Logarithms of 1/2, 1, 1/4 are 0, -1, -2 times log 2: their mean -1, its error 1/sqrt(3).
    assert peak["ratio_to_baseline"] == pytest.approx(0.5)
    assert peak["ratio_low"] == pytest.approx(0.5 * 2 ** -(1 / math.sqrt(3)))
    assert peak["ratio_high"] == pytest.approx(0.5 * 2 ** (1 / math.sqrt(3)))
    assert peak["lower_on"] == 2  # equal is not lower
    assert peak["agree_to_baseline"] == pytest.approx(0.2 / 3)
    assert peak["agree_to_baseline_error"] == pytest.approx(math.sqrt(0.01 / 3 / 3))  # of 0.1, 0, 0.1


def test_arms_are_compared_at_their_own_interval_and_ratio(found):
    found[Arm("peak", P, R, 4.0)] = of(Arm("peak", P, R, 4.0), [1, 1, 1], [0, 0, 0], [0, 0, 0])
    last = summary.summary(found, "rpc")[-1]
    assert math.isnan(last["ratio_to_baseline"])
    assert last["lower_on"] is None


@pytest.mark.parametrize(("ours", "theirs"), [({}, {}), ({"a": 0.0}, {"a": 1.0}), ({"a": 1.0}, {"b": 1.0})])
def test_without_a_ratio_there_is_none(ours, theirs):
    assert all(math.isnan(value) for value in summary.geometric_ratio(ours, theirs))


def test_the_files(found, tmp_path):
    made = summary.summary(found, "rpc")
    summary.write(made, summary.COLUMNS, tmp_path / "summary.csv")
    summary.write(summary.plain(each for arm in found.values() for each in arm), rows.NAMES, tmp_path / "texts.csv")
    told = list(csv.DictReader((tmp_path / "summary.csv").open()))
    assert [line["arm"] for line in told] == ["full", "rpc-P4-R2-c2", "peak-P4-R2-c2"]
    assert (told[2]["ratio_to_baseline"], told[2]["lower_on"], told[0]["lower_on"]) == ("0.5", "2", "")
    assert len(list(csv.DictReader((tmp_path / "texts.csv").open()))) == 9
    text = summary.markdown(made, found, "rpc")
    assert "| `peak-P4-R2-c2` | 1.1667 ± 0.4410 | 0.500 [0.335, 0.746] | 2 of 3 | 66.7 ± 12.0 |" in text
    assert "| `peak-P4-R2-c2` | 0.5000 | 2.0000 | 1.0000 |" in text
    assert "`full` | 0.0000 | 0.0000" not in text


def test_full_measures_the_tokens_of_the_longest_interval():
    made = arms(["rpc"], [4, 8], R, [2.0])
    assert rows.first_compressed(made[0]) == R + 8 + 1
