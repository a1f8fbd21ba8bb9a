"""One request."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest

from sglang_rpc.contract.refusals.request import REQUEST_ROWS, refuse_request
from sglang_rpc.errors import ConfigError
from tests.unit.refusals.examples import (
    REQUEST_EXAMPLES,
)


def request(rpc: dict | None = None, **fields) -> SimpleNamespace:
    params = {name.lower(): value for name, value in fields.items() if name.isupper()}
    if rpc is not None:
        params["custom_params"] = {"rpc": rpc}
    return SimpleNamespace(sampling_params=params, **{n: v for n, v in fields.items() if not n.isupper()})


@pytest.mark.parametrize("rpc", [None, {}, {"enabled": True}])
def test_plain_requests_pass(rpc):
    plain = dict(input_embeds=None, return_routed_experts=False, return_indexer_topk=False, BEAM_WIDTH=None)
    assert refuse_request(request(rpc, **plain)) is None
    assert refuse_request(request(rpc, BEAM_WIDTH=1)) is None
    assert refuse_request(SimpleNamespace(sampling_params=None)) is None


@pytest.mark.parametrize("row", REQUEST_ROWS, ids=lambda row: row.name)
def test_request_row(row):
    fields, named = REQUEST_EXAMPLES[row.name]
    assert refuse_request(request(**fields)) == f"not compressed because of {named}: {row.why}"
    for asking in ({}, {"enabled": True}, {"interval": 512}):
        with pytest.raises(ConfigError) as caught:
            refuse_request(request(asking, **fields))
        assert caught.value.code == f"request.{row.name}"
        assert caught.value.sentence == (
            f"{named} does not work with RPC: {row.why}; "
            f"remove {named.split('=')[0]} or send custom_params.rpc.enabled false"
        )
    assert refuse_request(request({"enabled": False}, **fields)) is None


def test_what_the_caller_knows_wins_over_the_request():
    with pytest.raises(ConfigError, match="beam_width=2 does not work with RPC"):
        refuse_request(request(BEAM_WIDTH=2), asked=True)
    assert refuse_request(request({}, BEAM_WIDTH=2), asked=False).startswith("not compressed because of beam_width=2")


def test_a_batch_is_looked_at_as_one():
    batch = SimpleNamespace(sampling_params=[{"beam_width": None}, {"beam_width": 3}])
    assert refuse_request(batch).startswith("not compressed because of beam_width=3")


@pytest.mark.parametrize("row", REQUEST_ROWS, ids=lambda row: row.name)
def test_request_row_on_sglangs_own_types(row, sglang_arguments):
    from sglang.srt.managers.io_struct import GenerateReqInput
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    fields, named = REQUEST_EXAMPLES[row.name]
    said = f"not compressed because of {named}: {row.why}"
    params = {name.lower(): value for name, value in fields.items() if name.isupper()}
    given = {name: value for name, value in fields.items() if not name.isupper()}
    assert refuse_request(GenerateReqInput(input_ids=[1], sampling_params={})) is None
    if "session" in given:  # the scheduler's alone to see
        req = Req("r", "", array("q", [1]), SamplingParams(**params), **given)
        assert refuse_request(req) == said
        return
    assert refuse_request(GenerateReqInput(sampling_params=params, **given)) == said
    assert refuse_request(SimpleNamespace(sampling_params=SamplingParams(**params), **given)) == said
