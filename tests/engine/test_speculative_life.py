"""Speculative decoding with compression where memory is short, and what it would be without its parts."""

from __future__ import annotations

import pytest

from tests.engine import engines, speculative
from tests.engine.engines import Golden, assert_balanced, engine, greedy, look_inside
from tests.engine.speculative import AHEAD, branching, drafting, speculating

NAME = "gqa_all_p64"


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / NAME)


#: Whether a step is planned while the last one runs. With overlap there is less that does not depend on the other.
SCHEDULING = pytest.mark.parametrize("ahead", [pytest.param({}, marks=pytest.mark.long), AHEAD], ids=["", "overlap"])


@SCHEDULING
def test_retracted_over_and_over(goldens, golden, tmp_path, ahead):
    """SGLANG_TEST_RETRACT retracts a request every third step; each comes back with its KV, and with its draft's."""
    n = len(golden.output)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SGLANG_TEST_RETRACT", "1")
        with speculating(golden.path, golden.config, goldens / NAME, 4, page_size=16, **ahead) as running:
            results = running.generate(input_ids=[golden.prompt] * 2, sampling_params=[greedy(n)] * 2)
            seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    assert seen["host_backup_bytes"] == 0
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [result["output_ids"] for result in results] == [golden.output] * 2, receipts
    assert sum(receipt["restored"] for receipt in receipts) > 50
    assert {(r["compressions"], r["late"]) for r in receipts} == {(golden.compressions, 0)}


@SCHEDULING
def test_a_tight_pool_holds_what_was_promised(goldens, golden, tmp_path, ahead):
    """Requests of known length that the pool cannot hold at once: none is retracted, for drafts have slots too."""
    more = {"page_size": 16, "max_total_tokens": 800, **ahead}
    prompts = [golden.prompt[i:] + golden.prompt[:i] for i in range(8)]
    with speculating(golden.path, golden.config, goldens / NAME, 4, **more) as running:
        results = running.generate(input_ids=prompts, sampling_params=[greedy(300)] * 8)
        seen = look_inside(running, tmp_path, [1])
        alone = [running.generate(input_ids=p, sampling_params=greedy(300))["output_ids"] for p in prompts[:2]]
    assert_balanced(seen)
    assert seen["most_running"] > 1
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [receipt["retractions"] for receipt in receipts] == [0] * 8
    assert [result["output_ids"] for result in results[:2]] == alone


@pytest.mark.long
@pytest.mark.parametrize("ahead", [{}, AHEAD], ids=["", "overlap"])
@pytest.mark.parametrize("page", [1, 16])
def test_compressed_early_where_lengths_are_not_known(goldens, golden, tmp_path, page, ahead):
    """SGLang admits more than the pool holds to the end: windows are recorded ahead of time, and compressed."""
    more = {"page_size": page, "max_total_tokens": 640, "schedule_conservativeness": 0.1, **ahead}
    prompts = [golden.prompt[i:] + golden.prompt[:i] for i in range(10)]
    with speculating(golden.path, golden.config, goldens / NAME, 4, **more) as running:
        params = [greedy(300, ignore_eos=False)] * 10
        results = running.generate(input_ids=prompts, sampling_params=params)
        seen = look_inside(running, tmp_path, [1])
    assert_balanced(seen)
    receipts = [result["meta_info"]["rpc"] for result in results]
    assert [len(result["output_ids"]) for result in results] == [300] * 10
    assert sum(receipt["early"] for receipt in receipts) > 0, receipts
    on_time = [r for r, receipt in zip(results, receipts, strict=True) if not receipt["early"] + receipt["late"]]
    for result in on_time:
        assert result["meta_info"]["rpc"]["compressions"] == (299 - 8) // 64


