"""The scripts of launch/recipes, as a user starts them, on CPUs: they serve what one server gives, compressed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eval.bench.server import free_port
from tests.engine.dense import Dims, write_qwen3
from tests.engine.disaggregated import needs_mooncake
from tests.engine.engines import Golden
from tests.engine.servers import Server, stop, wait_for

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "launch" / "recipes"
FLAGS = "--skip-tokenizer-init --dtype float32 --max-total-tokens 4096 --context-length 2048 --device cpu"
RPC = "--rpc-interval 64 --rpc-window 8 --rpc-scope all"
SMG = "smg==1.13.0"


@pytest.fixture(scope="module")
def golden(goldens) -> Golden:
    return Golden.load(goldens / "gqa_all_p64")


@contextlib.contextmanager
def recipe(name: str, port: int, folder: Path, model: Path, flags: str = "", **env: str) -> Iterator[Server]:
    """`launch/recipes/NAME.sh`, whose HTTP server will be on `port`; ended, with all that it started, on leaving."""
    log = folder / f"{name}-{port}.log"
    command = ["bash", str(RECIPES / f"{name}.sh"), "--model-path", str(model), *f"{FLAGS} {RPC} {flags}".split()]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHON": sys.executable} | env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        stop(process)


def at_once(server: Server, asked: list[tuple[list[int], int]]) -> list[dict]:
    """Results of prompts and lengths that are sent together."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda each: server.generate(*each), asked))


def compressions(server: Server) -> list[int]:
    """Of each scheduler that tells its state."""
    return [state["rpc"]["compressions"] for state in server.call("/server_info")[1]["internal_states"]]


def test_one_node_with_dp_attention(tmp_path):
    model, port = write_qwen3(tmp_path / "model", Dims(hidden=64, heads=4, kv_heads=2, wide=128, layers=2)), free_port()
    with recipe("dp_attention", port, tmp_path, model, f"--port {port}", GPUS="2") as server:
        wait_for(server)
        results = at_once(server, [([20 + i] * 12, 90 + i) for i in range(6)])
        assert [result["meta_info"]["rpc"]["compressions"] for result in results] == [1] * 6
        assert sorted(compressions(server)) == [3, 3]


@pytest.mark.long
def test_two_nodes_with_a_stage_each(golden, tmp_path):
    ports, head = (free_port(), free_port()), f"127.0.0.1:{free_port()}"
    with contextlib.ExitStack() as stack:
        first, _second = (
            stack.enter_context(
                recipe("two_nodes", port, tmp_path, golden.path, f"--port {port}", HEAD=head, RANK=str(rank), GPUS="1")
            )
            for rank, port in enumerate(ports)
        )
        wait_for(first)
        results = at_once(first, [(golden.prompt, len(golden.output)), (golden.prompt, 150)])
    assert [result["output_ids"] for result in results] == [golden.output, golden.output[:150]]
    assert results[0]["meta_info"]["rpc"]["compressions"] == golden.compressions


@pytest.fixture
def smg(tmp_path) -> Path:
    """The router's command, installed with pip on first use: 40 MB in `.cache`."""
    folder = ROOT / ".cache" / SMG.replace("==", "-")
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--upgrade", "--target", str(part), SMG], check=True, timeout=600)
        part.rename(folder)
    command = tmp_path / "smg"
    start = f"import sys; sys.path.append({str(folder)!r}); from smg.cli import main; sys.exit(main())"
    command.write_text(f"#!{sys.executable}\n{start}\n")
    command.chmod(0o755)
    return command


@pytest.mark.long
@needs_mooncake
def test_prefill_and_decode_behind_a_gateway(golden, tmp_path, smg):
    port = consecutive_ports(3)
    env = {"PORT": str(port), "BOOTSTRAP": str(free_port()), "SMG": str(smg)}
    with recipe("prefill_decode", port, tmp_path, golden.path, **env) as gateway:
        prefill, decode = (
            Server(f"http://127.0.0.1:{port + n}", gateway.process, tmp_path / f"{mode}.log")
            for n, mode in ((1, "prefill"), (2, "decode"))
        )
        for server in (prefill, decode, gateway):
            wait_for(server)
        wait_for_workers(gateway, 2)
        asked = [(golden.prompt, len(golden.output)), *((golden.prompt, 80 + 20 * n) for n in range(5))]
        results = at_once(gateway, asked)
        assert [result["output_ids"] for result in results] == [golden.output[:tokens] for _, tokens in asked]
        assert results[0]["meta_info"]["rpc"]["compressions"] == golden.compressions
        expected = golden.compressions + sum(result["meta_info"]["rpc"]["compressions"] for result in results[1:])
        assert compressions(decode) == [expected]
        # The decode server ends: so does the recipe, and with it the other.
        (pid,) = listening(port + 2)
        os.kill(pid, 9)
        gateway.process.wait(60)
        assert not listening(port + 1)


