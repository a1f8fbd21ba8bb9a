"""A plain `sglang.Engine` is switched on by SGLANG_RPC_CONFIG, and by nothing else."""

from __future__ import annotations

import json

import pytest

from tests.engine.engines import Golden
from tests.engine.servers import run_to_exit


# Not asked, it is a stock engine, as tests/engine/test_off.py has a server.
@pytest.mark.parametrize("asked", [True, pytest.param(False, marks=pytest.mark.long)], ids=["asked", "not asked"])
def test_a_plain_engine(goldens, asked):
    golden = Golden.load(goldens / "gqa_all_p64")
    env = {"SGLANG_RPC_CONFIG": golden.config.to_json()} if asked else {}
    code, output = run_to_exit(
        *(str(golden.path), json.dumps(golden.prompt), str(len(golden.output))),
        module="tests.engine.plain_engine",
        env=env,
        as_users_do=True,
    )
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert code == 0
    assert result["output_ids"] == (golden.output if asked else golden.full)
    assert ("rpc" in result["meta_info"]) == asked


def test_a_wrong_configuration_stops_it(goldens):
    code, output = run_to_exit(
        *(str(goldens / "gqa_all_p64"), "[1]", "4"),
        module="tests.engine.plain_engine",
        env={"SGLANG_RPC_CONFIG": '{"interval": 0}'},
        as_users_do=True,
    )
    assert code == 1
    assert "sglang-rpc: SGLANG_RPC_CONFIG: interval must be an integer from 2" in output
    assert "RESULT" not in output
