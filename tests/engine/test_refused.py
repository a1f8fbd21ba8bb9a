"""What RPC cannot work with is refused at start-up, before a process is started: exit code and sentence."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.engine.servers import run_to_exit

#: command line -> the start of its sentence
UNSUPPORTED = {
    "--speculative-algorithm NGRAM --rpc-policy h2o": (
        "--speculative-algorithm NGRAM with --rpc-policy h2o does not work with RPC"
    ),
    "--disaggregation-mode decode --enable-pd-role-switch": "--enable-pd-role-switch does not work with RPC",
    "--disaggregation-mode decode --disaggregation-decode-retraction-backup host_pool": (
        "--disaggregation-decode-retraction-backup host_pool does not work with RPC"
    ),
    "--disaggregation-mode decode --pp-size 2": "--disaggregation-mode decode with --pp-size 2 does not work with RPC",
    "--dcp-size 2": "--dcp-size 2 does not work with RPC",
    "--hicache-host-memory-mode buffer_only": "--hicache-host-memory-mode buffer_only does not work with RPC",
    "--enable-lmcache": "--enable-lmcache does not work with RPC",
    "--enable-flexkv": "--enable-flexkv does not work with RPC",
    "--enable-session-radix-cache": "--enable-session-radix-cache does not work with RPC",
    "--enable-torch-compile": "--enable-torch-compile does not work with RPC",
    "--kv-canary log": "--kv-canary log does not work with RPC",
    "--is-embedding": "--is-embedding does not work with RPC",
    "--model-impl transformers": "--model-impl transformers does not work with RPC",
    "--rpc-window 0": "--rpc-window must be an integer from 1",
    "--rpc-interval 1": "--rpc-interval must be an integer from 2",
    "--rpc-ratio 1": "--rpc-ratio must be a number above 1",
    "--rpc-kernel-size 4": "--rpc-kernel-size must be odd",
    "--rpc-trace /proc/traces": "--rpc-trace must name a folder that can be written in, got '/proc/traces'",
    "--rpc-config {": "--rpc-config: the RPC configuration '{' is not valid JSON",
    "--rpc-config /no/such.json": "--rpc-config: the RPC configuration must be a JSON object or the path",
    '--rpc-config {"intervall":64}': "--rpc-config: unknown RPC setting 'intervall'",
    "--rpc-think-end </think>": "--rpc-think-end '</think>' is text and this server has no tokenizer",
}


@pytest.fixture(scope="module")
def codes(goldens) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.refused_starts", str(goldens / "gqa_all_p64")],
        input=json.dumps(list(UNSUPPORTED)),
        capture_output=True,
        text=True,
        timeout=400,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize("line", UNSUPPORTED)
def test_one_sentence(codes, line):
    sentence = codes[line]
    assert isinstance(sentence, str), sentence
    assert sentence.startswith(f"sglang-rpc: {UNSUPPORTED[line]}"), sentence
    assert "\n" not in sentence
    if "does not work" in sentence:
        assert "--disable-rpc" in sentence


def test_the_exit_code_and_nothing_behind_the_sentence(goldens):
    flags = ["--model-path", str(goldens / "gqa_all_p64"), "--dcp-size", "2"]
    code, output = run_to_exit(*flags, as_users_do=True)
    assert code == 1
    assert output.rstrip().splitlines()[-1].startswith("sglang-rpc: --dcp-size 2 does not work with RPC: ")
    assert "Traceback" not in output


GEMMA_2 = {  # sliding-window attention in every other layer
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "sliding_window": 64,
    "query_pre_attn_scalar": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "torch_dtype": "float32",
}


def test_a_model_that_shows_it_only_when_built(tmp_path):
    """The scheduler process ends with the sentence, the server with 1, at once and without a traceback."""
    (tmp_path / "config.json").write_text(json.dumps(GEMMA_2))
    flags = ["--skip-tokenizer-init", "--load-format", "dummy", "--port", "39457", "--rpc-interval", "120"]
    code, output = run_to_exit("--model-path", str(tmp_path), *flags)
    assert code == 1, output[-3000:]
    assert "sglang-rpc: " in output
    assert "does not work with RPC" in output
    assert "1 sliding-window layers that see 63 entries before a token, of which only the newest 62 stay" in output
    assert "(interval 124 or min_kept 31 would do)" in output
    assert "Traceback" not in output
