"""`python -m sglang_rpc.doctor`: can RPC run here, and is this SGLang one that it was proven on?

Exit status: 0 if RPC can start, with or without warnings; 1 if it would refuse to. With `--model-path`: whether RPC
serves that model, as far as its configuration tells. With `--pin`: whether pins were written. `--hooks` prints
docs/hooks.md, and asks SGLang nothing.
"""

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sglang_rpc import __version__
from sglang_rpc.config import RPCConfig
from sglang_rpc.contract import pins as pinned
from sglang_rpc.contract import versions
from sglang_rpc.contract.architectures import KIND_OF
from sglang_rpc.contract.assumptions import assumptions
from sglang_rpc.contract.pins import ASSUMED, Finding, State, use_of
from sglang_rpc.contract.refusals.model import refuse_model_config, row_of
from sglang_rpc.contract.targets import (
    COMMAND_LINE,
    LATENT,
    LATER,
    REUSE,
    SERVING,
    SPECULATIVE,
    TEXTS,
    Hook,
    Need,
    hooks_in,
)
from sglang_rpc.errors import RPCError
from sglang_rpc.startup import cpu
from sglang_rpc.startup.machine import PROBLEM, WARNING, Fact, facts_of


def every_hook() -> tuple[Hook, ...]:
    """All hooks that RPC has, in the order in which they are put on."""
    from sglang_rpc.startup import flags
    from sglang_rpc.startup.process import declared_hooks

    hooks = (*hooks_in(flags), *declared_hooks())
    return tuple(hook for when in (COMMAND_LINE, SERVING, *LATER) for hook in hooks if hook.when == when)


def needs(version: str) -> tuple[Need, ...]:
    """All that RPC needs of this version of SGLang."""
    hooks = map(versions.of(version).here, every_hook())
    return (*hooks, *(assumption for when in (SERVING, *LATER) for assumption in assumptions(when)))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.hooks:
        print(hooks_page(), end="")
        return 0
    folder = pinned.directory() if options.pins is None else Path(options.pins)
    # SGLang's imports warn of kernels and parsers that matter to nobody who asks for a diagnosis.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _run(options, folder)
    except RPCError as error:
        print(f"sglang-rpc doctor: {error}", file=sys.stderr)
        return 1
    finally:
        logging.disable(logging.NOTSET)


