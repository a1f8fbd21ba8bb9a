"""The fork server of the test engines: its children are as if spawned by the test, and shutting down spares it."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing import forkserver

import psutil
import pytest

from sglang_rpc.startup import cpu
from tests.engine import forked
from tests.engine.servers import run_to_exit

pytestmark = pytest.mark.skipif(cpu.accelerator_available(), reason="engines on a GPU are spawned")


def look_around(answer) -> None:
    """Runs in the child: what SGLang's processes there would go by; then waits to be killed."""
    from sglang.srt.environ import envs
    from sglang.srt.managers import scheduler

    answer.send(
        {
            "retract": (scheduler.TEST_RETRACT, scheduler.TEST_RETRACT_INTERVAL),
            "strict": envs.SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY.get(),
            "mark": os.environ.get("SGLANG_RPC_TEST_MARK"),
            "signalled when it fails": psutil.Process().parent().pid,
            "parent": os.getppid(),
        }
    )
    time.sleep(600)


def start() -> tuple[multiprocessing.Process, dict]:
    import sglang_rpc

    assert sglang_rpc.Engine  # SGLang is ready for a CPU, as before any engine
    assert forked.possible()
    forked.start_by_fork()
    answer, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=forked.Forked(look_around), args=(writer,))
    process.start()
    assert answer.poll(300), "the child does not answer"
    return process, answer.recv()


def server() -> int:
    return forkserver._forkserver._forkserver_pid


def shut_down(process) -> None:
    """As `Engine.shutdown` does, through the name that it uses."""
    from sglang.srt.entrypoints import engine

    engine.kill_process_tree(os.getpid(), include_parent=False, wait_timeout=60)
    process.join(60)
    assert process.exitcode == -9


def test_a_child_has_the_environment_of_the_test_that_starts_it(monkeypatch):
    plain, seen = start()
    shut_down(plain)
    assert seen["retract"] == (False, 3)
    assert seen["mark"] is None
    monkeypatch.setenv("SGLANG_TEST_RETRACT", "1")
    monkeypatch.setenv("SGLANG_TEST_RETRACT_INTERVAL", "7")
    monkeypatch.setenv("SGLANG_RPC_TEST_MARK", "here")
    retracting, seen = start()
    shut_down(retracting)
    assert seen == {
        "retract": (True, 7),
        "strict": True,
        "mark": "here",
        "signalled when it fails": os.getpid(),
        "parent": server(),
    }


def test_shutting_down_ends_the_children_and_spares_the_server():
    first, _ = start()
    serving = server()
    shut_down(first)
    second, seen = start()
    shut_down(second)
    assert seen["parent"] == server() == serving
    assert psutil.Process(serving).status() != psutil.STATUS_ZOMBIE


def test_a_program_is_as_if_started_with_its_environment():
    """Its children signal it when they fail, and not the process that runs the tests."""
    env = {"SGLANG_TEST_RETRACT_INTERVAL": "7", "SGLANG_RPC_TEST_MARK": "its own"}
    code, output = run_to_exit(module="tests.engine.forked_program", env=env)
    assert (code, output.splitlines()) == (3, ["child True 7", "program True its own"])


@pytest.mark.parametrize("name", [forked.SPAWN, *forked.READ_AT_IMPORT])
def test_what_a_fork_cannot_give_is_spawned(monkeypatch, name):
    assert forked.possible()
    monkeypatch.setenv(name, "1")
    assert not forked.possible()
