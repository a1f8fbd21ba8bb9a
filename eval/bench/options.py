"""The command line, turned into arms, workloads and settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from eval.bench import arms, machine, presets, shapes
from eval.bench.arms import Arm
from eval.bench.errors import BenchError
from eval.bench.measure import Settings
from eval.bench.workloads import RPC, Workload


@dataclass(frozen=True)
class Options:
    """Everything that one command asks for."""

    settings: Settings
    arms: tuple[Arm, ...]
    workloads: tuple[Workload, ...]
    repetitions: int
    baseline: str
    rpc: RPC
    dry_run: bool
    report_only: bool
    retry_errors: bool

    @property
    def out(self) -> Path:
        return self.settings.out


def read(argv: list[str]) -> Options:
    """Raises BenchError on what argparse cannot see."""
    given = parser().parse_args(argv)
    given.out = given.out.resolve()
    model = _model(given)
    size = _size(given)
    preset = presets.preset(given.preset, size)
    if given.report_only:
        workloads: tuple[Workload, ...] = ()
    else:
        workloads = _workloads(given, preset)
        _fit_positions(workloads, model)
    rpc_flags = arms.split_flags(given.rpc_flags, "--rpc-flags")
    names = preset.arms if given.arms is None else _names(given.arms)
    chosen = [arms.built_in(name, size.rpc, rpc_flags) for name in names]
    chosen += [arms.from_text(text, size.rpc, rpc_flags) for text in given.arm]
    if given.baseline not in [arm.name for arm in chosen] and not given.report_only:
        raise BenchError(
            f"--baseline {given.baseline} is not among the arms ({', '.join(arm.name for arm in chosen)}); add it"
        )
    return Options(
        settings=_settings(given, model, size.rpc),
        arms=tuple(chosen),
        workloads=workloads,
        repetitions=preset.repetitions if given.repetitions is None else given.repetitions,
        baseline=given.baseline,
        rpc=size.rpc,
        dry_run=given.dry_run,
        report_only=given.report_only,
        retry_errors=given.retry_errors,
    )


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m eval.bench.serving",
        description="Paired runs of SGLang's server and of sglang-rpc at equal pool size; one CSV row a run.",
        allow_abbrev=False,
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="results.csv, summary.csv, plots, logs")
    made.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    made.add_argument("--report-only", action="store_true", help="summarise and draw what --out holds, run nothing")
    made.add_argument("--retry-errors", action="store_true", help="measure again what ended with errors")

    model = made.add_argument_group("model").add_mutually_exclusive_group()
    model.add_argument("--shape", choices=sorted(shapes.SHAPES), help="built-in, weights made up (default: tiny)")
    model.add_argument("--model-path", metavar="DIR", help="any model's folder; no tokenizer is needed")
    made.add_argument("--dummy-weights", action="store_true", help="make up the weights of --model-path")
    made.add_argument("--dtype", help="default: float32 on a CPU, else bfloat16")
    made.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if nvidia-smi finds a GPU")
    made.add_argument(
        "--threads", type=int, help="OMP_NUM_THREADS of every server (default on a CPU: half of the cores)"
    )

    load = made.add_argument_group("workloads", "Lists make a cross product; what is given replaces the preset's.")
    load.add_argument("--preset", default="quick", choices=presets.PRESETS, help="default: quick")
    load.add_argument("--concurrency", type=int, nargs="+", metavar="C", help="samples in flight, closed loop")
    load.add_argument("--rate", nargs="+", metavar="R", help="open loop: samples/s (Poisson) or inf; or: closed")
    load.add_argument("--samples", type=int, nargs="+", metavar="N", help="samples of one shared prompt (n)")
    load.add_argument("--prompt-tokens", type=int, nargs="+", metavar="T")
    load.add_argument("--output-tokens", type=int, nargs="+", metavar="T", help="forced length")
    pool = load.add_mutually_exclusive_group()
    pool.add_argument("--pool-fraction", type=float, nargs="+", metavar="F", help="of what the load holds uncompressed")
    pool.add_argument("--pool-tokens", type=int, nargs="+", metavar="T")
    load.add_argument("--per-client", type=int, metavar="K", help="a run has K x C samples")

    arm = made.add_argument_group("arms")
    arm.add_argument("--arms", metavar="A,B", help=f"of {', '.join(arms.BUILT_IN)}")
    arm.add_argument(
        "--arm", action="append", default=[], metavar="NAME[@BASE]=FLAGS", help="the rpc arm, or BASE, and"
    )
    arm.add_argument("--baseline", default="stock", metavar="ARM", help="of the ratios (default: stock)")
    arm.add_argument("--server-flags", default="", metavar="FLAGS", help="of every arm's server")
    arm.add_argument("--rpc-flags", default="", metavar="FLAGS", help="of every arm whose server has RPC on")
    arm.add_argument("--rpc-interval", type=int, metavar="P")
    arm.add_argument("--rpc-window", type=int, metavar="R")
    arm.add_argument("--rpc-ratio", type=float, metavar="C")
    arm.add_argument("--rpc-scope", default="all", choices=("all", "think"))

    how = made.add_argument_group("measuring")
    how.add_argument("--repetitions", type=int, help="default: the preset's, 3 but for quick")
    how.add_argument("--stream-interval", type=int, default=16, metavar="T", help="tokens a chunk (default: 16)")
    how.add_argument("--no-stream", action="store_true", help="no latencies of tokens, and the least client work")
    how.add_argument(
        "--unknown-lengths",
        action="store_true",
        help="requests that the server cannot plan: it estimates how much of their limit they use, as in production, "
        "and here they use all of it (needs a model without an end token; the built-in shapes have none)",
    )
    how.add_argument("--temperature", type=float, help="default: 0 for n = 1, else 1")
    how.add_argument("--warmup-tokens", type=int, help="default: P + R + 8")
    how.add_argument("--seed", type=int, default=0, help="of the prompts, arrivals and servers")
    how.add_argument("--start-seconds", type=float, default=600, help="limit of a server's start")
    how.add_argument("--limit-seconds", type=float, default=3600, help="limit of one run; then it counts as hung")
    return made


def _model(given: argparse.Namespace) -> shapes.Model:
    if given.model_path is not None:
        return shapes.at_path(given.model_path, given.dummy_weights)
    return shapes.of_shape(given.shape or "tiny", given.out / "model")


def _size(given: argparse.Namespace) -> presets.Size:
    """The shape's, or for a model of one's own smollm2's, with the RPC settings that were given."""
    size = presets.SIZES[given.shape or ("tiny" if given.model_path is None else "smollm2")]
    rpc = RPC(
        size.rpc.interval if given.rpc_interval is None else given.rpc_interval,
        size.rpc.window if given.rpc_window is None else given.rpc_window,
        size.rpc.ratio if given.rpc_ratio is None else given.rpc_ratio,
        given.rpc_scope,
    )
    return replace(size, rpc=rpc)


