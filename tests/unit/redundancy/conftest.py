"""Samples to measure."""

from __future__ import annotations

import json

import pytest


def sample(problem, thoughts, said):
    return json.dumps({"problem": problem, "sample": 0, "thoughts": thoughts, "said": said})


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "far.jsonl"
    rows = ['{"config": {"task": "t", "model": "m"}}', sample("p0", "a b a b", "c"), sample("p1", "a a a a", "a")]
    path.write_text("\n".join(rows) + "\n")
    return path
