"""The other SGLang versions that RPC supports, each put over this environment's.

`launch/test_other_sglang.sh` runs more on them.
"""

from __future__ import annotations

import json
import os

import pytest
import sglang

from sglang_rpc.contract import pins, versions
from tests.engine.engines import Golden
from tests.engine.servers import run_to_exit
from tests.overlay import overlay

OTHERS = [version for version in versions.VERSIONS if version != pins.public(sglang.__version__)]


@pytest.mark.parametrize("version", OTHERS)
def test_a_whole_run_is_the_authors_and_the_source_is_as_pinned(goldens, version):
    golden = Golden.load(goldens / "gqa_all_p64")
    code, output = run_to_exit(
        *(str(golden.path), json.dumps(golden.prompt), str(len(golden.output))),
        module="tests.engine.plain_engine",
        env={
            "PYTHONPATH": os.pathsep.join(filter(None, [str(overlay(version)), os.environ.get("PYTHONPATH")])),
            "SGLANG_RPC_CONFIG": golden.config.to_json(),
        },
    )
    assert code == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert result["sglang"] == version
    assert result["output_ids"] == golden.output
    assert result["meta_info"]["rpc"]["compressions"] == golden.compressions
    # Where a body is not as pinned, the start warns, and names the pins it compared with.
    assert f"proven with (SGLang {version})" not in output
