"""Requests that are played token by token, and random plans of them."""

import random

import numpy as np
from hypothesis import strategies as st

from sglang_rpc.runtime.admission import Plan
from sglang_rpc.types import NEVER


def play(plan: Plan) -> list[int]:
    """What it holds after 0, 1, ... `remaining` steps, before a compression that is due there: its highest moments."""
    held, due, moments = plan.held, plan.compresses_at, []
    for generated in range(plan.generated, plan.generated + plan.remaining + 1):
        moments.append(held)
        if generated >= due:
            compressions = (generated - plan.start - plan.window) // plan.interval
            kept = max(plan.min_kept, compressions * plan.budget_step)
            held = min(held, plan.start + kept + plan.window)
            due = plan.start + (compressions + 1) * plan.interval + plan.window
        held += 1
    return moments


def draw_plan(rng: random.Random, on_schedule: bool | None = None) -> Plan:
    """A request somewhere on its way: on its regular schedule, or holding less, or late with its next compression."""
    interval, window, start = rng.randint(2, 30), rng.randint(1, 20), rng.choice([0, 0, rng.randint(1, 20)])
    step, region = rng.randint(1, interval - 1), rng.randint(0, 100)
    generated, remaining, ends = start + region, rng.randint(0, 120), rng.random() < 0.6
    prompt = rng.randint(0, 40)
    if on_schedule is None and rng.random() < 0.2:
        return Plan(rng.randint(0, generated), generated, remaining, ends, prompt=prompt)  # never compressed
    if on_schedule is None:
        on_schedule = rng.random() < 0.3
    done = max(0, (region - window) // interval)
    least = rng.choice([0, 0, rng.randint(1, 60)])
    if on_schedule and done and (region - window) % interval == 0 and rng.random() < 0.5:
        done -= 1  # it is due at this very step
    if not on_schedule:
        done = rng.randint(0, done)
    held = start + region - done * interval + min(max(least, done * step), done * interval)
    due = start + (done + 1) * interval + window
    if not on_schedule:
        held = rng.randint(start + min(region, window), held)
        due += rng.choice([0, rng.randint(0, 40)])
    return Plan(held, generated, remaining, ends, due, start, interval, window, step, least, prompt)


def draw_buckets(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """From now on without a gap; the last one has no end."""
    begin = np.array([0, *sorted(rng.randint(0, 150) for _ in range(rng.randint(0, 8)))])
    return begin, np.append(begin[1:], NEVER)


def highest_played(plan: Plan, begin: np.ndarray, end: np.ndarray) -> list[int]:
    moments = play(plan)
    afterwards = 0 if plan.ends else max(moments)
    return [max(moments[b : e + 1]) if b < plan.remaining else afterwards for b, e in zip(begin, end, strict=True)]


seeds = st.integers(0, 2**32).map(random.Random)


# P 16, R 4, T 4: due at 20, 36 and 52, where 20, 24 and 28 are held and 8, 12 and 16 are kept.
NEW = dict(held=0, generated=0, compresses_at=20, interval=16, window=4, budget_step=4)
