"""The example package of a policy, installed from wheels into a fresh environment, checked there and served."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from eval.accuracy import store
from tests.conftest import ROOT
from tests.engine.engines import Golden
from tests.engine.servers import server
from tests.wheels import build_wheel, clean, copy_of, fresh_environment

EXAMPLE = ROOT / "examples" / "policy_package"


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of an environment that has our wheel and the example's."""
    folder = tmp_path_factory.mktemp("policy")
    ours = build_wheel(ROOT, folder / "ours")
    example = build_wheel(copy_of(EXAMPLE, folder / "example"), folder / "theirs")
    return fresh_environment(folder / "environment", ours, example)


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [python, *arguments], capture_output=True, text=True, timeout=120, env=clean(), cwd=python.parent
    )


def test_the_example_is_short():
    files = [path for path in EXAMPLE.iterdir() if path.is_file()]
    assert {path.name for path in files} == {"pyproject.toml", "long_keys.py", "test_long_keys.py"}
    assert sum(len(path.read_text().splitlines()) for path in files) < 40


def test_its_own_test_passes_there(python, tmp_path):
    where = run(python, "-c", "import sglang_rpc; print(sglang_rpc.__file__)").stdout
    assert where.startswith(str(python.parents[1])), where
    test = tmp_path / "test_long_keys.py"
    test.write_text((EXAMPLE / "test_long_keys.py").read_text())
    done = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(test))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_it_is_served_by_its_name(python, goldens, tmp_path):
    golden = Golden.load(goldens / "gqa_all_p64")
    config = json.dumps({"interval": 64, "window": 8, "ratio": 4, "scope": "all"})
    flags = "--skip-tokenizer-init --dtype float32 --max-total-tokens 4096 --context-length 2048"
    with server(
        tmp_path,
        *("--model-path", str(golden.path), "--rpc-config", config, "--rpc-policy", "long-keys", *flags.split()),
        env=clean(),
        python=python,
    ) as running:
        result = running.generate(golden.prompt, len(golden.output))
        receipt = result["meta_info"]["rpc"]
        assert (receipt["compressions"], receipt["held"], receipt["late"]) == (6, 112, 0)
        # Before the first compression it is the model's text, afterwards that of another selection than RPC's.
        assert result["output_ids"][:72] == golden.output[:72]
        assert result["output_ids"] != golden.output
        status, info = running.call("/server_info")
        assert status == 200
        assert '"long-keys"' in json.dumps(info)


@pytest.mark.long
def test_it_is_compared_by_its_name(python, tmp_path):
    # One policy's share of a comparison: the others' would start a server each.
    program = """if True:
        import sys
        from eval.compare import measure, options
        asked = options.parser("").parse_args(sys.argv[1:])
        measure.claim(asked)
        measure.measure_policy("long-keys", [asked])
    """
    model = str(ROOT / "eval" / "reasoner" / "model")
    flags = "--task reasoner:near --problems 2 --policies long-keys --ratios 4 --min-kept 24"
    done = subprocess.run(
        [python, "-c", program, "--model-path", model, *flags.split(), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        env=clean(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config, rows = store.read(tmp_path / "long-keys-P64-R32-c4-F24.jsonl")
    assert config is not None
    assert config["server"]["rpc"]["policy"] == "long-keys"
    assert [row["problem"] for row in sorted(rows, key=lambda row: row["problem"])] == ["near-0-0", "near-0-1"]
    assert all(row["receipt"]["compressions"] > 0 and row["receipt"]["min_kept"] == 24 for row in rows)
