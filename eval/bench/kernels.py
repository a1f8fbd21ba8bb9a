"""How long a compression takes on a GPU, part by part and policy by policy: `python -m eval.bench.kernels --out DIR`.

    lse        log-sum-exp of all layers, over what a policy's softmax is over    reads its keys once
    scores     the same and column scores                                   and every candidate's key, perhaps its value
    flashinfer the log-sum-exp from FlashInfer instead            (and reads its keys once more, as values)
    select     pooling, radix selection
    move       what is kept moves to the front                    reads and writes it once
    total      all of it, as the server runs it
    reference  all of it in PyTorch

Of each: microseconds, the bytes it must move, these over the copy bandwidth measured on the same GPU, and the time over
that of the first policy, which is `rpc` by default. The last line says what the others' totals cost in these. No policy
changes what is moved, so that part, and PyTorch's, are of the first policy alone.

Each row is written as soon as it is measured. FlashInfer's come last, as it is another package, which may be missing,
have no kernel for this GPU or take minutes to compile one: a row without numbers then says why. This is the one
benchmark that imports sglang_rpc's kernels instead of speaking to a server.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from eval.bench.kernel_parts import DTYPES, RULES, Part, Scene, Shape, flashinfer_parts, parts
from eval.bench.machine import conditions
from eval.bench.shapes import SHAPES
from sglang_rpc.config import RPCConfig


@dataclass(frozen=True)
class Result:
    """One row; without numbers where `error` says why."""

    policy: str
    part: str
    candidates: int
    batch: int
    microseconds: float | None = None
    gigabytes: float | None = None
    copy_share: float | None = None  #: of the measured copy bandwidth
    to_first: float | None = None  #: time over that of the first policy; None for the first, and where it has none
    error: str = ""

    def __str__(self) -> str:
        where = f"{self.batch:3d} x {self.candidates:6d}  {self.policy:6s} {self.part:10s} "
        if self.microseconds is None:
            return f"{where}left out: {self.error}"
        share = f"{100 * (self.copy_share or 0):5.1f} % of a copy's bandwidth"
        ratio = "" if self.to_first is None else f", {self.to_first:.2f} x the first policy's time"
        return f"{where}{self.microseconds:10.0f} us  {self.gigabytes:8.3f} GB  {share}{ratio}"


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of a large copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (milliseconds(lambda: target.copy_(source)) / 1e3)


def milliseconds(work: Callable[[], object]) -> float:
    """Median."""
    from triton.testing import do_bench

    return float(do_bench(work, warmup=20, rep=100, return_mode="median"))


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(prog="python -m eval.bench.kernels", description=__doc__.splitlines()[0])
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="where kernels.csv goes")
    made.add_argument("--policies", nargs="+", default=["rpc", "peak"], choices=sorted(RULES), help="the first is 1.0")
    made.add_argument("--shape", nargs="+", default=["qwen-7b"], choices=sorted(SHAPES), help="models' attention")
    for name in ("layers", "heads", "kv-heads", "head-dim"):
        made.add_argument(f"--{name}", type=int, metavar="N", help="instead of the shape's")
    made.add_argument("--candidates", type=int, nargs="+", default=[1024, 4096, 16384, 65536], metavar="N")
    made.add_argument("--prompt-tokens", type=int, default=1024, metavar="N", help="before them in each row")
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], metavar="B")
    made.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the KV cache")
    made.add_argument("--interval", type=int, default=1024, metavar="P")
    made.add_argument("--window", type=int, default=32, metavar="R")
    made.add_argument("--ratio", type=float, default=4, metavar="C")
    return made.parse_args()


def shape_of(name: str, given: argparse.Namespace) -> Shape:
    """A built-in shape, with the numbers that are given instead of its own."""
    config = SHAPES[name]
    heads = config["num_attention_heads"]

    def chosen(value: int | None, own: int) -> int:
        return own if value is None else value

    return Shape(
        chosen(given.layers, config["num_hidden_layers"]),
        chosen(given.heads, heads),
        chosen(given.kv_heads, config["num_key_value_heads"]),
        chosen(given.head_dim, config["hidden_size"] // heads),
        given.dtype,
    )


def main() -> None:
    given = arguments()
    if not torch.cuda.is_available():
        sys.exit("eval.bench.kernels measures GPU kernels, and PyTorch sees no GPU here: run it on a CUDA host")
    config = RPCConfig(interval=given.interval, window=given.window, ratio=given.ratio, scope="all")
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth / 1e9:.0f} GB/s")
    common = {"interval": given.interval, "window": given.window, "ratio": given.ratio}
    common |= {"prompt_tokens": given.prompt_tokens, "copy_gb_s": round(bandwidth / 1e9), **conditions()}
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "kernels.csv").open("w", newline="") as file:
        table: csv.DictWriter[str] | None = None
        sizes = list(itertools.product(given.candidates, given.batch))
        bar = tqdm(total=2 * len(sizes) * len(given.shape))
        for name in given.shape:
            shape, found = shape_of(name, given), []
            make = functools.partial(Scene, shape, config, prompt=given.prompt_tokens, policies=given.policies)
            for result in results(make, sizes, bandwidth, bar.update):
                row = {**asdict(result), "shape": name, **asdict(shape), **common}
                if table is None:
                    table = csv.DictWriter(file, row)
                    table.writeheader()
                table.writerow(row)
                file.flush()
                bar.write(str(result))
                found.append(result)
            for sentence in verdicts(found):
                bar.write(f"{name}: {sentence}")
        bar.close()
    print(given.out / "kernels.csv")


def verdicts(found: Sequence[Result]) -> Iterator[str]:
    """What each further policy's compression costs in the first one's, over all sizes."""
    totals: dict[str, list[float]] = {}
    for result in found:
        if result.part == "total" and result.to_first is not None:
            totals.setdefault(result.policy, []).append(result.to_first)
    for policy, times in totals.items():
        yield f"a compression of {policy} takes {min(times):.2f} to {max(times):.2f} times {found[0].policy}'s"


def results(
    make: Callable[[int, int], Scene],
    sizes: Sequence[tuple[int, int]],
    bandwidth: float,
    done: Callable[[], object] = lambda: None,
) -> Iterator[Result]:
    """Each as it is measured, FlashInfer's after all others; `make` and `sizes` are of candidates and batch.

    `done` is called twice for each size.
    """
    for measured in (_kernels, _flashinfer):
        for candidates, batch in sizes:
            first: dict[str, Result] = {}  # of each part
            for result in measured(make, candidates, batch, bandwidth):
                yield _beside(result, first.setdefault(result.part, result))
            done()


def _beside(result: Result, first: Result) -> Result:
    if result.policy == first.policy or result.microseconds is None or first.microseconds is None:
        return result
    return replace(result, to_first=result.microseconds / first.microseconds)


def _kernels(make: Callable[[int, int], Scene], candidates: int, batch: int, bandwidth: float) -> Iterator[Result]:
    try:
        for part in parts(make(candidates, batch)):
            yield _measured(part, candidates, batch, bandwidth)
    except torch.OutOfMemoryError:
        yield Result("all", "all others", candidates, batch, error="more than this GPU holds")


def _flashinfer(make: Callable[[int, int], Scene], candidates: int, batch: int, bandwidth: float) -> Iterator[Result]:
    policy = "all"
    try:
        for part in flashinfer_parts(make(candidates, batch)):
            policy = part.policy
            yield _measured(part, candidates, batch, bandwidth)
    except Exception as error:  # of another package, or of a device that it left unusable
        first = (str(error).splitlines() or [""])[0]
        yield Result(policy, "flashinfer", candidates, batch, error=f"{type(error).__name__}: {first}")


def _measured(part: Part, candidates: int, batch: int, bandwidth: float) -> Result:
    seconds = milliseconds(part.work) / 1e3
    share = part.bytes / seconds / bandwidth
    return Result(part.policy, part.name, candidates, batch, seconds * 1e6, part.bytes / 1e9, share)


if __name__ == "__main__":
    main()
