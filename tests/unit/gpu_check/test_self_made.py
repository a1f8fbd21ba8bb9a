"""Recordings that the oracle makes where the authors' are missing: their format, their settings, their tokens."""

import json

import pytest

from launch.gpu_check.programs import self_made
from launch.gpu_check.programs.self_made import RECIPES
from tests.engine.engines import GOLDENS, Golden
from tests.engine.oracle import Oracle
from tests.engine.test_oracle import rule_of


@pytest.mark.parametrize("name", ["gqa_group_p64", "mha_all_p128"])
def test_the_recorder_makes_the_authors_own_recordings(goldens, name):
    golden = Golden.load(goldens / name)
    found = self_made.record(Oracle(golden.path), golden.prompt, len(golden.output), rule_of(golden))
    assert found.output == golden.output
    assert found.compressions == golden.compressions
    assert found.gap == pytest.approx(json.loads((golden.path / "golden.json").read_text())["min_logit_gap"], rel=0.1)


def test_the_recipes_are_those_of_the_authors_recordings(goldens):
    assert tuple(sorted(RECIPES)) == tuple(sorted(GOLDENS))
    for name, recipe in RECIPES.items():
        golden = Golden.load(goldens / name)
        config = json.loads((goldens / name / "config.json").read_text())
        assert recipe.rule == rule_of(golden)
        assert recipe.tokens == len(golden.output)
        dims = {"hidden_size": "hidden", "num_attention_heads": "heads", "num_key_value_heads": "kv_heads"}
        dims |= {"intermediate_size": "wide", "num_hidden_layers": "layers", "vocab_size": "vocabulary"}
        assert {ours: config[theirs] for theirs, ours in dims.items()} == vars(recipe.dims)


def test_what_is_written_is_read_as_a_recording(goldens, tmp_path):
    self_made.write(tmp_path, "gqa_all_p64")
    golden, theirs = Golden.load(tmp_path / "gqa_all_p64"), Golden.load(goldens / "gqa_all_p64")
    assert golden.config == theirs.config
    assert golden.compressions == theirs.compressions
    assert (len(golden.prompt), len(golden.output), len(golden.full)) == (23, 400, 400)
    assert golden.output[:72] == golden.full[:72]  # P + R tokens
    assert golden.output != golden.full
    oracle = Oracle(golden.path)
    gaps, closest = oracle.gaps(golden.prompt, golden.output, rule_of(golden))
    assert max(gaps) == 0
    assert closest >= self_made.LEAST_SCORE_GAP
    assert max(oracle.gaps(golden.prompt, golden.output, None)[0]) > 0.01  # it can tell the two apart


def test_a_model_with_near_ties_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(self_made, "LEAST_GAP", 1.0)
    monkeypatch.setattr(self_made, "MOST_SEEDS", 1)
    with pytest.raises(RuntimeError, match="near ties"):
        self_made.write(tmp_path, "gqa_max_p48")
