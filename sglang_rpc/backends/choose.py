"""Which implementation scores, selects and moves."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from sglang_rpc.backends.move_backend import move_backend
from sglang_rpc.backends.reference_backend import ReferenceBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.memory.query_ring import QueryRing
from sglang_rpc.policy.table import POLICIES
from sglang_rpc.types import Compression, KVLayer, Observer

logger = logging.getLogger(__name__)

#: Bytes of device memory that the kernels may take for one part of a batch. Batches that need more are cut.
SCRATCH_BYTES = 2**27

#: Sums a float32 tensor over tensor-parallel ranks.
Reduce = Callable[[torch.Tensor], torch.Tensor]


class Backend(Protocol):
    name: str  #: as `--rpc-scoring` calls it
    observer: Observer | None  #: is shown what each compression keeps

    def compress(self, compressions: Sequence[Compression]) -> None:
        """Score, select and move, on the current stream."""


def make_backend(
    config: RPCConfig,
    layers: Sequence[KVLayer],
    ring: QueryRing,
    req_to_token: torch.Tensor,
    reduce: Reduce | None,
) -> Backend:
    """`config.scoring`, or with `auto` Triton where it can run.

    Raises ConfigError if what is asked for cannot: kernels need a GPU (or the interpreter), and layers of one shape.
    """
    policy = POLICIES.get(config.policy)
    as_rpc = None if policy is None else policy.as_rpc
    if as_rpc is None:
        if config.scoring not in ("auto", "reference"):
            raise ConfigError(f"scoring '{config.scoring}' is not made for the policy '{config.policy}'; use 'auto'")
        if policy is None:
            return move_backend(config.scoring, layers, req_to_token)
        return ReferenceBackend(config, layers, ring, req_to_token, reduce)
    wanted = _best(req_to_token.device) if config.scoring == "auto" else config.scoring
    if wanted == "reference":
        return ReferenceBackend(config, layers, ring, req_to_token, reduce)
    for package in {"triton", wanted}:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"scoring '{wanted}' needs the package {package}; install it, or use 'auto'")
    from sglang_rpc.backends import self_check
    from sglang_rpc.backends import triton_backend as triton_path
    from sglang_rpc.scoring import triton_scores

    if not triton_scores.runs_on(req_to_token.device):
        raise ConfigError(f"scoring '{wanted}' needs a GPU, and the KV cache is on {req_to_token.device}; use 'auto'")
    asked, config = config, as_rpc(config)
    try:
        wrong = self_check.failure(config, layers, ring)
        if wrong is None:
            return triton_path.TritonBackend(config, layers, ring, req_to_token, reduce)
    except ValueError as error:
        wrong = str(error)
    except Exception as error:  # whatever keeps kernels from being compiled here need not keep the server from starting
        wrong = f"{type(error).__name__}: {error}"
    if asked.scoring == wanted:
        raise ConfigError(f"scoring '{wanted}' cannot serve this model: {wrong}; use --rpc-scoring reference")
    logger.warning("RPC compresses with PyTorch, which is slower, not with its kernels: %s", wrong)
    return ReferenceBackend(asked, layers, ring, req_to_token, reduce)


def _best(device: torch.device) -> str:
    return "triton" if device.type == "cuda" and importlib.util.find_spec("triton") is not None else "reference"
