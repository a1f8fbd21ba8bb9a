"""The check of the simulation from its command to its tables, with fakes in the place of servers and router."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from eval.bench.table import as_text
from eval.bench.workloads import RPC
from eval.fleet import check, measured, plot, report
from eval.fleet.__main__ import STATED, arms, main, parser
from eval.fleet.__main__ import rows as main_rows
from eval.fleet.load import Job
from eval.fleet.server import CLIP, DECAY_STEPS, LEAST_SHARE, SHARE, SPARE_STEPS, Step, decayed, share_after_retraction
from sglang_rpc.config import RequestOptions, RPCConfig
from sglang_rpc.policy.budget import Budget

RESULTS = Path(__file__).resolve().parents[3] / "eval" / "results"

#: Streams a token, then the others; the time it takes is that of steps of 1 ms.
SERVER = """
import http.server, json, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    def reply(self, data):
        self.send_response(200); self.send_header("Content-Length", str(len(data))); self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        load = {"num_running_reqs": 2, "num_waiting_reqs": 0, "num_used_tokens": 9}
        self.reply(json.dumps({"loads": [load]}).encode())
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if not self.path.startswith("/generate"):
            return self.reply(b"{}")
        wanted = body["sampling_params"]["max_new_tokens"]
        self.send_response(200); self.end_headers()
        for tokens in (1, wanted):
            reason = {"type": "length"} if tokens == wanted else None
            meta = {"completion_tokens": tokens, "prompt_tokens": 32, "finish_reason": reason}
            self.wfile.write(b"data: " + json.dumps({"meta_info": meta}).encode() + b"\\n\\n")
            self.wfile.flush()
            time.sleep(wanted / 1000 if tokens == 1 else 0)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

