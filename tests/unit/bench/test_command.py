"""The benchmark from its command to its tables, with a fake in the place of SGLang's server."""

from __future__ import annotations

import contextlib
import sys
import time

import pytest

from eval.bench import measure, options, plan, server, serving, table
from eval.bench.errors import BenchError

SERVER = """
import http.server, json, sys
port, pool = sys.argv[sys.argv.index("--port") + 1], int(sys.argv[sys.argv.index("--max-total-tokens") + 1])
MODE = MODE_HERE
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, value):
        data = json.dumps(value).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.reply({"internal_states": [{"memory_usage": {"token_capacity": pool}}],
                    "loads": [{"num_running_reqs": 1, "num_waiting_reqs": 0, "num_used_tokens": 9}]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        wanted = body.get("sampling_params", {}).get("max_new_tokens", 0)
        if MODE == "dies" and wanted == 30:
            import os; print("out of memory"); sys.stdout.flush(); os._exit(9)
        meta = {"completion_tokens": wanted, "prompt_tokens": 3, "finish_reason": {"type": "length"}}
        self.reply({"meta_info": meta})
    def log_message(self, *_): pass
if MODE == "refuses": sys.exit("first line\\nno such flag")
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def fake_server(tmp_path, mode="") -> str:
    """A module that takes a server's flags; its name."""
    name = f"bench_fake_{mode or 'well'}"
    (tmp_path / f"{name}.py").write_text(SERVER.replace("MODE_HERE", repr(mode)))
    return name


def command(tmp_path, *more):
    return [
        *("--out", str(tmp_path / "out"), "--no-stream", "--arms", "stock,constrained", "--concurrency", "2"),
        *("--output-tokens", "30", "--pool-fraction", "0.9", "--device", "cpu", "--repetitions", "2", *more),
    ]


@pytest.fixture
def stock_module(monkeypatch, tmp_path):
    """Runs a fake in the place of SGLang's server."""

    def use(mode=""):
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr("eval.bench.arms.STOCK_MODULE", fake_server(tmp_path, mode))

    return use


def test_from_the_command_to_the_tables_and_again(stock_module, tmp_path, capsys):
    stock_module()
    assert serving.main(command(tmp_path)) == 0
    rows = table.read(tmp_path / "out" / "results.csv")
    assert [(r["arm"], r["repetition"], r["position"]) for r in rows] == [
        ("stock", "1", "0"), ("constrained", "1", "1"), ("constrained", "2", "0"), ("stock", "2", "1"),
    ]  # fmt: skip
    assert all(r["errors"] == "0" and r["completed"] == "4" and float(r["tok_s"]) > 0 for r in rows)
    assert all(r["server_pool_tokens"] == r["pool_tokens"] and r["cpu"] and r["sglang_version"] for r in rows)
    assert (tmp_path / "out" / "summary.csv").exists()
    assert (tmp_path / "out" / "requests_at_once.svg").exists()
    assert "pair by pair" in capsys.readouterr().out
    # All is measured: nothing is started, nothing is appended.
    assert serving.main(command(tmp_path)) == 0
    assert len(table.read(tmp_path / "out" / "results.csv")) == 4
    assert serving.main(command(tmp_path, "--dry-run")) == 0
    assert "measured already" in capsys.readouterr().out
    assert serving.main(command(tmp_path, "--report-only")) == 0
    assert serving.main(command(tmp_path, "--seed", "1")) == 1
    assert "seed was 0 for stock" in capsys.readouterr().err


def test_a_third_repetition_goes_on_where_the_second_ended(stock_module, tmp_path):
    stock_module()
    assert serving.main(command(tmp_path)) == 0
    assert serving.main(command(tmp_path, "--repetitions", "3")) == 0
    rows = table.read(tmp_path / "out" / "results.csv")
    assert len(rows) == 6
    assert [r["repetition"] for r in rows[4:]] == ["3", "3"]


def test_a_server_that_does_not_start_ends_with_its_log(stock_module, tmp_path, capsys):
    stock_module("refuses")
    assert serving.main(command(tmp_path)) == 1
    said = capsys.readouterr().err
    assert "the server did not start" in said
    assert "exited with 1" in said
    assert said.rstrip().endswith("no such flag")
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_server_that_dies_leaves_a_row_with_errors_and_the_rest_goes_on(stock_module, tmp_path, capsys):
    stock_module("dies")
    assert serving.main(command(tmp_path, "--warmup-tokens", "5")) == 1
    rows = table.read(tmp_path / "out" / "results.csv")
    assert len(rows) == 4
    assert all(r["errors"] == "4" and r["completed"] == "0" for r in rows)
    said = capsys.readouterr().err
    assert "the server exited with 9" in said
    assert "out of memory" in said


def test_a_server_with_another_pool_or_another_rpc_than_asked_is_refused(stock_module, tmp_path):
    stock_module()
    asked = options.read(command(tmp_path))
    (start, *_) = plan.starts(asked.arms, asked.workloads, 1)
    wrong = plan.Start(1, start.pool_tokens, options.arms.built_in("rpc", asked.rpc), 0, start.workloads)
    stub = type("Stub", (), {"log": "the.log", "info": lambda self: self.answer})()
    stub.answer = {"internal_states": [{"memory_usage": {"token_capacity": start.pool_tokens}}]}
    measure._check_server(stub, start)
    with pytest.raises(BenchError, match="runs without RPC"):
        measure._check_server(stub, wrong)
    stub.answer = {"internal_states": [{"memory_usage": {"token_capacity": 7}}]}
    with pytest.raises(BenchError, match="a pool of 7 tokens instead of"):
        measure._check_server(stub, start)


def test_leaving_ends_the_server_and_what_it_started(tmp_path, monkeypatch):
    import psutil

    (tmp_path / "bench_fake_family.py").write_text(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n" + SERVER.replace("MODE_HERE", "''")
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    env = options.machine.server_environment(0)
    with (
        contextlib.suppress(KeyboardInterrupt),
        server.running("bench_fake_family", ["--max-total-tokens", "9"], tmp_path / "log", env, 60) as running,
    ):
        family = [running.process.pid, *(p.pid for p in psutil.Process(running.process.pid).children(recursive=True))]
        assert len(family) == 2
        assert running.call("/health")[0] == 200
        assert running.start_s > 0
        raise KeyboardInterrupt
    for _ in range(50):
        alive = [p for p in family if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive, sys.platform


def test_the_environment_of_servers_does_not_switch_rpc_on(monkeypatch):
    monkeypatch.setenv("SGLANG_RPC_CONFIG", "{}")
    env = options.machine.server_environment(3)
    assert "SGLANG_RPC_CONFIG" not in env
    assert env["OMP_NUM_THREADS"] == "3"