def _workloads(given: argparse.Namespace, preset: presets.Preset) -> tuple[Workload, ...]:
    changes: dict[str, tuple | int] = {}
    for name in ("concurrency", "samples", "prompt_tokens", "output_tokens", "pool_tokens"):
        if getattr(given, name) is not None:
            if min(getattr(given, name)) < 1:
                raise BenchError(f"--{name.replace('_', '-')} must be at least 1, got {min(getattr(given, name))}")
            changes[name] = tuple(getattr(given, name))
    if given.pool_fraction is not None:
        changes |= {"pool_fractions": tuple(given.pool_fraction), "pool_tokens": ()}
    if given.rate is not None:
        changes["rates"] = tuple(_rate(text) for text in given.rate)
    if given.per_client is not None:
        changes["per_client"] = given.per_client
    found = [workload for grid in preset.grids for workload in replace(grid, **changes).workloads()]
    return tuple(dict.fromkeys(found))


def _rate(text: str) -> float | None:
    if text == "closed":
        return None
    try:
        return float(text)
    except ValueError as error:
        raise BenchError(f"--rate must be a number of samples a second, inf or closed, got {text!r}") from error


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _fit_positions(workloads: tuple[Workload, ...], model: shapes.Model) -> None:
    for workload in workloads:
        length = workload.prompt_tokens + workload.output_tokens
        # SGLang keeps some positions to itself.
        if length + 8 > model.max_positions:
            raise BenchError(
                f"{workload.name}: {workload.prompt_tokens} + {workload.output_tokens} tokens do not fit the "
                f"{model.max_positions} positions of {model.label}; shorten the prompt or the output"
            )


def _settings(given: argparse.Namespace, model: shapes.Model, rpc: RPC) -> Settings:
    if given.stream_interval < 1:
        raise BenchError(f"--stream-interval must be at least 1 (--no-stream: none), got {given.stream_interval}")
    if given.temperature is not None and given.temperature < 0:
        raise BenchError(f"--temperature must be at least 0, got {given.temperature:g}")
    if given.threads is not None and given.threads < 1:
        raise BenchError(f"--threads must be at least 1, got {given.threads}")
    warmup = rpc.interval + rpc.window + 8 if given.warmup_tokens is None else given.warmup_tokens
    if warmup < 1:
        raise BenchError(f"--warmup-tokens must be at least 1, got {warmup}")
    device = given.device or machine.default_device()
    return Settings(
        out=given.out,
        model=model,
        device=device,
        dtype=given.dtype or ("float32" if device == "cpu" else "bfloat16"),
        threads=machine.default_threads(device) if given.threads is None else given.threads,
        server_flags=arms.split_flags(given.server_flags, "--server-flags"),
        temperature=given.temperature,
        known_lengths=not given.unknown_lengths,
        stream_interval=0 if given.no_stream else given.stream_interval,
        warmup_tokens=warmup,
        seed=given.seed,
        start_seconds=given.start_seconds,
        limit_seconds=given.limit_seconds,
        conditions=machine.conditions(),
    )
