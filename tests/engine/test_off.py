"""Off means off: stock SGLang with the package installed, and --disable-rpc, hook nothing and give the full run."""

from __future__ import annotations

import pytest

from tests.engine.engines import Golden
from tests.engine.servers import server

FLAGS = ["--skip-tokenizer-init", "--dtype", "float32", "--device", "cpu"]
FLAGS += ["--max-total-tokens", "4096", "--context-length", "2048"]

#: Runs a module as `python -m` does, after making SGLang usable without a GPU, and says at the end what was hooked.
STOCK = "tests.engine.stock_server"


@pytest.mark.parametrize(
    ("module", "more"),
    [(STOCK, ["--attention-backend", "torch_native", "--sampling-backend", "pytorch"]), (None, ["--disable-rpc"])],
    ids=["stock launch_server", "--disable-rpc"],
)
def test_the_full_run(goldens, tmp_path, module, more):
    golden = Golden.load(goldens / "gqa_all_p64")
    arguments = {"module": module} if module else {}
    flags = ["--model-path", str(golden.path), *FLAGS, *more, "--log-level", "info"]
    with server(tmp_path, *flags, as_users_do=True, **arguments) as running:
        result = running.generate(golden.prompt, len(golden.full))
        assert result["output_ids"] == golden.full
        assert "rpc" not in result["meta_info"]
        asked = running.generate(golden.prompt, len(golden.full), custom_params={"rpc": {"interval": 64, "window": 8}})
        assert asked["output_ids"] == golden.full
        assert "rpc" not in running.call("/server_info")[1]["internal_states"][0]
    log = running.log.read_text()
    assert "RPC" not in log
    if module:
        # SGLang logs each hook it applies; its own plugins have some.
        assert "sglang-rpc" not in [line for line in log.splitlines() if "hook" in line.lower()]
        assert not [line for line in log.splitlines() if "Applied" in line and "plugin=rpc" in line]
