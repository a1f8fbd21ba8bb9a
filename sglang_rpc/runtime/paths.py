"""Which implementation scores, selects and moves."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.runtime.reference_path import ReferencePath
from sglang_rpc.types import Compression, KVLayer

logger = logging.getLogger(__name__)

#: Sums a float32 tensor over tensor-parallel ranks.
Reduce = Callable[[torch.Tensor], torch.Tensor]


class CompressionPath(Protocol):
    name: str  #: as `--rpc-scoring` calls it

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream."""


def make_path(
    config: RPCConfig,
    layers: Sequence[KVLayer],
    ring: QueryRing,
    req_to_token: torch.Tensor,
    reduce: Reduce | None,
) -> CompressionPath:
    """`config.scoring`, or with `auto` Triton where it can run.

    Raises ConfigError if what is asked for cannot: kernels need a GPU (or the interpreter), and layers of one shape.
    """
    wanted = config.scoring
    if wanted == "auto":
        wanted = "triton" if req_to_token.is_cuda and importlib.util.find_spec("triton") else "reference"
    if wanted == "reference":
        return ReferencePath(config, layers, ring, req_to_token, reduce)
    for package in {"triton", wanted}:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"scoring '{wanted}' needs the package {package}; install it, or use 'auto'")
    from sglang_rpc.runtime.triton_path import TritonPath
    from sglang_rpc.scoring import triton_scores

    if not triton_scores.runs_on(req_to_token.device):
        raise ConfigError(f"scoring '{wanted}' needs a GPU, and the KV cache is on {req_to_token.device}; use 'auto'")
    try:
        return TritonPath(config, layers, ring, req_to_token, reduce)
    except ValueError as error:
        if config.scoring == wanted:
            raise ConfigError(f"scoring '{wanted}' cannot serve this model: {error}; use 'auto'") from error
        logger.warning("RPC scores with PyTorch, which is slower: %s", error)
        return ReferencePath(config, layers, ring, req_to_token, reduce)
