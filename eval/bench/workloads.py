"""What is offered to a server, and what it would hold.

offered(w) = groups in flight * prompt + concurrency * output      tokens, uncompressed, shared prompts held once
pool       = fraction * offered(w)                                 1.25 is ample, 0.25 is tight
peak(n)    = n, before the first compression, else ((n - R) // P) * int(P / c) + R + P        tokens of one sample
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from eval.bench.errors import BenchError

#: Tokens a request. SGLang cuts it to what an empty pool can hold less a page (here: of one token) and a token.
POOL_SLACK = 2


@dataclass(frozen=True)
class RPC:
    """The settings of the method that all compressing arms share."""

    interval: int  #: P: generated tokens between two compressions
    window: int  #: R: newest tokens, always kept
    ratio: float  #: c: of every P, int(P / c) are kept
    scope: str = "all"

    def __post_init__(self) -> None:
        if self.interval < 2 or self.window < 1 or not 1 < self.ratio <= self.interval:
            raise BenchError(
                f"--rpc-interval must be at least 2, --rpc-window at least 1 and --rpc-ratio above 1 and at most the "
                f"interval, got {self.interval}, {self.window} and {self.ratio:g}"
            )
        if self.scope not in ("all", "think"):
            raise BenchError(f"--rpc-scope must be all or think, got {self.scope}")

    def peak(self, generated: int) -> int:
        """The most KV entries a sample holds on its way to `generated` tokens, its prompt not counted."""
        if generated < self.interval + self.window:
            return generated
        done = (generated - self.window) // self.interval
        return min(generated, done * int(self.interval / self.ratio) + self.window + self.interval)

    def flags(self) -> list[str]:
        return [
            *("--rpc-interval", str(self.interval), "--rpc-window", str(self.window)),
            *("--rpc-ratio", f"{self.ratio:g}", "--rpc-scope", self.scope),
        ]


@dataclass(frozen=True)
class Workload:
    """One load on one pool. A *sample* is one generated sequence; a *group* is one HTTP request of `n` samples."""

    concurrency: int  #: samples in flight in the closed loop; the load the pool's fraction refers to
    n: int  #: samples of one shared prompt, sent as `n` of the sampling parameters
    prompt_tokens: int
    output_tokens: int  #: forced: ignore_eos, max_new_tokens
    pool_tokens: int  #: --max-total-tokens of every arm
    samples: int  #: in the whole run
    rate: float | None = None  #: samples a second of a Poisson process; inf: all at once; None: closed loop

    def __post_init__(self) -> None:
        for name in ("concurrency", "n", "prompt_tokens", "output_tokens", "pool_tokens", "samples"):
            if getattr(self, name) < 1:
                raise BenchError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rate is not None and not self.rate > 0:
            raise BenchError(f"a request rate must be above 0 (or inf), got {self.rate:g}")
        if self.concurrency % self.n or self.samples % self.n:
            raise BenchError(
                f"concurrency and requests count samples and must be multiples of the {self.n} samples of one prompt, "
                f"got {self.concurrency} and {self.samples}"
            )
        alone = self.prompt_tokens + self.output_tokens + POOL_SLACK
        if self.pool_tokens < alone:
            raise BenchError(
                f"{self.name}: a pool of {self.pool_tokens} tokens cannot hold one request of {self.prompt_tokens} + "
                f"{self.output_tokens} tokens uncompressed, so stock SGLang would cut it short; "
                f"raise the concurrency or the pool to at least {alone} tokens"
            )

    @property
    def name(self) -> str:
        load = f"c{self.concurrency}" if self.rate is None else f"c{self.concurrency}-r{self.rate:g}"
        return f"{load}-n{self.n}-p{self.prompt_tokens}-o{self.output_tokens}-pool{self.pool_tokens}"

    @property
    def groups(self) -> int:
        return self.samples // self.n

    @property
    def offered_tokens(self) -> int:
        return offered_tokens(self.concurrency, self.n, self.prompt_tokens, self.output_tokens)

    @property
    def pool_fraction(self) -> float:
        """Of the load that is offered, as `pool_for` counts it."""
        return round(self.pool_tokens / (self.offered_tokens + POOL_SLACK * self.concurrency), 3)

    @property
    def total_output_tokens(self) -> int:
        return self.samples * self.output_tokens

    def fits(self, held: int) -> float:
        """Samples that fit at once when each holds `held` tokens of its own beside its share of the prompt."""
        return min(self.concurrency, self.pool_tokens / (self.prompt_tokens / self.n + held))

    def prompt(self, group: int, vocabulary: int, seed: int) -> list[int]:
        """Token ids; the same for every arm of a repetition, and in common with no other group but by chance."""
        # The text seeds it, not hash(): that differs from process to process.
        draw = random.Random(f"{seed}/{self.name}/{group}")
        return [draw.randrange(vocabulary) for _ in range(self.prompt_tokens)]

    def arrivals(self, seed: int) -> list[float]:
        """Seconds after the start at which each group is sent in the open loop."""
        if self.rate is None:
            raise ValueError("a closed loop has no arrival times")
        draw = random.Random(f"{seed}/{self.name}/arrivals")
        times, now = [], 0.0
        for _ in range(self.groups):
            times.append(now)
            now += draw.expovariate(self.rate / self.n)
        return times


def offered_tokens(concurrency: int, n: int, prompt_tokens: int, output_tokens: int) -> int:
    """What `concurrency` finished samples hold uncompressed, with each shared prompt held once (radix cache)."""
    return concurrency // n * prompt_tokens + concurrency * output_tokens


def pool_for(fraction: float, concurrency: int, n: int, prompt_tokens: int, output_tokens: int) -> int:
    """Tokens of a pool that holds `fraction` of the load.

    SGLang reserves a page for each request it lets in, and one more token must stay free. Without room for that, a pool
    for exactly four requests would hold three, and what is compared with stock would win by that alone.
    """
    reserve = POOL_SLACK * math.ceil(fraction * concurrency)
    return round(fraction * offered_tokens(concurrency, n, prompt_tokens, output_tokens)) + reserve
