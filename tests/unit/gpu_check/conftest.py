"""Steps that are a few lines of Python, and runs of them on an imagined host."""

import pytest

from launch.gpu_check import check, host, options, steps
from launch.gpu_check.host import Host
from launch.gpu_check.report import Summary
from launch.gpu_check.step import Step

EVERYTHING = Host()


def step(code: str, name: str = "one", box: int = 30, least: int = 1, **more) -> Step:
    more = {"headline": r"^\[check\] ", "modules": (), **more}
    return Step(name, "what it asks", ("{python}", "-c", code), box, least, **more)


@pytest.fixture
def run(tmp_path):
    """Runs steps; returns the results. `run.summary()` is the text of summary.txt."""

    def go(*chosen: Step, on: Host = EVERYTHING, budget: float = 600, flags=(), env=None):
        given = options.read([*flags, "--out", str(tmp_path / "out"), "--steps", "first"])
        given = options.Options(**{**vars(given), "steps": chosen, "budget": budget})
        for folder in ("logs", "results"):
            (given.report / folder).mkdir(parents=True, exist_ok=True)
        go.options = given
        began = check.time.monotonic()
        env = {"PATH": "/usr/bin:/bin", "SGLANG_RPC_GOLDENS": str(tmp_path / "goldens"), **(env or {})}
        summary = Summary(tmp_path / "out" / "summary.txt")
        return check.Check(given, on, summary, env, ends_at=began + budget, grace=1).run()

    (tmp_path / "goldens" / "compress_kv").mkdir(parents=True)
    go.summary = lambda: (tmp_path / "out" / "summary.txt").read_text()
    return go


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs the command line on these steps and host; returns status, standard output and standard error."""
    from launch.gpu_check import __main__ as program

    def go(*flags: str, table: tuple[Step, ...] = (), on: Host = EVERYTHING):
        for entry in table:
            monkeypatch.setitem(steps.STEPS, entry.name, entry)
        monkeypatch.setattr(host, "ask", lambda *_: on)
        monkeypatch.setattr(program.signal, "signal", lambda *_: None)
        try:
            status = program.main([*flags, "--out", str(tmp_path / "out")])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    go.out = tmp_path / "out"
    return go