#: Hands each request to the next of its workers.
ROUTER = """
import http.server, itertools, sys, urllib.request
port = int(sys.argv[sys.argv.index("--port") + 1])
first = sys.argv.index("--worker-urls") + 1
turns = itertools.cycle(sys.argv[first : first + 2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"healthy_workers": WORKERS}')
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with urllib.request.urlopen(urllib.request.Request(next(turns) + self.path, body)) as answer:
            self.send_response(200); self.end_headers()
            for line in answer:
                self.wfile.write(line); self.wfile.flush()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Servers and a router that can be started in the place of real ones."""
    (tmp_path / "fleet_fake_server.py").write_text(SERVER)
    (tmp_path / "sglang_router").mkdir()
    (tmp_path / "sglang_router" / "__init__.py").write_text("")
    (tmp_path / "sglang_router" / "launch_router.py").write_text(ROUTER.replace("WORKERS", "2"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("eval.bench.arms.STOCK_MODULE", "fleet_fake_server")
    monkeypatch.setattr("eval.bench.arms.RPC_MODULE", "fleet_fake_server")


def test_from_the_command_to_the_tables(fakes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measured, "BATCHES", (1, 2))
    monkeypatch.setattr(measured, "ROUNDS", 1)
    out = tmp_path / "out"
    given = ["--out", str(out), "--jobs", "6", "--clients", "4", "--rate", "20", "--pool-tokens", "2600"]
    assert measured.main(given) == 0, capsys.readouterr()
    with (out / "check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["load"], row["arm"]) for row in rows} == {
        (load, arm) for load in ("closed", "poisson", "unknown") for arm in ("stock", "rpc")
    }
    assert len(rows) == 6 * len(check.QUANTITIES)
    said = json.loads((out / "conditions.json").read_text())
    for arm in ("stock", "rpc"):
        step, seconds = said["arms"][arm]["step"], said["arms"][arm]["step_s"]
        assert len(seconds) == 2
        assert all(one > 0.9e-3 for one in seconds)  # as a server sleeps; on a busy machine longer
        assert Step(**step) == check.fit((1, 2), seconds, step["prefill"])
    assert "MODEL" in said["arms"]["rpc"]["server"]
    assert str(tmp_path) not in (out / "conditions.json").read_text()
    assert (out / "check.md").read_text() in capsys.readouterr().out


def test_a_router_that_does_not_start_ends_with_its_log(fakes, tmp_path, capsys):
    (tmp_path / "sglang_router" / "launch_router.py").write_text("raise SystemExit('no router here')")
    assert measured.main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "the server did not start" in said
    assert "no router here" in said


def test_a_router_without_all_servers_is_refused(fakes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measured, "ROUTER_SECONDS", 3.0)
    (tmp_path / "sglang_router" / "launch_router.py").write_text(ROUTER.replace("WORKERS", "1"))
    assert measured.main(["--out", str(tmp_path / "out")]) == 1
    assert "the router does not have 2 healthy servers: {'healthy_workers': 1}" in capsys.readouterr().err


def test_steps_are_the_line_through_what_was_measured():
    step = check.fit((1, 2, 4, 8), (0.005, 0.006, 0.008, 0.012), 0.02)
    assert step.fixed == pytest.approx(0.004)
    assert step.request == pytest.approx(0.001)
    assert step.prefill == 0.02


def test_what_is_sent_is_what_is_simulated():
    closed, poisson, unknown = check.loads(20, 6, 2.0)
    jobs = poisson.jobs(2600, seed=3)
    assert [job.arrives for job in jobs] == poisson.workload(2600).arrivals(3)
    assert [job.output for job in jobs] == [job.output for job in closed.jobs(2600, 3)]
    assert {job.limit for job in jobs} == {None}
    assert all(job.limit == job.output for job in unknown.jobs(2600, 3))
    assert closed.workload(2600).concurrency == 6
    assert max(job.output for job in jobs) <= poisson.workload(2600).output_tokens


def test_an_error_is_the_simulation_s_over_what_was_measured():
    measured_row = dict.fromkeys(check.QUANTITIES, 10.0) | {"retractions": 0}
    rows = check.compared({"load": "l", "arm": "rpc", "others": 0.5}, measured_row, dict.fromkeys(check.QUANTITIES, 12))
    assert [row["error"] for row in rows] == [pytest.approx(0.2)] * (len(rows) - 1) + [None]
    stock = check.compared(
        {"load": "l", "arm": "stock", "others": 0.25}, measured_row, dict.fromkeys(check.QUANTITIES, 9)
    )
    other = check.compared(
        {"load": "l", "arm": "stock", "others": 0.25}, measured_row, dict.fromkeys(check.QUANTITIES, 8)
    )
    assert "| l | `tok_s` | 10 | 8.5 | -15% | 10 | 12 | +20% |" in check.markdown([*rows, *stock, *other])
    assert "| l | `tok_s` | 1 | 1.412 | +41% |" in check.markdown([*rows, *stock, *other])
    assert "cores used by other processes" not in check.markdown([*rows, *stock]).split("RPC over SGLang")[1]
    assert "| l | cores used by other processes | 0.25 |  |  | 0.50 |  |  |" in check.markdown([*rows, *stock, *other])


def test_a_measured_server_is_simulated_with_its_settings():
    step = Step(0.004, 0.001)
    rpc = check.server(2600, step, RPC(interval=64, window=16, ratio=4))
    config = RPCConfig(interval=64, window=16, ratio=4)
    assert rpc.budget == Budget.of(config)
    assert (rpc.forecast, rpc.ratio, rpc.pool) == (True, 4, 2600)
    assert check.server(2600, step, None).budget is None


def test_constants_are_sglang_s():
    from sglang.srt.environ import envs

    assert envs.SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION.get() == CLIP
    assert envs.SGLANG_INIT_NEW_TOKEN_RATIO.get() == SHARE
    assert envs.SGLANG_INIT_NEW_TOKEN_RATIO.get() * envs.SGLANG_MIN_NEW_TOKEN_RATIO_FACTOR.get() == LEAST_SHARE
    assert envs.SGLANG_NEW_TOKEN_RATIO_DECAY_STEPS.get() == DECAY_STEPS
    assert envs.SGLANG_RETRACT_DECODE_STEPS.get() == SPARE_STEPS


def test_the_reserved_share_is_sglang_s():
    from sglang.srt.managers.scheduler_components.new_token_ratio_tracker import NewTokenRatioTracker

    theirs = NewTokenRatioTracker(init=SHARE, min=LEAST_SHARE, decay=(SHARE - LEAST_SHARE) / DECAY_STEPS, current=SHARE)
    for steps in range(1, 700):
        theirs.decay_step()
        assert decayed(SHARE, steps) == pytest.approx(theirs.current)
    assert decayed(0.01, 1) == LEAST_SHARE
    assert share_after_retraction([100, 200], [400, 500]) == (300 + 40) / 901
    assert share_after_retraction([400], [400]) == 1.0


def test_plans_are_those_of_a_request_s_own_state():
    """What the simulation hands to the forecast is what the server does."""
    from sglang_rpc.runtime.request_state import RequestState

    (off, rpc) = arms(parser().parse_args(["--out", "x", "--rpc-interval", "64", "--rpc-window", "16"])).values()
    job = Job(0, 0.0, prompt=32, output=500)
    state = RequestState(RequestOptions(True, interval=64, window=16, ratio=4, scope="all"))
    state.recording.slot, state.recording.since = 1, 0
    for generated, evicted, compressions in ((0, 0, 0), (70, 0, 0), (80, 48, 1), (200, 96, 2)):
        state.clock.events, state.clock.evicted = compressions, evicted
        theirs = state.plan(generated, 500 - generated, True, 32)
        assert rpc.plan(job, generated, generated, evicted, compressions, 1.0) == theirs
    assert off.plan(job, 10, 9, 0, 0, 1.0).compresses_at > 10**9


def simulate(tmp_path, *more: str) -> list[dict[str, str]]:
    given = ["--out", str(tmp_path), "--jobs", "24", "--output-tokens", "300", "--pool-tokens", "3000", "--rate", "inf"]
    assert main([*given, "--longest", "900", "--rpc-interval", "64", *more]) == 0
    with (tmp_path / "fleet.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_command_writes_a_row_per_combination_and_says_what_is_left_out(tmp_path, capsys):
    rows = simulate(tmp_path, "--replicas", "1", "2", "--routers", "round-robin", "least-kv")
    keys = [(row["router"], row["replicas"], row["arm"]) for row in rows]
    assert keys == [(r, n, arm) for r in ("round-robin", "least-kv") for n in ("1", "2") for arm in ("off", "rpc")]
    assert all(float(row["fixed_s"]) == STATED.fixed and row["rate"] == "inf" for row in rows)
    said = capsys.readouterr().out
    assert all(part in said for part in report.LEFT_OUT)
    assert float(rows[1]["running_mean"]) > float(rows[0]["running_mean"])
    assert (tmp_path / "fleet.svg").exists()
    first = (tmp_path / "fleet.svg").read_text()
    plot.draw(tmp_path / "fleet.csv")
    assert (tmp_path / "fleet.svg").read_text() == first
    assert "SGLang, 300 tokens, round-robin" in first


def test_of_one_number_of_replicas_routers_are_drawn(tmp_path):
    simulate(tmp_path, "--replicas", "2", "--routers", "round-robin", "prefix-affinity", "--shared-tokens", "256")
    assert "prefix-affinity" in (tmp_path / "fleet.svg").read_text()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--pool-tokens", "900"], "needs"),
        (["--rpc-ratio", "1"], "ratio"),
        (["--jobs", "0"], "jobs must be at least 1"),
        (["--shared-tokens", "512"], "shared must be below the prompt's 512 tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, capsys, more, why):
    assert main(["--out", str(tmp_path), "--jobs", "10", *more]) == 1
    said = capsys.readouterr().err
    assert said.startswith("fleet: ")
    assert why in said
    assert not list(tmp_path.iterdir())


def committed(folder: str, file: str) -> list[dict[str, str]]:
    with (RESULTS / folder / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def again(row: dict[str, str]) -> list[str]:
    """The command that gives a committed row and its other arm."""
    named = {"replicas": "replicas", "output-tokens": "output_tokens", "routers": "router", "rate": "rate"}
    named |= {
        "jobs": "jobs",
        "limit": "limit",
        "prompt-tokens": "prompt",
        "shared-tokens": "shared",
        "groups": "groups",
    }
    return [word for flag, column in named.items() for word in (f"--{flag}", row[column])]


@pytest.mark.parametrize("folder", ["fleet-qwq-32b", "fleet-qwq-32b-routers"])
def test_committed_simulations_are_what_the_simulation_gives(folder):
    """The last pair of rows of the first output length, which takes least."""
    rows = committed(folder, "fleet.csv")
    pair = [row for row in rows if row["output_tokens"] == rows[0]["output_tokens"]][-2:]
    assert [row["arm"] for row in pair] == ["off", "rpc"]
    for row, new in zip(pair, main_rows(parser().parse_args(["--out", "x", *again(pair[0])])), strict=True):
        assert as_text(new) == row


def test_the_committed_check_is_what_the_simulation_gives():
    rows = committed("cpu-tiny-fleet", "check.csv")
    said = json.loads((RESULTS / "cpu-tiny-fleet" / "conditions.json").read_text())
    assert (RESULTS / "cpu-tiny-fleet" / "check.md").read_text() == check.markdown(rows)
    by_run: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        by_run.setdefault((row["load"], row["arm"], row["seed"]), {})[row["quantity"]] = row["simulated"]
    assert {load for load, _, _ in by_run} == {"closed", "poisson", "unknown"}
    loads = {one.name: one for one in check.loads(said["jobs"], said["clients"], said["rate"])}
    for (load, arm, seed), simulated in by_run.items():
        step = Step(**said["arms"][arm]["step"])
        rpc = RPC(interval=64, window=16, ratio=4) if arm == "rpc" else None
        found = check.simulated(check.server(said["pool_tokens"], step, rpc), loads[load], int(seed))
        for name, value in simulated.items():
            assert found[name] == pytest.approx(float(value), rel=1e-4), (load, arm, name)
