"""What eval.bench.kernels times: a scene of due requests, and the parts of a compression of them.

Beside eval.bench.kernels this is the one file of the benchmarks that imports sglang_rpc's kernels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy.base import Policy
from sglang_rpc.policy.resolve import POLICIES
from sglang_rpc.types import Compression, CompressionBatch, KVLayer, ScoreRule

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8_e4m3": torch.float8_e4m3fn}


#: Those that run in the kernels, and how they score there.
RULES = {name: policy.rule for name, policy in POLICIES.items() if policy.rule is not None}


@dataclass(frozen=True)
class Shape:
    """One rank's share of a model."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    dtype: str


@dataclass(frozen=True)
class Part:
    """What is timed."""

    policy: str
    name: str
    bytes: int  #: that must move
    work: Callable[[], object]


class Scene:
    """`batch` requests with `candidates` candidates each after their prompts, a pool that holds them, and what serves
    them."""

    def __init__(
        self,
        shape: Shape,
        config: RPCConfig,
        candidates: int,
        batch: int,
        *,
        prompt: int = 0,
        policies: Sequence[str] = ("rpc",),
        device: str = "cuda",
    ):
        self.config, self.policies = config, policies
        window = config.window
        end = prompt + candidates + window
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
                prompt_length=prompt,
                generated=end - prompt,
                window=window,
                begin=prompt,
                end=end,
                keep=max(1, candidates - config.interval + config.budget_step),
            )
            for index in range(batch)
        ]
        self._entry_bytes = batch * shape.kv_heads * shape.head_dim * dtype.itemsize * shape.layers
        self.moved_bytes = 4 * (self.compressions[0].keep + window) * self._entry_bytes
        self.select_bytes = 6 * 4 * batch * candidates * shape.layers

    def softmax_bytes(self, rule: ScoreRule) -> int:
        """Of the keys that the rule's softmax is over."""
        c = self.compressions[0]
        return (c.end if rule.visible else c.candidates) * self._entry_bytes

    def score_bytes(self, rule: ScoreRule) -> int:
        """Those once, and of each candidate the key and, if its norm counts, the value."""
        each = 2 if rule.value_power else 1
        return self.softmax_bytes(rule) + each * self.compressions[0].candidates * self._entry_bytes


def parts(scene: Scene) -> Iterator[Part]:
    """All that needs no other package."""
    for name in scene.policies:
        yield from _parts(scene, POLICIES[name], RULES[name], first=name == scene.policies[0])


def _parts(scene: Scene, policy: Policy, rule: ScoreRule, first: bool) -> Iterator[Part]:
    from sglang_rpc.backends.choose import make_backend
    from sglang_rpc.memory.triton_compaction import SliceTable, move_kept
    from sglang_rpc.scoring.key_table import KeyTable, ValueTable
    from sglang_rpc.scoring.triton_scores import candidate_scores, log_sum_exp
    from sglang_rpc.scoring.triton_select import select

    config, rows = replace(scene.config, policy=policy.name), scene.req_to_token
    batch = CompressionBatch.of(scene.compressions, rows.device)
    given = (KeyTable(scene.layers), scene.ring.buffer, rows, batch)
    values = ValueTable.of(scene.layers) if rule.value_power else None
    selector, pooling = policy.selector_in(config), policy.pooling_in(config)

    def lse() -> torch.Tensor:
        return log_sum_exp(*given, selector=selector, visible=rule.visible)

    def score() -> torch.Tensor:
        return candidate_scores(*given, selector=selector, group=False, rule=rule, values=values)

    scores = score()
    yield Part(policy.name, "lse", scene.softmax_bytes(rule), lse)
    yield Part(policy.name, "scores", scene.score_bytes(rule), score)
    yield Part(policy.name, "select", scene.select_bytes, lambda: select(scores, batch, *pooling))
    if first:
        slices, kept = SliceTable(scene.layers), select(scores, batch, *pooling)
        yield Part(policy.name, "move", scene.moved_bytes, lambda: move_kept(slices, rows, batch, kept))
    all_bytes = scene.score_bytes(rule) + scene.select_bytes + scene.moved_bytes
    for name, scoring in (("total", "triton"), ("reference", "reference")):
        if first or name == "total":
            backend = make_backend(replace(config, scoring=scoring), scene.layers, scene.ring, rows, None)
            yield Part(policy.name, name, all_bytes, functools.partial(backend.compress, scene.compressions))


def flashinfer_parts(scene: Scene) -> Iterator[Part]:
    """As `parts`. What is timed may raise anything: FlashInfer is imported, and compiles, when it is first called."""

    @functools.cache
    def lse() -> Callable[..., object]:
        from sglang_rpc.scoring.flashinfer_lse import FlashInferLSE

        return FlashInferLSE(scene.layers, scene.ring.buffer)

    for name in scene.policies:
        selector, visible = POLICIES[name].selector_in(scene.config), RULES[name].visible

        def work(selector: str = selector, visible: bool = visible) -> object:
            return lse()(scene.compressions, scene.req_to_token, selector=selector, visible=visible)

        yield Part(name, "flashinfer", 2 * scene.softmax_bytes(RULES[name]), work)
