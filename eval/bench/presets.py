"""Presets: the workloads of the must-show table, sized for each shape.

A grid is a cross product. Sizes follow two rules. Outputs are at least 20 P long, so that what compression gives is
not hidden by the first P tokens. And what stock holds at once in the tight pool is few, so that a step's fixed cost,
not the CPU's attention (one PyTorch call a request and layer), is what more requests at once share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from eval.bench.errors import BenchError
from eval.bench.workloads import RPC, Workload, pool_for

TIGHT, AMPLE = 0.25, 1.25


@dataclass(frozen=True)
class Size:
    """What fits a shape: the settings of RPC and the load that the presets are multiples of."""

    rpc: RPC
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    per_client: int  #: samples that each client sends, one after the other

    def pool(self, fraction: float) -> int:
        return pool_for(fraction, self.concurrency, 1, self.prompt_tokens, self.output_tokens)


SIZES = {
    "tiny": Size(RPC(64, 16, 4), concurrency=8, prompt_tokens=32, output_tokens=1280, per_client=4),
    "smollm2": Size(RPC(16, 8, 4), concurrency=8, prompt_tokens=16, output_tokens=640, per_client=2),
    # The paper's setting: 128 tokens in, up to 32K out. As many as one GPU holds in the ample pool beside the weights:
    # 38 of 80 GB, and 43 of the 141 GB that the larger model needs.
    "qwen-7b": Size(RPC(1024, 32, 4), concurrency=16, prompt_tokens=128, output_tokens=32768, per_client=1),
    "qwq-32b": Size(RPC(1024, 32, 4), concurrency=4, prompt_tokens=128, output_tokens=32768, per_client=1),
}


@dataclass(frozen=True)
class Grid:
    """Every combination of these is a workload. Pools are fractions of each load, or fixed numbers of tokens."""

    concurrency: tuple[int, ...]
    output_tokens: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    samples: tuple[int, ...] = (1,)  #: n
    rates: tuple[float | None, ...] = (None,)
    pool_fractions: tuple[float, ...] = (TIGHT,)
    pool_tokens: tuple[int, ...] = ()  #: not empty: used instead of the fractions
    per_client: int = 3

    def workloads(self) -> list[Workload]:
        """Raises BenchError."""
        found = []
        for prompt in self.prompt_tokens:
            for output in self.output_tokens:
                for n in self.samples:
                    for concurrency in self.concurrency:
                        for pool in self._pools(concurrency, n, prompt, output):
                            for rate in self.rates:
                                samples = concurrency * self.per_client
                                found.append(Workload(concurrency, n, prompt, output, pool, samples, rate))
        return found

    def _pools(self, concurrency: int, n: int, prompt: int, output: int) -> list[int]:
        if self.pool_tokens:
            return list(self.pool_tokens)
        for fraction in self.pool_fractions:
            if not 0 < fraction <= 64:
                raise BenchError(f"--pool-fraction must be above 0 and at most 64, got {fraction:g}")
        return [pool_for(fraction, concurrency, n, prompt, output) for fraction in self.pool_fractions]


@dataclass(frozen=True)
class Preset:
    arms: tuple[str, ...]
    grids: tuple[Grid, ...]
    repetitions: int = 3


PRESETS = ("quick", "tight", "ample", "shared", "together", "full", "lengths")
MAIN_ARMS = ("stock", "constrained", "rpc")


def preset(name: str, size: Size) -> Preset:
    """Raises BenchError for an unknown name."""
    base = Grid(
        concurrency=(size.concurrency,),
        output_tokens=(size.output_tokens,),
        prompt_tokens=(size.prompt_tokens,),
        per_client=size.per_client,
    )
    if name == "quick":
        short = replace(
            base, concurrency=(4,), output_tokens=(5 * size.rpc.interval,), per_client=2, pool_fractions=(0.5,)
        )
        return Preset(("stock", "rpc"), (short,), repetitions=1)
    if name == "tight":
        return Preset(MAIN_ARMS, (base,))
    if name == "ample":
        return Preset(("stock", "constrained", "off", "rpc-off", "rpc"), (replace(base, pool_fractions=(AMPLE,)),))
    if name == "shared":
        # Two groups of 32 in flight at least: with one, each group's last samples would have the server for themselves.
        # All three n share one pool, so each arm starts once a repetition.
        pool = pool_for(TIGHT, 64, 32, size.prompt_tokens, size.output_tokens)
        many = replace(base, concurrency=(64,), samples=(1, 8, 32), pool_tokens=(pool,), per_client=2)
        return Preset(MAIN_ARMS, (many,))
    if name == "together":
        # All are due in the same step, samples of one prompt or not: what query slots are counted for.
        length = 10 * size.rpc.interval
        pool = pool_for(TIGHT, 64, 64, size.prompt_tokens, length)
        crowd = replace(base, concurrency=(64,), samples=(64, 1), output_tokens=(length,), pool_tokens=(pool,))
        return Preset(("stock", "rpc"), (replace(crowd, per_client=1),), repetitions=1)
    if name == "lengths":
        # The same batch in a pool that holds it (what attention over fewer entries gives) and where memory binds.
        lengths = tuple(size.output_tokens // part for part in (4, 2, 1))
        return Preset(MAIN_ARMS, (replace(base, output_tokens=lengths, pool_fractions=(TIGHT, AMPLE)),))
    if name == "full":
        return Preset(MAIN_ARMS, _full(base, size))
    raise BenchError(f"--preset must be one of {', '.join(PRESETS)}, got {name}")


def _full(base: Grid, size: Size) -> tuple[Grid, ...]:
    """Pools from tight to ample; load, length and sharing are varied in those same pools, so that starts stay few."""
    tight, half = size.pool(TIGHT), size.pool(0.5)
    c, length = size.concurrency, size.output_tokens
    return (
        replace(base, pool_fractions=(TIGHT, 0.5, 0.75, AMPLE)),
        replace(base, concurrency=(c // 4, c // 2, 2 * c), pool_tokens=(tight,)),
        replace(base, output_tokens=(length // 4, length // 2, 2 * length), pool_tokens=(half,)),
        replace(base, concurrency=(2 * c,), samples=(8, 2 * c if c < 16 else 32), pool_tokens=(tight,)),
    )
