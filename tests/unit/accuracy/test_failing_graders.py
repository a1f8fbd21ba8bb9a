"""Graders that fail, hang or crash."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from eval.accuracy import mathematics
from eval.accuracy.errors import EvalError
from eval.accuracy.judges import Judges
from eval.accuracy.verdict import Problem, Verdict


def fails(problem: Problem, answer: str) -> Verdict:
    if answer == "hang":
        time.sleep(60)
    if answer == "crash":
        os._exit(7)
    if answer == "memory":
        bytearray(9 << 30)  # a machine would give it, untouched
    if answer == "recursion":
        return fails(problem, answer)
    if answer == "cannot go on":
        raise EvalError("cannot go on")
    return Verdict(True)


def test_a_grader_that_fails_costs_its_verdict_alone():
    async def ask():
        judges = Judges(fails, 2, seconds=8)
        try:
            wrong = ("crash", "memory", "recursion")
            assert await judges(Problem("p", "", ""), "correct") == Verdict(True)  # started
            answers = (*wrong, *["correct"] * 5)
            verdicts = await asyncio.gather(*[judges(Problem("p", "", ""), answer) for answer in answers])
            with pytest.raises(EvalError, match="cannot go on"):
                await judges(Problem("p", "", ""), "cannot go on")
            return verdicts
        finally:
            judges.close()

    crash, memory, recursion, *graded = asyncio.run(ask())
    assert crash == Verdict(False, error="the grader ended with 7")
    assert not memory.correct
    assert memory.error.startswith("MemoryError")
    assert not recursion.correct
    assert recursion.error.startswith("RecursionError")
    assert graded == [Verdict(True)] * 5


def test_a_grader_that_hangs_is_ended():
    async def ask():
        judges = Judges(mathematics.judge, 1, seconds=10)
        try:
            problem = Problem("p", "", "204")
            assert (await judges(problem, "204")).correct
            judges._seconds = 1.0
            verdict = await judges(problem, "10^{10^{10^{10}}}")
            judges._seconds = 20.0
            return verdict, await judges(problem, "204")
        finally:
            judges.close()

    hung, after = asyncio.run(ask())
    assert hung == Verdict(False, error="the grader took more than 1 s")
    assert after.correct


def test_closing_waits_for_nobody():
    async def ask():
        judges = Judges(fails, 1, seconds=60)
        await judges(Problem("p", "", ""), "correct")
        hanging = asyncio.ensure_future(judges(Problem("p", "", ""), "hang"))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        judges.close()
        with pytest.raises(EvalError, match="stopped"):
            await hanging
        return time.monotonic() - began

    assert asyncio.run(ask()) < 10
