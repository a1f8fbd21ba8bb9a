"""How long a compression takes on a GPU, part by part: `python -m eval.bench.kernels --out DIR`.

    scores     log-sum-exp and column scores of all layers        reads every candidate's key twice
    flashinfer the log-sum-exp from FlashInfer instead            (and reads every key a third time, as a value)
    select     pooling, radix selection
    move       what is kept moves to the front                    reads and writes it once
    total      all of it, as the server runs it
    reference  all of it in PyTorch

Of each: microseconds, the bytes it must move, and these over the copy bandwidth measured on the same GPU. Each row is
written as soon as it is measured. FlashInfer's come last, as it is another package, which may be missing, have no
kernel for this GPU or take minutes to compile one: a row without numbers then says why. This is the one benchmark that
imports sglang_rpc's kernels instead of speaking to a server.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from eval.bench.machine import conditions
from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.types import Compression, CompressionBatch, KVLayer

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Shape:
    """One rank's share of a model; the default is DeepSeek-R1-Distill-Qwen-7B."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str


@dataclass(frozen=True)
class Result:
    """One row; without numbers where `error` says why."""

    part: str
    candidates: int
    batch: int
    microseconds: float | None = None
    gigabytes: float | None = None
    copy_share: float | None = None  #: of the measured copy bandwidth
    error: str = ""

    def __str__(self) -> str:
        where = f"{self.batch:3d} x {self.candidates:6d}  {self.part:10s} "
        if self.microseconds is None:
            return f"{where}left out: {self.error}"
        share = f"{100 * (self.copy_share or 0):5.1f} % of a copy's bandwidth"
        return f"{where}{self.microseconds:10.0f} us  {self.gigabytes:8.3f} GB  {share}"


class Scene:
    """`batch` requests with `candidates` candidates each, a pool that holds them, and what serves them."""

    def __init__(self, shape: Shape, config: RPCConfig, candidates: int, batch: int, device: str = "cuda"):
        self.config = config
        window = config.window
        end = candidates + window
        dtype, slots = DTYPES[shape.dtype], batch * end + 1
        made = torch.Generator(device).manual_seed(0)

        def random(*size: int, like: torch.dtype) -> torch.Tensor:
            return torch.randn(*size, generator=made, device=device, dtype=torch.bfloat16).to(like)

        def buffer() -> torch.Tensor:
            kept = random(slots, shape.kv_heads, shape.head_dim, like=dtype)
            return kept.view(torch.uint8) if dtype.itemsize == 1 else kept

        scaling = shape.head_dim**-0.5
        self.layers = [KVLayer(buffer(), buffer(), dtype, scaling) for _ in range(shape.layers)]
        self.ring = QueryRing(
            layers=shape.layers,
            slots=batch,
            rows=batch + 1,
            window=window,
            heads=shape.heads,
            head_dim=shape.head_dim,
            dtype=torch.float16 if dtype == torch.float16 else torch.bfloat16,
            device=device,
        )
        self.ring.buffer.copy_(random(*self.ring.buffer.shape, like=self.ring.buffer.dtype))
        self.req_to_token = torch.zeros(batch + 1, end, dtype=torch.int32, device=device)
        # Slots of a request are scattered, as after long serving.
        self.req_to_token[1:] = 1 + torch.randperm(slots - 1, generator=made, device=device).view(batch, end).int()
        self.compressions = [
            Compression(
                row=index + 1,
                slot=index + 1,
                prompt_length=0,
                generated=end,
                window=window,
                begin=0,
                end=end,
                keep=max(1, candidates - config.interval + config.budget_step),
                event=1,
                late=False,
            )
            for index in range(batch)
        ]
        self.keys_bytes = batch * candidates * shape.kv_heads * shape.head_dim * dtype.itemsize * shape.layers
        kept = self.compressions[0].keep + window
        self.moved_bytes = 4 * batch * kept * shape.kv_heads * shape.head_dim * dtype.itemsize * shape.layers
        self.score_bytes = 4 * batch * candidates * shape.layers


