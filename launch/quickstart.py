"""The demo behind launch/quickstart.sh: a small reasoner with RPC on, eight problems, and what holding less KV costs.

    python launch/quickstart.py MODEL_DIR

Each problem is solved with the full KV cache, at c = 4 and at c = 8, through /v1/chat/completions, where the thoughts
come apart from the answer; every response carries its receipt (`meta_info["rpc"]`). The server runs on loopback and is
always stopped at the end: after an error and after Ctrl-C too.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from eval.reasoner import ledger
from eval.reasoner.words import Problem, problems
from sglang_rpc.startup import cpu

PROBLEMS = 8
LEVEL = ledger.LADDER["near"]
START_SECONDS = 900  # a first start on a slow disk; usually one minute without a GPU
REQUEST_SECONDS = 900
STOP_SECONDS = 10

# Small, so that a trace of 528 tokens is compressed seven times.
RPC_FLAGS = ["--rpc-interval", "64", "--rpc-window", "32", "--rpc-ratio", "4"]
ARMS = {"full KV": {"enabled": False}, "RPC, c = 4": {"ratio": 4}, "RPC, c = 8": {"ratio": 8}}


def server_command(model: Path, port: int) -> list[str]:
    flags = ["--model-path", str(model), "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    flags += ["--max-total-tokens", "16384", "--reasoning-parser", "deepseek-r1", "--enable-cache-report"]
    if cpu.wanted():
        flags += ["--device", "cpu"]
    return [sys.executable, "-m", "sglang_rpc.launch_server", *flags, *RPC_FLAGS]


def free_port() -> int:
    """Below the ports that the system hands out by itself: one of those may be taken before the server binds it."""
    for port in range(30000, 32768):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise SystemExit("No port between 30000 and 32767 is free on 127.0.0.1: end what holds them and run this again.")


def call(url: str, body: Any = None, timeout: float = REQUEST_SECONDS) -> Any:
    """POST `body` as JSON (GET without one); the decoded answer, None if empty. Raises OSError, also for a status."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        text = response.read()
    return json.loads(text) if text else None


def tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path) -> Iterator[None]:
    """A server that answers at `url`, stopped with all its processes on leaving. SystemExit if it does not start."""
    with log.open("wb") as out:
        # A session of its own: one group holds every process, and Ctrl-C reaches this program alone.
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_healthy(process, url, log)
        yield
    finally:
        stop(process)


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    begin = time.monotonic()
    shown = 0.0
    while (waited := time.monotonic() - begin) < START_SECONDS:
        if process.poll() is not None:
            raise SystemExit(f"{tail(log, 30)}\n\nThe server stopped with {process.returncode}; its log is {log}.")
        with contextlib.suppress(OSError):
            call(f"{url}/health", timeout=30)
            print(f"server ready after {waited:.0f} s")
            return
        if waited - shown >= 10:
            shown = waited
            print(f"waiting for the server, {waited:.0f} s", flush=True)
        time.sleep(0.5)
    raise SystemExit(f"{tail(log, 30)}\n\nThe server did not answer within {START_SECONDS} s; its log is {log}.")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server: politely first, then its whole group, in which a child may outlive it."""
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_SECONDS)
    finally:  # a second Ctrl-C cuts the politeness short
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=STOP_SECONDS)


def solve(url: str, problem: Problem, rpc: dict[str, Any]) -> dict[str, Any]:
    """One problem, greedily: its thoughts, its answer, and its receipt."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": problem.message(ledger.WORDS)}],
        "temperature": 0,
        "max_tokens": LEVEL.thought_tokens + 64,
        "custom_params": {"rpc": rpc},
        "return_meta_info": True,
    }
    answer = call(f"{url}/v1/chat/completions", body)
    choice, usage = answer["choices"][0], answer["usage"]
    return {
        "thoughts": choice["message"].get("reasoning_content") or "",
        "answer": (choice["message"].get("content") or "").replace("<eos>", "").strip(),
        "receipt": choice["meta_info"]["rpc"],
        "cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        "prompt": usage["prompt_tokens"],
    }


def line(name: str, solved: list[dict[str, Any]], correct: int, seconds: float) -> str:
    def total(field: str) -> int:
        return sum(one["receipt"][field] for one in solved)

    return (
        f"{name:<12}{correct:>3} of {len(solved)}{total('generated'):>11}{total('compressions'):>14}{total('held'):>7}"
        f"{total('slots_freed'):>7}{sum(one['cached'] for one in solved):>8}{seconds:>9.1f}"
    )


def short(text: str, width: int = 90) -> str:
    words = " ".join(text.split())
    return words if len(words) <= width else words[: width - 1] + "…"


def show(url: str) -> None:
    asked = problems(ledger, LEVEL, PROBLEMS, seed=1)
    print(f"\n{PROBLEMS} problems, each solved by {LEVEL.thought_tokens} tokens of thought\n")
    print(
        f"{'':<12}{'correct':>8}{'generated':>11}{'compressions':>14}{'held':>7}{'freed':>7}{'cached':>8}{'seconds':>9}"
    )
    compressed = 0
    for name, rpc in ARMS.items():
        begin = time.monotonic()
        with ThreadPoolExecutor(PROBLEMS) as at_once:
            solved = list(at_once.map(lambda problem, rpc=rpc: solve(url, problem, rpc), asked))
        correct = sum(one["answer"] == ledger.WORDS.decode(p.answer) for one, p in zip(solved, asked, strict=True))
        compressed += sum(one["receipt"]["compressions"] for one in solved)
        print(line(name, solved, correct, time.monotonic() - begin), flush=True)
    print("\nheld: generated tokens whose KV was there to the end; freed: slots given back on the way; cached: prompt")
    print("tokens found in the prefix cache. All numbers are sums over the problems.")
    print(f"\nthe last one's prompt   {short(asked[-1].message(ledger.WORDS))}")
    print(f"its thoughts            {short(solved[-1]['thoughts'])}")
    print(f"its answer              {solved[-1]['answer']} (expected: {ledger.WORDS.decode(asked[-1].answer)})")
    print(f"its receipt             {json.dumps(solved[-1]['receipt'])}")
    if not compressed:
        raise SystemExit("No request was compressed, although each should have been: this is a bug.")


def main(model: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = server_command(model, port)
    log = Path(__file__).resolve().parents[1] / ".cache" / "quickstart-server.log"
    log.parent.mkdir(exist_ok=True)
    print(f"\n{' '.join(['python', *command[1:]])}\n\nlog: {log}", flush=True)
    with running(command, url, log):
        try:
            show(url)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"The server answered {error.code}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise SystemExit(f"{tail(log, 30)}\n\nThe server did not answer ({error}); its log is {log}.") from error
    print("\nYour own model: bash launch/quickstart.sh --model-path MODEL --reasoning-parser deepseek-r1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Serve a small reasoner with RPC, solve eight problems, show receipts."
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="eval/reasoner/model, or one trained like it")
    # Also when told to end by another program the server must not stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(parser.parse_args().model.absolute())
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
