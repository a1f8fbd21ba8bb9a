"""The same clients and kits against stock SGLang and against RPC: what passes on stock passes with RPC.

What fails on stock too is not RPC's, and is printed. `python -m pytest tests/clients -m long -s` shows it as it goes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients import environment
from tests.engine.servers import Server, server

ROOT = environment.ROOT
REASONER = ROOT / "eval" / "reasoner" / "model"
KIT_SECONDS = 3000

#: Kit -> the model it needs. `text` speaks English, `reasoner` is small enough for thousands of requests.
KITS = {
    "openai_kit": "text", "anthropic_kit": "text", "ollama_kit": "text", "litellm_kit": "text",
    "langchain_kit": "text", "instructor_kit": "text", "dspy_kit": "text", "sglang_kit": "text",
    "control_kit": "reasoner", "load_kit": "reasoner",
}  # fmt: skip
#: Kits that need SGLang in their own process; the clients' libraries are only added to it.
IN_SGLANG = ("sglang_kit",)
#: What RPC changes on purpose: (kit, check) -> why it may fail with RPC where it passes on stock.
DIFFERENT = {
    (
        "sglang_kit",
        "logprob_match",
    ): "a fresh prefill has the full context, and log probabilities belong to the compressed one",
}
#: Short, so that an answer of 60 tokens is compressed three times.
RPC_FLAGS = "--rpc-interval 16 --rpc-window 8 --rpc-ratio 2 --rpc-scope all"
FLAGS = "--served-model-name m --enable-response-store --dtype float32 --context-length 4096 --max-total-tokens 16384"
STRICT = ("SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY", "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE")

pytestmark = [pytest.mark.long, pytest.mark.engine, pytest.mark.timeout(3 * 3600)]

#: Of one kit: check -> None, or how it failed.
Outcomes = dict[str, str | None]


@dataclass(frozen=True)
class Kind:
    """How one of the two servers is started."""

    module: str
    flags: tuple[str, ...] = ()


STOCK = Kind("eval.bench.stock_server")
RPC = Kind("sglang_rpc.launch_server", tuple(RPC_FLAGS.split()))


@pytest.fixture(scope="module")
def clients() -> Path:
    try:
        return environment.make()
    except environment.ClientsMissing as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="module")
def models() -> dict[str, Path]:
    text = ROOT / ".cache" / "text-model"
    subprocess.run([sys.executable, str(ROOT / "tests/engine/text_model.py"), str(text)], check=True, timeout=900)
    return {"text": text, "reasoner": REASONER}


@pytest.fixture(scope="module")
def kits(request) -> list[str]:
    """Those that this run has tests of: `-k ollama` starts no server for the others."""
    return [item.callspec.params["kit"] for item in request.session.items if item.module is request.module]


@pytest.fixture(scope="module")
def outcomes(kits, clients, models, tmp_path_factory) -> dict[Kind, dict[str, Outcomes]]:
    """Every kit's outcomes on both kinds of server, one server alive at a time."""
    result: dict[Kind, dict[str, Outcomes]] = {STOCK: {}, RPC: {}}
    for kind in result:
        for model in sorted({KITS[kit] for kit in kits}):
            path = models[model]
            with _serving(kind, path, tmp_path_factory.mktemp("server")) as running:
                for kit in [kit for kit in kits if KITS[kit] == model]:
                    result[kind][kit] = _run(kit, running, path, clients)
                    assert running.alive(), f"{kind.module} did not survive {kit}; its log is {running.log}"
                if kind is RPC:
                    _was_exercised(running)
    return result


@pytest.mark.parametrize("kit", KITS)
def test_what_passes_on_stock_passes_with_rpc(outcomes, kit):
    stock, ours = outcomes[STOCK][kit], outcomes[RPC][kit]
    assert stock.keys() == ours.keys()
    passed = [check for check, failure in stock.items() if failure is None]
    for check in stock.keys() - set(passed):
        print(f"fails on stock SGLang too, so is not RPC's: {kit} {check}: {stock[check]}")
    assert passed, "the kit fails on stock altogether, and so compares nothing"
    differing = {check: ours[check] for check in passed if ours[check] is not None}
    for check in [check for check in differing if (kit, check) in DIFFERENT]:
        print(f"differs on purpose: {kit} {check}: {DIFFERENT[kit, check]}: {differing.pop(check)}")
    assert not differing, json.dumps(differing, indent=1)


@contextmanager
def _serving(kind: Kind, model: Path, folder: Path) -> Iterator[Server]:
    strict = dict.fromkeys(STRICT, "1")
    with server(
        folder,
        *("--model-path", str(model), *FLAGS.split(), *kind.flags),
        module=kind.module,
        env=strict,
        as_users_do=True,
    ) as it:
        yield it


def _run(kit: str, running: Server, model: Path, clients: Path) -> Outcomes:
    out = running.log.with_name(f"{kit}.json")
    python = sys.executable if kit in IN_SGLANG else str(environment.python(clients))
    extra = [str(environment.site_packages(clients))] if kit in IN_SGLANG else []
    command = [python, "-m", "tests.clients.runner", kit, running.url, str(model), str(out), *extra]
    # The kits speak to this machine alone, whatever proxy its environment names, and phone nobody.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "*", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=KIT_SECONDS)
    assert done.returncode == 0, f"{kit} could not be run:\n{done.stderr[-2000:]}"
    print(f"--- {kit} on {running.url}\n{done.stdout}", flush=True)
    return json.loads(out.read_text(encoding="utf-8"))


def _was_exercised(running: Server) -> None:
    """Requests were compressed, and nothing of them is left."""
    rpc = running.call("/server_info")[1]["internal_states"][0]["rpc"]
    assert rpc["compressions"] > 0, rpc
    assert rpc["query_slots_in_use"] == 0, rpc