def parts(scene: Scene) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Name, bytes that must move, and what to time, of all that needs no other package."""
    from sglang_rpc.backends.choose import make_backend
    from sglang_rpc.memory.triton_compaction import SliceTable, move_kept
    from sglang_rpc.scoring.key_table import KeyTable
    from sglang_rpc.scoring.triton_scores import candidate_scores
    from sglang_rpc.scoring.triton_select import select

    config, ring, rows = scene.config, scene.ring, scene.req_to_token
    keys, slices = KeyTable(scene.layers), SliceTable(scene.layers)
    batch = CompressionBatch.of(scene.compressions, rows.device)

    def score(lse: torch.Tensor | None = None) -> torch.Tensor:
        return candidate_scores(keys, ring.buffer, rows, batch, selector=config.selector, group=False, lse=lse)

    scores = score()
    kept = select(scores, batch, config.kernel_size, config.pooling)
    yield "scores", 2 * scene.keys_bytes, score
    yield "select", 6 * scene.score_bytes, lambda: select(scores, batch, config.kernel_size, config.pooling)
    yield "move", scene.moved_bytes, lambda: move_kept(slices, rows, batch, kept)
    all_bytes = 2 * scene.keys_bytes + 6 * scene.score_bytes + scene.moved_bytes
    for name, scoring in (("total", "triton"), ("reference", "reference")):
        path = make_backend(RPCConfig(**{**asdict(config), "scoring": scoring}), scene.layers, ring, rows, None)
        yield name, all_bytes, lambda path=path: path.compress(scene.compressions)


def flashinfer_part(scene: Scene) -> tuple[str, int, Callable[[], object]]:
    """As `parts`. What is timed may raise anything: FlashInfer is imported, and compiles, when it is first called."""

    @functools.cache
    def lse() -> Callable[..., object]:
        from sglang_rpc.scoring.flashinfer_lse import FlashInferLSE

        return FlashInferLSE(scene.layers, scene.ring.buffer)

    selector = scene.config.selector
    return "flashinfer", 2 * scene.keys_bytes, lambda: lse()(scene.compressions, scene.req_to_token, selector=selector)


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
    made.add_argument("--candidates", type=int, nargs="+", default=[1024, 4096, 16384, 65536], metavar="N")
    made.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64], metavar="B")
    made.add_argument("--layers", type=int, default=28)
    made.add_argument("--heads", type=int, default=28)
    made.add_argument("--kv-heads", type=int, default=4)
    made.add_argument("--head-dim", type=int, default=128)
    made.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="of the KV cache")
    made.add_argument("--interval", type=int, default=1024, metavar="P")
    made.add_argument("--window", type=int, default=32, metavar="R")
    made.add_argument("--ratio", type=float, default=4, metavar="C")
    return made.parse_args()


def main() -> None:
    given = arguments()
    if not torch.cuda.is_available():
        sys.exit("eval.bench.kernels measures GPU kernels, and PyTorch sees no GPU here: run it on a CUDA host")
    shape = Shape(given.layers, given.heads, given.kv_heads, given.head_dim, given.dtype)
    config = RPCConfig(interval=given.interval, window=given.window, ratio=given.ratio, scope="all")
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {bandwidth / 1e9:.0f} GB/s")
    setting = {**asdict(shape), "interval": given.interval, "window": given.window, "ratio": given.ratio}
    setting |= {"copy_gb_s": round(bandwidth / 1e9), **conditions()}
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "kernels.csv").open("w", newline="") as file:
        table: csv.DictWriter[str] | None = None
        sizes = list(itertools.product(given.candidates, given.batch))
        bar = tqdm(total=2 * len(sizes))
        for result in results(functools.partial(Scene, shape, config), sizes, bandwidth, bar.update):
            row = {**asdict(result), **setting}
            if table is None:
                table = csv.DictWriter(file, row)
                table.writeheader()
            table.writerow(row)
            file.flush()
            bar.write(str(result))
        bar.close()
    print(given.out / "kernels.csv")


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
            yield from measured(make, candidates, batch, bandwidth)
            done()


def _kernels(make: Callable[[int, int], Scene], candidates: int, batch: int, bandwidth: float) -> Iterator[Result]:
    try:
        scene = make(candidates, batch)
        for name, size, work in parts(scene):
            yield _measured(name, size, work, candidates, batch, bandwidth)
    except torch.OutOfMemoryError:
        yield Result("all others", candidates, batch, error="more than this GPU holds")


def _flashinfer(make: Callable[[int, int], Scene], candidates: int, batch: int, bandwidth: float) -> Iterator[Result]:
    try:
        yield _measured(*flashinfer_part(make(candidates, batch)), candidates, batch, bandwidth)
    except Exception as error:  # of another package, or of a device that it left unusable
        first = (str(error).splitlines() or [""])[0]
        yield Result("flashinfer", candidates, batch, error=f"{type(error).__name__}: {first}")


def _measured(
    part: str, size: int, work: Callable[[], object], candidates: int, batch: int, bandwidth: float
) -> Result:
    seconds = milliseconds(work) / 1e3
    return Result(part, candidates, batch, seconds * 1e6, size / 1e9, size / seconds / bandwidth)


if __name__ == "__main__":
    main()