@pytest.mark.long
def test_replicas_behind_a_router(golden, tmp_path, smg):
    port = consecutive_ports(3)
    with recipe("replicas", port, tmp_path, golden.path, REPLICAS="2", PORT=str(port), SMG=str(smg)) as router:
        replicas = [
            Server(f"http://127.0.0.1:{port + n}", router.process, tmp_path / f"replica-{n}.log") for n in (1, 2)
        ]
        for server in (*replicas, router):
            wait_for(server)
        wait_for_workers(router, len(replicas))
        other = [golden.prompt[cut:] + golden.prompt[:cut] for cut in (3, 7, 11, 17, 19)]
        results = at_once(router, [(golden.prompt, len(golden.output)), *((prompt, 150) for prompt in other)])
        assert results[0]["output_ids"] == golden.output
        assert all(result["meta_info"]["rpc"]["compressions"] == 2 for result in results[1:])
        # The router may send all of so few to one.
        assert sum(sum(compressions(server)) for server in replicas) == golden.compressions + 10
        for server in replicas:
            assert server.generate(golden.prompt, len(golden.output))["output_ids"] == golden.output
        # One replica ends: so does the recipe, and with it the other.
        (pid,) = listening(port + 1)
        os.kill(pid, 9)
        router.process.wait(60)
        assert not listening(port + 2)


def wait_for_workers(router: Server, count: int) -> None:
    """Until the router, which answers before, sends requests to so many."""
    until = time.monotonic() + 60
    while (seen := router.call("/workers")[1]).get("total") != count:
        assert time.monotonic() < until, seen
        time.sleep(0.5)


def consecutive_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        first = free_port()
        if not any(listening(first + n) for n in range(count)):
            return first


def listening(port: int) -> set[int]:
    """Processes that listen there."""
    import psutil

    return {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid
    }


@pytest.mark.parametrize(
    ("name", "env", "why"),
    [
        ("two_nodes", {}, "set HEAD=ADDRESS:PORT and RANK=0 or RANK=1"),
        ("two_nodes", {"HEAD": "10.0.0.1:5000", "RANK": "2"}, "set HEAD=ADDRESS:PORT and RANK=0 or RANK=1"),
        ("replicas", {"SMG": "no-such-router"}, "there is no no-such-router: pip install"),
        ("replicas", {"SMG": "true", "REPLICAS": "0"}, "no GPU was found; set REPLICAS=N"),
        ("prefill_decode", {"SMG": "no-such-router"}, "prefill_decode: there is no no-such-router: pip install"),
    ],
)
def test_what_is_missing_is_said(name, env, why):
    command = ["bash", str(RECIPES / f"{name}.sh"), "--model-path", "x"]
    unset = {key: value for key, value in os.environ.items() if key not in ("HEAD", "RANK", "REPLICAS")}
    done = subprocess.run(command, env=unset | env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert why in done.stderr


def test_one_gpu_is_too_few_for_prefill_and_decode(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: one'\n")
    smi.chmod(0o755)
    env = os.environ | {"SMG": "true", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(RECIPES / "prefill_decode.sh"), "--model-path", "x"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "prefill_decode: it takes two GPUs or more, and one was found\n")


@pytest.mark.long
def test_a_server_that_does_not_end_is_killed(tmp_path):
    """As one of SGLang's does that is told to end while it warms up."""
    for name, text in (
        ("deaf", "#!/bin/bash\necho $$ >> pids\ntrap '' TERM\nwhile true; do sleep 1; done\n"),
        ("router", "#!/bin/bash\nsleep 2\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"SMG": str(tmp_path / "router"), "PYTHON": str(tmp_path / "deaf"), "REPLICAS": "2"}
    command = ["bash", str(RECIPES / "replicas.sh"), "--model-path", "x"]
    subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=60)
    started = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert len(started) == 2
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("script", sorted(RECIPES.glob("[!_]*.sh")), ids=lambda path: path.stem)
def test_each_says_how_it_is_used(script):
    for arguments in ([], ["--help"]):
        done = subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        assert f"bash launch/recipes/{script.name} --model-path MODEL [FLAGS]" in done.stdout
        assert "PYTHON: the interpreter" in done.stdout
        assert "set -euo" not in done.stdout
