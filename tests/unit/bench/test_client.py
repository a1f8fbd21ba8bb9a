"""The benchmark's client and loops against a server that speaks /generate as SGLang does, without an engine."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.bench import client, load, traffic
from eval.bench.workloads import Workload


class Fake(BaseHTTPRequestHandler):
    """Answers by the temperature it is asked for, which no other test value needs."""

    protocol_version = "HTTP/1.1"
    in_flight, most, seen = 0, 0, []
    lock = threading.Lock()
    over = threading.Event()  # of the test: a request that is never answered ends with it, and prints nothing later

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            Fake.in_flight += 1
            Fake.most = max(Fake.most, Fake.in_flight)
            Fake.seen.append(body)
        try:
            self.answer(body)
        finally:
            with self.lock:
                Fake.in_flight -= 1

    def answer(self, body):
        sampling = body["sampling_params"]
        wanted, n, how = sampling["max_new_tokens"], sampling["n"], sampling["temperature"]
        if how == 9:
            self.over.wait()
        time.sleep(0.02)
        if how == 4:
            self.reply(400, {"error": {"message": "no"}})
        elif how in {5, 9}:
            self.close_connection = True  # without an answer
        elif body["stream"]:
            self.stream(wanted - (how == 3), n, sampling["stream_interval"], broken=how == 6, refused=how == 7)
            self.close_connection = True
        else:
            answers = [self.chunk(wanted - (how == 3), True, how == 8) for _ in range(n)]
            self.reply(200, answers[0] if n == 1 else answers)

    def stream(self, wanted, n, interval, broken, refused):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if refused:
            self.event({"error": {"message": "longer than the pool"}})
            return
        for tokens in [1, *range(interval, wanted, interval), wanted]:
            for index in range(n):
                self.event({**self.chunk(tokens, tokens == wanted), **({"index": index} if n > 1 else {})})
            if broken:
                return
        self.wfile.write(b"data: [DONE]\n\n")

    def chunk(self, tokens, last, aborted=False):
        meta = {"id": "x", "completion_tokens": tokens, "prompt_tokens": 7, "cached_tokens": 2, "num_retractions": 0}
        meta["finish_reason"] = (
            {"type": "abort", "message": "full"} if aborted else {"type": "length"} if last else None
        )
        return {"output_ids": list(range(tokens)), "meta_info": meta}

    def event(self, value):
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def reply(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.reply(200, {"loads": [{"num_running_reqs": 2, "num_waiting_reqs": 1, "num_used_tokens": 50}]})

    def log_message(self, *_):
        pass


@pytest.fixture
def url():
    Fake.in_flight, Fake.most, Fake.seen = 0, 0, []
    Fake.over.clear()
    running = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    running.daemon_threads = False  # closing waits for all
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    Fake.over.set()
    running.shutdown()
    running.server_close()


def send(url, n=1, stream=4, how=0.0, tokens=10, progress=None):
    async def one():
        async with client.session(url) as http:
            return await client.send(http, client.body([1, 2, 3], tokens, n, how, stream), progress)

    return asyncio.run(one())


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [0, 1, 4])
def test_samples_come_back_whole(url, n, stream):
    counted = []
    samples = send(url, n, stream, progress=counted.append)
    assert len(samples) == n
    assert sum(counted) == 10 * n
    for sample in samples:
        assert sample.error is None
        assert sample.finished
        assert sample.tokens == 10
        assert sample.meta["cached_tokens"] == 2
        assert (sample.first is None) == (stream == 0)
        assert [new for _, new in sample.chunks] == {0: [], 1: [1] * 10, 4: [1, 3, 4, 2]}[stream]
        assert sample.last >= (sample.first or sample.sent) >= sample.sent


@pytest.mark.parametrize(
    ("how", "stream", "says"),
    [
        (3, 4, "9 tokens instead of 10"),
        (3, 0, "9 tokens instead of 10"),
        (4, 4, "HTTP 400"),
        (5, 0, "Disconnected|ClientOSError|Reset"),
        (6, 4, "the answer ended before the sample did"),
        (7, 4, "longer than the pool"),
        (8, 0, "aborted: full"),
    ],
)
@pytest.mark.parametrize("n", [1, 2])
def test_what_goes_wrong_is_an_error_of_each_sample(url, how, stream, says, n):
    import re

    samples = send(url, n, stream, float(how))
    assert len(samples) == n
    assert all(re.search(says, sample.error) for sample in samples)
    assert [sample.wrong_length for sample in samples] == [how == 3] * n


def test_a_refused_connection_is_an_error():
    (sample,) = send("http://127.0.0.1:9")
    assert "ClientConnectorError" in sample.error


def test_the_request_forces_the_length():
    made = client.body([5], 7, 3, 1.0, 16, {"rpc": {"enabled": False}})
    assert made == {
        "input_ids": [5],
        "stream": True,
        "sampling_params": {
            "max_new_tokens": 7, "ignore_eos": True, "temperature": 1.0, "n": 3, "stream_interval": 16,
            "custom_params": {"rpc": {"enabled": False}},
        },
    }  # fmt: skip
    assert "stream_interval" not in client.body([5], 7, 1, 0.0, 0)["sampling_params"]


def drive(url, workload, how=0.0, stream=0, limit=60.0):
    async def all_of_it():
        async with client.session(url) as http, load.sampled(http, readings, 0.01):
            return await traffic.run(
                http, workload, lambda group: client.body([group], 10, workload.n, how, stream), 1, limit
            )

    readings: list[load.Reading] = []
    return asyncio.run(all_of_it()), readings


def test_a_closed_loop_keeps_the_load_in_flight(url):
    workload = Workload(concurrency=6, n=2, prompt_tokens=1, output_tokens=10, pool_tokens=100, samples=24)
    run, readings = drive(url, workload)
    assert len(run.samples) == 24
    assert all(sample.error is None for sample in run.samples)
    assert Fake.most == 3
    assert len(Fake.seen) == 12
    assert sorted(b["input_ids"][0] for b in Fake.seen) == list(range(12))
    assert run.began < run.last_sent < run.ended
    assert run.wall_s < 10
    assert readings
    assert readings[0].running == 2
    assert readings[0].used_tokens == 50


def test_an_open_loop_sends_whether_or_not_answers_came(url):
    run, _ = drive(url, Workload(1, 1, 1, 10, 100, samples=20, rate=float("inf")))
    assert len(run.samples) == 20
    assert Fake.most > 5


def test_a_run_that_hangs_ends_and_says_so(url):
    began = time.monotonic()
    run, _ = drive(url, Workload(2, 1, 1, 10, 100, samples=6), how=9.0, limit=0.5)
    assert time.monotonic() - began < 10
    assert run.timed_out
    assert len(run.samples) == 6
    assert all("--limit-seconds" in sample.error for sample in run.samples)
