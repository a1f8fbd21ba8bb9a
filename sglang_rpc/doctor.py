"""`python -m sglang_rpc.doctor`: can RPC run here, and is this SGLang the one it was proven on?

Exit status: 0 if RPC can start, with or without warnings; 1 if it would refuse to. With `--pin`: whether pins were
written.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sglang_rpc import __version__
from sglang_rpc.contract import pins as pinned
from sglang_rpc.contract.assumptions import ASSUMPTIONS, LATENT_ASSUMPTIONS, Assumption
from sglang_rpc.contract.pins import Finding, Pins, State
from sglang_rpc.contract.targets import CLI_HOOKS, HOOKS, LATENT_HOOKS
from sglang_rpc.errors import RPCError
from sglang_rpc.startup import cpu

OK, WARNING, PROBLEM = "ok", "warning", "problem"
NEEDS: tuple[pinned.Need, ...] = (*CLI_HOOKS, *HOOKS, *LATENT_HOOKS, *ASSUMPTIONS, *LATENT_ASSUMPTIONS)
GROUP = "sglang.srt.plugins"


@dataclass(frozen=True)
class Fact:
    """One line about this machine. A problem means that RPC can't start."""

    name: str
    value: str
    state: str = OK
    advice: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the report; returns the exit status."""
    options = _parser().parse_args(argv)
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
    pins = pinned.load(version, folder)
    facts = machine(version, pins)
    findings = pinned.compare(pins, NEEDS)
    if options.json:
        print(json.dumps(as_json(facts, findings), indent=1))
    else:
        print(report(facts, findings, pinned.path_of(pins.version, folder)))
    return 1 if broken(facts, findings) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sglang_rpc.doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--pin", action="store_true", help="pin the SGLang installed here, once it is proven")
    parser.add_argument("--pins", metavar="DIR", help="where pins are read and written (default: those of sglang-rpc)")
    return parser


def _prepare() -> str:
    """Make SGLang importable here; returns its version. Raises RPCError."""
    if importlib.util.find_spec("sglang") is None:
        raise RPCError("SGLang is not installed; install it with `pip install sglang-rpc`")
    try:
        cpu.prepare()
        import sglang
    except Exception as error:  # whatever a broken installation raises: the reader needs the sentence, not the stack
        raise RPCError(f"SGLang can't be imported: {type(error).__name__}: {error}") from error
    return sglang.__version__


def _pin(version: str, folder: Path) -> int:
    path = pinned.save(pinned.take(version, NEEDS), folder)
    print(f"pinned {len(NEEDS)} targets of SGLang {version} in {path}")
    return 0


def broken(facts: Sequence[Fact], findings: Sequence[Finding]) -> bool:
    """Whether RPC would refuse to start."""
    return any(fact.state == PROBLEM for fact in facts) or any(finding.state.breaks for finding in findings)


# ---- this machine -------------------------------------------------------------------------------------------


def machine(version: str, pins: Pins) -> list[Fact]:
    """What decides whether RPC can run here. Raises ConfigError on a wrong SGLANG_RPC_ALLOW_VERSION."""
    return [_sglang(version, pins), _python(), _package("PyTorch", "torch"), *_device(), _plugin(), _whitelist()]


def _sglang(version: str, pins: Pins) -> Fact:
    from sglang_rpc.hooks.install import ALLOW_VERSION_ENV, allowed_version

    if pinned.public(version) == pins.version:
        return Fact("SGLang", f"{version}, the version pinned")
    value = f"{version}; pinned is {pins.version}"
    if allowed_version(version, pins):
        return Fact("SGLang", value, WARNING, f"unproven, allowed by {ALLOW_VERSION_ENV}=1")
    advice = f"install sglang=={pins.version}, or set {ALLOW_VERSION_ENV}=1 to try it all the same"
    return Fact("SGLang", value, PROBLEM, advice)


def _python() -> Fact:
    return Fact("Python", f"{platform.python_version()}, {platform.machine()} {platform.system()}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, distribution: str, needed: bool = True) -> Fact:
    value = _version(distribution)
    if value is not None:
        return Fact(name, value)
    return Fact(name, "not installed", PROBLEM if needed else OK, "SGLang needs it: install it again" if needed else "")


def _device() -> list[Fact]:
    """The device, the kernels' packages, and the attention backends that RPC and this device can both use."""
    import torch

    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        shown = ", ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus)
        major, minor = torch.cuda.get_device_capability()
        return [
            Fact("Device", shown),
            _package("Triton", "triton"),
            _flashinfer(used=torch.version.hip is None),
            Fact("Attention", ", ".join(_gpu_backends(major * 10 + minor, torch.version.hip is not None))),
        ]
    triton = _package("Triton", "triton", needed=False)
    if not cpu.wanted():
        return [Fact("Device", "an accelerator other than CUDA or ROCm", PROBLEM, "add --device cpu"), triton]
    kernels = "SGLang's CPU kernels" if cpu.cpu_kernels_available() else "a stand-in for SGLang's CPU kernels, slow"
    return [
        Fact("Device", f"CPU, {os.cpu_count()} cores: reference mode, with {kernels}"),
        triton,
        _flashinfer(used=False),
        Fact("Attention", "torch_native"),
    ]


