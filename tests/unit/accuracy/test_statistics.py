"""What is counted over samples."""

import math

import pytest

from eval.accuracy.statistics import holm, loops, paired, pass_at, report, sign_flip, standard_error
from tests.unit.accuracy.samples import row


def test_the_standard_error_is_over_problems():
    rows = [
        row(p, s, correct=c)
        for p, marks in {"a": (1, 1), "b": (1, 0), "c": (0, 0)}.items()
        for s, c in enumerate(marks)
    ]
    result = report(rows)
    assert (result.problems, result.samples, result.k) == (3, 6, 2)
    assert result.accuracy == pytest.approx(0.5)
    assert result.error == pytest.approx(math.sqrt(0.25 / 3))  # variance of 1, 0.5, 0
    assert result.pass_at_k == pytest.approx(2 / 3)
    assert math.isnan(standard_error([0.3]))
    # 200 of 200 is not certainty: by Laplace's rule one of 202 might fail.
    assert standard_error([1.0] * 200) == pytest.approx(math.sqrt(1 / 202 * (201 / 202) / 200))


def test_pass_at_k_equals_drawing_every_way():
    import itertools

    marks = [True, False, False, True, False]
    for k in range(1, 6):
        drawn = [any(pick) for pick in itertools.combinations(marks, k)]
        assert pass_at(k, marks) == pytest.approx(sum(drawn) / len(drawn))


def test_how_samples_ended():
    receipt = {"compressions": 2, "evicted": 30, "generated": 60}
    rows = [
        row("a", finish="length", answer=None, correct=False, looping=True, tokens=100),
        row("b", receipt=receipt, tokens=60),
        row("c", receipt={**receipt, "compressions": 0, "evicted": 0}, tokens=20),
    ]
    result = report(rows)
    assert (result.truncated, result.no_answer, result.looping) == (pytest.approx(1 / 3),) * 3
    assert result.compressed == pytest.approx(1 / 3)
    assert result.evicted == pytest.approx(0.25)
    assert (result.tokens, result.tokens_median) == (60, 60)
    assert report([row()]).compressed is None


def test_pairs_are_of_the_problems_both_have():
    mean, error, count = paired({"a": 1.0, "b": 0.5, "x": 0.0}, {"a": 0.0, "b": 0.5, "y": 1.0})
    assert (mean, count) == (0.5, 2)
    assert error == pytest.approx(0.5)
    assert paired({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}) == (0.0, 0.0, 2)


@pytest.mark.parametrize("more", [0, 1, 3, 10, 150])
@pytest.mark.parametrize("fewer", [0, 1, 4])
def test_of_one_sample_a_problem_it_is_mcnemars_test(more, fewer):
    from scipy.stats import binomtest

    told = binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    assert sign_flip([1] * more + [0] * 50 + [-1] * fewer) == pytest.approx(told, rel=1e-9)


@pytest.mark.parametrize("differences", [[3, -1, 2, 0, 1], [2, 2, 2], [-8, 1, 1], [5], []])
def test_signs_are_flipped_in_every_way(differences):
    import itertools

    flips = [sum(s * d for s, d in zip(signs, differences, strict=True))
             for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    as_far = sum(abs(total) >= abs(sum(differences)) for total in flips)
    assert sign_flip(differences) == pytest.approx(as_far / len(flips))
    assert sign_flip([-d for d in differences]) == sign_flip(differences)


def test_holm_adjusts_step_by_step():
    # Worked by hand: 3 x 0.01, 2 x 0.02, then the largest, which may not fall below the one before.
    assert holm([0.02, 0.01, 0.03]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e f g h", False),
        ("x y " + "no no no no", True),
        ("start " + "B4 4 " * 4, True),
        ("B4 4 " * 3 + "B4", False),
        ("1 2 3 4 " * 4, True),
        ("1 2 3 4 " * 4 + "5", False),
        ("", False),
    ],
)
def test_loops_are_ends_that_repeat(text, expected):
    assert loops(text.split()) is expected