def _run(options: argparse.Namespace, folder: Path) -> int:
    version = _prepare()
    if options.pin:
        return _pin(version, folder)
    if options.model_path is not None:
        return _model(options.model_path)
    pins = pinned.load(version, folder)
    facts = facts_of(version, pins)
    findings = pinned.compare(pins, needs(version))
    if options.json:
        print(json.dumps(as_json(facts, findings), indent=1))
    else:
        print(report(facts, findings, pinned.path_of(pins.version, folder)))
    return 1 if broken(facts, findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sglang_rpc.doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--model-path", metavar="MODEL", help="whether RPC serves this model, by its configuration")
    parser.add_argument("--pin", action="store_true", help="pin the SGLang installed here, once it is proven")
    parser.add_argument("--hooks", action="store_true", help="the hooks and their targets, as Markdown")
    parser.add_argument("--pins", metavar="DIR", help="where pins are read and written (default: those of sglang-rpc)")
    return parser


def _prepare() -> str:
    """Make SGLang importable here; returns its version. Raises RPCError."""
    if importlib.util.find_spec("sglang") is None:
        raise RPCError("SGLang is not installed; install it with `pip install sglang-rpc`", "error.sglang_missing")
    try:
        cpu.prepare()
        import sglang
    except Exception as error:  # whatever a broken installation raises: the reader needs the sentence, not the stack
        raise RPCError(f"SGLang can't be imported: {type(error).__name__}: {error}", "error.sglang_broken") from error
    return str(sglang.__version__)


def _model(path: str) -> int:
    """What RPC says to a model before it is loaded. Raises RPCError: the sentence that the server would print."""
    from sglang.srt.configs.model_config import ModelConfig

    try:
        model_config = ModelConfig(path)
    except Exception as error:  # whatever a broken or unreachable configuration raises
        raise RPCError(f"SGLang can't read the configuration of {path}: {error}", "error.model_config") from error
    refuse_model_config(model_config, RPCConfig())
    name = (model_config.hf_config.architectures or ["unknown"])[0]
    kind = KIND_OF.get(name)
    row = None if kind is None else row_of(kind)
    if kind is None:
        print(f"{name}: no architecture that RPC knows; its layers are checked once it is loaded")
    elif kind.depends:
        print(f"{name}: {kind.title}; its layers are checked once it is loaded, and it depends on {kind.depends}")
    elif row is None:
        print(f"{name}: {kind.title}; RPC serves it")
    else:
        print(f"{name}: {kind.title}; RPC refuses it once it is loaded: {row.why} [unsupported.{row.name}]")
        return 1
    return 0


def _pin(version: str, folder: Path) -> int:
    pins = pinned.take(version, needs(version))
    print(f"pinned {len(pins.pins)} targets of SGLang {version} in {pinned.save(pins, folder)}")
    return 0


def broken(facts: Sequence[Fact], findings: Sequence[Finding]) -> bool:
    """Whether RPC would refuse to start."""
    return any(fact.state == PROBLEM for fact in facts) or any(finding.state.breaks for finding in findings)


# ---- showing it ---------------------------------------------------------------------------------------------


def as_json(facts: Sequence[Fact], findings: Sequence[Finding]) -> dict[str, Any]:
    """The report for programs."""
    return {
        "sglang_rpc": __version__,
        "can_run": not broken(facts, findings),
        "machine": [asdict(fact) for fact in facts],
        "places": [
            {
                "target": finding.need.target,
                "use": use_of(finding.need),
                "state": finding.state.value,
                "breaks": finding.state.breaks,
                "detail": finding.detail,
                "reason": finding.need.reason,
            }
            for finding in findings
        ],
    }


def report(facts: Sequence[Fact], findings: Sequence[Finding], path: Path) -> str:
    """The report for people."""
    lines = [f"sglang-rpc {__version__}", "", "This machine"]
    for fact in facts:
        lines.append(f"  {fact.state:<8} {fact.name:<15} {fact.value}")
        if fact.advice:
            lines.append(f"  {'':<8} {'':<15} -> {fact.advice}")
    lines += ["", f"What RPC needs of SGLang, compared with {path}"]
    # Of what is only assumed, a person reads what differs; --json has all of it.
    quiet = [f for f in findings if f.state is State.OK and use_of(f.need) == ASSUMED]
    shown = [f for f in findings if f not in quiet]
    width = max((len(f.state.value) for f in findings), default=0)
    for finding in shown:
        target = finding.need.target.removeprefix("sglang.")
        lines.append(f"  {finding.state.value:<{width}}  {use_of(finding.need):<7}  {target}")
        if finding.state is not State.OK:
            lines.append(f"  {'':<{width}}  {'':<7}  -> {finding.detail}; needed: {finding.need.reason}")
    if quiet:
        lines.append(f"  {State.OK.value:<{width}}  {ASSUMED:<7}  {len(quiet)} places (--json lists them)")
    counts = Counter(finding.state.value for finding in findings)
    lines += ["", "Places: " + ", ".join(f"{count} {state}" for state, count in counts.most_common())]
    return "\n".join([*lines, _verdict(facts, findings)])


def _verdict(facts: Sequence[Fact], findings: Sequence[Finding]) -> str:
    problems = [fact.name for fact in facts if fact.state == PROBLEM]
    problems += [finding.need.target for finding in findings if finding.state.breaks]
    caveats = [fact.name for fact in facts if fact.state == WARNING]
    caveats += [finding.need.target for finding in findings if finding.state is State.BODY]
    if problems:
        return f"RPC can't run here: {', '.join(problems)}"
    if caveats:
        return f"RPC can run here, with {len(caveats)} warning{'s' * (len(caveats) > 1)}: {', '.join(caveats)}"
    return f"RPC can run here: all {len(findings)} places in SGLang are as pinned"


# ---- docs/hooks.md ------------------------------------------------------------------------------------------

_HOOKS_HEAD = """# Hooks

Where RPC is attached to SGLang. Each hook is declared above its function, with its target and the reason.
This page is generated: `python -m sglang_rpc.doctor --hooks > docs/hooks.md`.
"""
_WHEN = {
    COMMAND_LINE: "Put on by `sglang_rpc.launch_server` before it parses its arguments, RPC on or off",
    SERVING: "Put on in every process of a server with RPC",
    LATENT: "Put on when a model with latent attention (MLA) is met",
    REUSE: "Put on in the schedulers of a server with `--rpc-reuse`",
    SPECULATIVE: "Put on in the schedulers of a server that speculates",
    TEXTS: "Put on in the processes that tokenize for a server with `--rpc-reuse-text`",
}


def hooks_page() -> str:
    """The text of docs/hooks.md."""
    lines = [_HOOKS_HEAD]
    for when, title in _WHEN.items():
        lines += [
            f"## {title}\n",
            "| target, under `sglang` | hook, under `sglang_rpc` | kind | reason |",
            "|---|---|---|---|",
        ]
        for hook in every_hook():
            if hook.when == when:
                function = f"{hook.function.__module__}.{hook.function.__qualname__}".removeprefix("sglang_rpc.")
                target = hook.target.removeprefix("sglang.")
                lines.append(f"| `{target}` | `{function}` | {hook.kind} | {hook.reason} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