def _flashinfer(used: bool) -> Fact:
    distribution = "flashinfer-python"
    value = _version(distribution) or _version("flashinfer")
    if value is None:
        return Fact("FlashInfer", "not installed" + (": the triton backend serves" if used else ""))
    return Fact("FlashInfer", value + ("" if used else ", not used on this device"))


def _gpu_backends(capability: int, rocm: bool) -> list[str]:
    """Of the backends RPC is built for, those this GPU can run: `capability` is 90 for Hopper's 9.0."""
    from sglang_rpc.contract.refusals import ATTENTION_BACKENDS

    usable: dict[str, Callable[[], bool]] = {
        # SGLang's FlashAttention 3 kernels: Ampere to Hopper. FlashInfer: Turing and later.
        "fa3": lambda: not rocm and 80 <= capability < 100,
        "flashinfer": lambda: not rocm and capability >= 75 and importlib.util.find_spec("flashinfer") is not None,
    }
    return [name for name in ATTENTION_BACKENDS if usable.get(name, lambda: True)()]


def _plugin() -> Fact:
    """The entry point that `sglang serve` with SGLANG_RPC_CONFIG needs; our own launcher doesn't."""
    from sglang_rpc.config import CONFIG_ENV

    advice = f"`sglang serve` with {CONFIG_ENV} would run uncompressed; install sglang-rpc again with pip"
    found = [entry for entry in importlib.metadata.entry_points(group=GROUP) if entry.name == "rpc"]
    if not found:
        return Fact("Plugin", f"no entry point `rpc` in {GROUP}", WARNING, advice)
    try:
        found[0].load()
    except Exception as error:  # an import may raise anything, and SGLang would swallow it
        return Fact("Plugin", f"{found[0].value} can't be imported: {error}", WARNING, advice)
    return Fact("Plugin", f"rpc = {found[0].value}")


def _whitelist() -> Fact:
    listed = os.environ.get("SGLANG_PLUGINS", "")
    names = {name.strip() for name in listed.split(",") if name.strip()}
    if not names:
        return Fact("SGLANG_PLUGINS", "not set: every plugin is loaded")
    if "rpc" in names:
        return Fact("SGLANG_PLUGINS", listed)
    from sglang_rpc.config import CONFIG_ENV

    return Fact("SGLANG_PLUGINS", listed, WARNING, f"`sglang serve` with {CONFIG_ENV} would run uncompressed; add rpc")


# ---- showing it ---------------------------------------------------------------------------------------------


def as_json(facts: Sequence[Fact], findings: Sequence[Finding]) -> dict[str, Any]:
    """The report for programs."""
    return {
        "sglang_rpc": __version__,
        "can_run": not broken(facts, findings),
        "machine": [asdict(fact) for fact in facts],
        "seams": [
            {
                "target": finding.need.target,
                "use": _use(finding),
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
    # Of what is only relied upon, a person reads what differs; --json has all of it.
    quiet = [f for f in findings if f.state is State.OK and isinstance(f.need, Assumption)]
    shown = [f for f in findings if f not in quiet]
    width = max((len(f.state.value) for f in findings), default=0)
    for finding in shown:
        target = finding.need.target.removeprefix("sglang.")
        lines.append(f"  {finding.state.value:<{width}}  {_use(finding):<11}  {target}")
        if finding.state is not State.OK:
            lines.append(f"  {'':<{width}}  {'':<11}  -> {finding.detail}; needed: {finding.need.reason}")
    if quiet:
        lines.append(f"  {State.OK.value:<{width}}  {pinned.ASSUMPTIONS:<11}  {len(quiet)} places (--json lists them)")
    return "\n".join([*lines, "", _verdict(facts, findings)])


def _use(finding: Finding) -> str:
    return pinned.ASSUMPTIONS if isinstance(finding.need, Assumption) else finding.need.kind


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


if __name__ == "__main__":
    sys.exit(main())