class TestControls:
    @pytest.mark.parametrize(
        ("without", "ahead"),
        [
            pytest.param(speculative.without_the_cut, {}, id="the cut"),
            pytest.param(
                speculative.launching_on_due_dates, AHEAD, id="the result before a date", marks=pytest.mark.long
            ),
            pytest.param(speculative.without_the_relay, AHEAD, id="the relay of lengths", marks=pytest.mark.long),
        ],
    )
    def test_without_a_part_it_differs(self, goldens, golden, monkeypatch, without, ahead):
        monkeypatch.setattr(speculative, "gathering", without)
        monkeypatch.setattr(engines._spied(), "run_scheduler_process_func", staticmethod(without))
        monkeypatch.setenv("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "0")
        with speculating(golden.path, golden.config, goldens / NAME, 4, **ahead) as running:
            result = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
        date = golden.config.interval + golden.config.window
        assert result["output_ids"][: date + 1] == golden.output[: date + 1]
        assert result["output_ids"] != golden.output

    def test_without_the_drafts_move_only_acceptance_falls(self, golden, tmp_path, monkeypatch):
        """Of one layer, so that the draft, which has the model's own weights, keeps what the model keeps."""
        model, kind, seen = speculative.one_layer(golden.path, tmp_path / "model"), engines._spied(), []
        for function in (kind.run_scheduler_process_func, speculative.without_the_drafts_move):
            monkeypatch.setattr(kind, "run_scheduler_process_func", staticmethod(function))
            with engine(model, golden.config, **drafting(model, 4)) as running:
                result = running.generate(input_ids=golden.prompt, sampling_params=greedy(500))
            seen.append((result["output_ids"], result["meta_info"]["rpc"]))
        (moved, moving), (left, leaving) = seen
        print(moving, leaving)
        assert moved == left
        assert moving["tokens_per_step"] == leaving["tokens_per_step"]
        assert moving["tokens_per_step_compressed"] > 1.5 * leaving["tokens_per_step_compressed"]


@SCHEDULING
def test_eagle_drafts_as_well_after_a_compression(golden, tmp_path, ahead):
    """A draft that has the model's own layer keeps what the model keeps, but for a token or two in a compression. With
    random weights, whose attention is on all tokens alike, these count."""
    model = speculative.one_layer(golden.path, tmp_path / "model")
    draft = speculative.eagle_of(model, tmp_path / "draft")
    prompts = [golden.prompt, golden.prompt[5:], [*golden.prompt[9:], 7, 8]]
    params = [greedy(500)] * 3 + [greedy(300, {"interval": 9, "window": 4, "ratio": 3})] * 3
    with engine(model, golden.config, disable_overlap_schedule=True) as running:
        expected = running.generate(input_ids=prompts * 2, sampling_params=params)
    more = {"speculative_algorithm": "EAGLE", "page_size": 16, **ahead}
    with speculating(model, golden.config, draft, 4, **more) as running:
        results = running.generate(input_ids=prompts * 2, sampling_params=params)
    assert [result["output_ids"] for result in results] == [result["output_ids"] for result in expected]
    for result in results[:3]:
        receipt = result["meta_info"]["rpc"]
        assert receipt["compressions"] == 7
        assert receipt["tokens_per_step_compressed"] > 0.7 * receipt["tokens_per_step"] > 2
        assert receipt["cuts"] > 0


@pytest.mark.long
@pytest.mark.parametrize("ahead", [{}, AHEAD], ids=["", "overlap"])
def test_eagle3_with_a_draft_of_random_weights(golden, tmp_path, ahead):
    draft = speculative.eagle3_of(golden.path, tmp_path / "draft")
    more = {"speculative_algorithm": "EAGLE3", **ahead}
    with speculating(golden.path, golden.config, draft, 4, **more) as running:
        result = running.generate(input_ids=golden.prompt, sampling_params=greedy(len(golden.output)))
    assert result["output_ids"] == golden.output
    assert result["meta_info"]["rpc"]["compressions"] == golden.compressions


@pytest.mark.parametrize("branches", [1, pytest.param(2, marks=pytest.mark.long)])
def test_mtp_that_a_model_brings_along(golden, tmp_path, branches):
    """The name of SGLang's own for it, and no path of a draft."""
    model = speculative.with_mtp(speculative.one_layer(golden.path, tmp_path / "layer"), tmp_path / "model")
    prompts, params = [golden.prompt, golden.prompt[5:]], [greedy(500), greedy(300, {"interval": 9, "window": 4})]
    with engine(model, golden.config, disable_overlap_schedule=True) as running:
        expected = running.generate(input_ids=prompts, sampling_params=params)
    more = {"speculative_algorithm": "NEXTN", "page_size": 16, "speculative_draft_model_path": None, **AHEAD}
    with speculating(model, golden.config, model, 4, **branching(3, branches, **more)) as running:
        results = running.generate(input_ids=prompts, sampling_params=params)
    assert [result["output_ids"] for result in results] == [result["output_ids"] for result in expected]
    receipt = results[0]["meta_info"]["rpc"]
    print(receipt)
    assert receipt["compressions"] == 7
    assert receipt["tokens_per_step_compressed"] > 0.7 * receipt["tokens_per_step"] > 1.4
