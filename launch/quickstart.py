"""The demo behind launch/quickstart.sh: a server with RPC on, eight samples of one prompt, and what each gave back.

    python launch/quickstart.py MODEL_DIR

The samples go through SGLang's /generate, because only there a response carries its receipt (`meta_info["rpc"]`); one
more request goes through /v1/chat/completions, where the thoughts come apart from the answer. The server runs on
loopback and is always stopped at the end: after an error and after Ctrl-C too.
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
from pathlib import Path
from typing import Any

import jinja2

from sglang_rpc import cpu

SAMPLES = 8
TOKENS = 220
START_SECONDS = 900  # a first start on a slow disk; usually one minute without a GPU
REQUEST_SECONDS = 900
STOP_SECONDS = 10

# Small, so that three compressions happen in the 220 tokens a small model can write sensibly.
RPC_FLAGS = ["--rpc-interval", "64", "--rpc-window", "16", "--rpc-ratio", "4"]

QUESTION = (
    "A farmer wants to plan a small vegetable garden. The garden is a rectangle, 12 metres long and 8 metres wide, "
    "with a path of one metre all around the inside of the fence. He wants to grow tomatoes, beans, carrots and "
    "potatoes, and he has one free day every week from March to October. Explain in detail, step by step, how he "
    "should divide the ground, when he should sow and plant each vegetable, and how much work every month will bring."
)


def server_command(model: Path, port: int) -> list[str]:
    flags = ["--model-path", str(model), "--host", "127.0.0.1", "--port", str(port), "--random-seed", "1"]
    flags += ["--context-length", "4096", "--max-total-tokens", "16384", "--enable-cache-report"]
    flags += ["--reasoning-parser", "deepseek-r1", "--chat-template", str(model / "think_template.jinja")]
    if cpu.wanted():
        flags += ["--device", "cpu", "--dtype", "float32"]  # float32 decodes faster than bfloat16 there
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


def sample(url: str, prompt: str) -> Any:
    """`SAMPLES` answers to one prompt: a list of /generate's objects, each with `text` and `meta_info`."""
    params = {"n": SAMPLES, "max_new_tokens": TOKENS, "temperature": 0.7, "top_p": 0.9}
    return call(f"{url}/generate", {"text": prompt, "sampling_params": params})


def short(text: str, width: int = 60) -> str:
    words = " ".join(text.split())
    return words if len(words) <= width else words[: width - 1] + "…"


def report(answers: list[dict[str, Any]], seconds: float) -> None:
    infos = [answer["meta_info"] for answer in answers]
    generated = sum(info["completion_tokens"] for info in infos)
    print(f"\n{len(answers)} samples of one prompt of {infos[0]['prompt_tokens']} tokens")
    print(f"{generated} tokens in {seconds:.1f} s\n")
    print("sample  cached  generated  compressions  held  freed  text")
    for number, (answer, info) in enumerate(zip(answers, infos, strict=True), 1):
        receipt = info.get("rpc", {})
        generated_here = info["completion_tokens"]
        print(
            f"{number:6}  {info['cached_tokens']:6}  {generated_here:9}  {receipt.get('compressions', 0):12}  "
            f"{receipt.get('held', generated_here):4}  {receipt.get('slots_freed', 0):5}  {short(answer['text'])}"
        )
    held = sum(info.get("rpc", {}).get("held", info["completion_tokens"]) for info in infos)
    print("\ncached: prompt tokens found in the prefix cache; held: generated tokens whose KV was kept to the end")
    print(f"The samples generated {generated} tokens and held the KV of {held} at the end.")
    if not any("rpc" in info for info in infos):
        raise SystemExit("No sample was compressed, although each should have been: this is a bug.")


def chat(url: str, messages: list[dict[str, str]]) -> None:
    body = {"model": "default", "messages": messages, "max_tokens": 96, "temperature": 0}
    answer = call(f"{url}/v1/chat/completions", body)
    message, usage = answer["choices"][0]["message"], answer["usage"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    print(f"\nThe same through /v1/chat/completions ({cached} of {usage['prompt_tokens']} prompt tokens cached):")
    print(f"  thought: {short(message.get('reasoning_content') or '', 90)}")
    print(f"  answer:  {short(message.get('content') or '(it was still thinking after 96 tokens)', 90)}")


def main(model: Path) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    template = jinja2.Template((model / "think_template.jinja").read_text(encoding="utf-8"))
    prompt = template.render(messages=messages, add_generation_prompt=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = server_command(model, port)
    log = model.parent / "quickstart-server.log"
    print(f"\n{' '.join(['python', *command[1:]])}\n\nlog: {log}", flush=True)
    with running(command, url, log):
        try:
            print(f"drawing {SAMPLES} samples of {TOKENS} tokens", flush=True)
            begin = time.monotonic()
            answers = sample(url, prompt)
            report(answers, time.monotonic() - begin)
            chat(url, messages)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"The server answered {error.code}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise SystemExit(f"{tail(log, 30)}\n\nThe server did not answer ({error}); its log is {log}.") from error
    print("\nYour own model: bash launch/quickstart.sh --model-path MODEL --reasoning-parser deepseek-r1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a model with RPC, draw eight samples, show the receipts.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="what launch/demo_model.py made")
    # Also when told to end by another program the server must not stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        main(parser.parse_args().model.absolute())
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
