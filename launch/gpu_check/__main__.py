"""`bash launch/gpu_check.sh`: see --help."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

from launch.gpu_check import check, commands, host, options
from launch.gpu_check.options import Options
from launch.gpu_check.report import Summary, verdict
from launch.gpu_check.steps import STEPS


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status, as --help has it."""
    given = options.read(sys.argv[1:] if argv is None else argv)
    if given.list:
        print(options.listing())
        return 0
    if given.dry_run:
        print(commands.plan(given.steps, given))
        return 0
    # A kill, and Ctrl-C in a shell that has this in the background, must end what a step started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given.out.mkdir(parents=True, exist_ok=True)
    for folder in ("logs", "results"):
        (given.report / folder).mkdir(parents=True, exist_ok=True)
    return _run(given)


def _run(given: Options) -> int:
    began = time.monotonic()
    summary = Summary(given.out / "summary.txt")
    env = check.environment(os.environ)
    summary.say(
        f"sglang-rpc {host.version()}, commit {given.commit or host.commit()}, "
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}: {' '.join(step.name for step in given.steps)}"
    )
    modules = frozenset(module for step in STEPS.values() for module in step.modules)
    here = host.ask(modules, env, given.report / "logs" / "facts.log")
    summary.say(*here.lines())
    if not here.cuda and not given.interpreter:
        summary.say("Nothing was run: mend what hides the GPU, or let --interpreter run what can run without one.")
        return 1
    if check.goldens_in(env) is None:
        summary.say("recordings: none of the authors' here, so random models recorded by the oracle stand for them")
    summary.say("")
    running = check.Check(given, here, summary, env, ends_at=began + given.budget)
    try:
        results = running.run()
    except KeyboardInterrupt:
        summary.say("", f"interrupted during {running.current}")
        running.pack()
        return 130
    summary.say("", f"{verdict(results, here.cuda and not given.interpreter)}; {time.monotonic() - began:.0f} s")
    # Once more, with the summary's end.
    if cut := running.pack():
        summary.say(f"too large for logs.tgz, and shortened: {', '.join(cut)}")
    print(f"to send: {summary.path} and {given.out / 'logs.tgz'}")
    return 0 if all(result.state.well for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
