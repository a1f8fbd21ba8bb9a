"""Drafts of a model that branch, where rows come and go, by drafts that read hidden states, and without a part."""

from __future__ import annotations

import pytest

from tests.engine import engines, speculative
from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.speculative import AHEAD, branching, drafting, speculating

NAME = "gqa_all_p64"


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / NAME)


@pytest.mark.long
@pytest.mark.parametrize("page", [1, 16])
def test_retracted_over_and_over(goldens, golden, tmp_path, page):
    n = len(golden.output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        more = branching(3, 2, page_size=page, **AHEAD)
        with speculating(golden.path, golden.config, goldens / NAME, 6, **more) as running:
            results = running.generate(input_ids=[golden.prompt] * 2, sampling_params=[greedy(n)] * 2)
            seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [result["output_ids"] for result in results] == [golden.output] * 2, receipts
    assert sum(receipt["restored"] for receipt in receipts) > 20
    assert {(r["compressions"], r["late"]) for r in receipts} == {(golden.compressions, 0)}


@pytest.mark.long
@pytest.mark.parametrize("page", [1, 16])
def test_compressed_early_where_lengths_are_not_known(goldens, golden, tmp_path, page):
    """SGLang admits more than the pool holds to the end: windows are recorded ahead of time, and compressed."""
    more = branching(3, 2, page_size=page, max_total_tokens=960, schedule_conservativeness=0.1)
    prompts = [golden.prompt[i:] + golden.prompt[:i] for i in range(10)]
    with speculating(golden.path, golden.config, goldens / NAME, 6, **more) as running:
        results = running.generate(input_ids=prompts, sampling_params=[greedy(300, ignore_eos=False)] * 10)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [len(result["output_ids"]) for result in results] == [300] * 10
    assert sum(receipt["early"] for receipt in receipts) > 0, receipts


@pytest.mark.long
def test_a_tree_that_sglang_chooses(golden, tmp_path):
    """For a Llama EAGLE branches unless it is told not to: five steps of four branches, eight rows of a verify."""
    plain = speculative.one_layer(golden.path, tmp_path / "plain")
    model = speculative.as_llama(plain, tmp_path / "model")
    draft = speculative.as_llama(speculative.eagle_of(plain, tmp_path / "plain-draft"), tmp_path / "draft")
    prompts, params = [golden.prompt, golden.prompt[5:], golden.prompt[9:]], [greedy(300)] * 3
    with engine(model, golden.config, disable_overlap_schedule=True) as running:
        expected = running.generate(input_ids=prompts, sampling_params=params)
    args = {"speculative_algorithm": "EAGLE", "speculative_draft_model_path": str(draft), "page_size": 1}
    with engine(model, golden.config, disable_overlap_schedule=True, **args) as running:
        results = running.generate(input_ids=prompts, sampling_params=params)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert [result["output_ids"] for result in results] == [result["output_ids"] for result in expected]
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert min(receipt["compressions"] for receipt in receipts) > 2
    assert min(receipt["tokens_per_step"] for receipt in receipts) > 1.5, receipts


@pytest.mark.parametrize("page", [pytest.param(1, marks=pytest.mark.long), 16])
def test_eagle_branches(golden, tmp_path, page):
    model = speculative.one_layer(golden.path, tmp_path / "model")
    draft = speculative.eagle_of(model, tmp_path / "draft")
    prompts = [golden.prompt, golden.prompt[5:], [*golden.prompt[9:], 7, 8]]
    params = [greedy(500)] * 3 + [greedy(300, {"interval": 9, "window": 4, "ratio": 3})] * 3
    with engine(model, golden.config, disable_overlap_schedule=True) as running:
        expected = running.generate(input_ids=prompts * 2, sampling_params=params)
    more = branching(3, 2, speculative_algorithm="EAGLE", page_size=page)
    with speculating(model, golden.config, draft, 8, **more) as running:
        results = running.generate(input_ids=prompts * 2, sampling_params=params)
    assert [result["output_ids"] for result in results] == [result["output_ids"] for result in expected]
    for result in results[:3]:
        receipt = result["meta_info"]["rpc"]
        print(receipt)
        assert receipt["compressions"] == 7
        assert receipt["tokens_per_step_compressed"] > 0.6 * receipt["tokens_per_step"] > 1


@pytest.mark.long
@pytest.mark.parametrize("ahead", [{}, AHEAD], ids=["", "overlap"])
def test_eagle3_branches_with_random_weights(golden, tmp_path, ahead):
    draft = speculative.eagle3_of(golden.path, tmp_path / "draft")
    more = branching(3, 4, speculative_algorithm="EAGLE3", **ahead)
    with speculating(golden.path, golden.config, draft, 8, **more) as running:
        result = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
    assert result["output_ids"] == golden.output
    assert result["meta_info"]["rpc"]["compressions"] == golden.compressions


@pytest.mark.long
@pytest.mark.parametrize(
    "without",
    [speculative.without_the_cut, speculative.without_accepted_queries, speculative.with_queries_by_position],
    ids=["the cut", "accepted queries", "queries by row"],
)
def test_without_a_part_it_differs(goldens, golden, monkeypatch, without):
    monkeypatch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(without))
    monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "0")
    with engine(golden.path, golden.config, **drafting(goldens / NAME, 6, **branching(3, 2))) as running:
        result = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
    date = golden.config.interval + golden.config.window
    assert result["output_ids"][: date + 1] == golden.output[: date + 1]
    assert result["output_ids"] != golden.output
