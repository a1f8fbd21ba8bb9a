"""Which implementation scores, selects and moves."""

import importlib.util
import logging
from collections.abc import Sequence

import torch

from sglang_rpc.backends import self_check
from sglang_rpc.backends.base import Backend, Reduce
from sglang_rpc.backends.policy_scores import try_policy
from sglang_rpc.backends.reference_backend import ReferenceBackend
from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError
from sglang_rpc.memory.queries import Queries
from sglang_rpc.policy.base import Policy
from sglang_rpc.policy.resolve import find_policy
from sglang_rpc.types import KVLayer, LayersByKind

logger = logging.getLogger(__name__)

#: Of the errors when `scoring` asks for what cannot be.
CODE = "config.scoring"


def make_backend(
    config: RPCConfig, layers: Sequence[KVLayer], ring: Queries, req_to_token: torch.Tensor, reduce: Reduce | None
) -> Backend:
    """`config.scoring`, or with `auto` Triton where it can run.

    Raises ConfigError if what is asked for cannot: kernels need a GPU (or the interpreter), and layers of one shape; or
    if the policy's scores of a made-up layer cannot be used.
    """
    policy = find_policy(config.policy)
    given = (policy, layers, ring, req_to_token, reduce)
    if (policy is None or policy.rule is None) and config.scoring not in ("auto", "reference"):
        sentence = f"scoring '{config.scoring}' is not available under policy '{config.policy}'; use 'auto'"
        raise ConfigError(sentence, CODE)
    if policy is not None and policy.rule is None:
        try_policy(policy, config, LayersByKind.of(layers).full[0], ring.buffer[0])
        return ReferenceBackend(config, *given)
    wanted = _best(req_to_token.device) if config.scoring == "auto" else config.scoring
    if wanted == "reference":
        return ReferenceBackend(config, *given)
    kernels, reason = _kernels(config, wanted, given)
    if kernels is not None:
        return kernels
    if config.scoring == wanted:
        raise ConfigError(f"scoring '{wanted}' cannot serve this model: {reason}; use --rpc-scoring reference", CODE)
    logger.warning("RPC: Triton kernels are unavailable (%s); using the slower PyTorch implementation", reason)
    return ReferenceBackend(config, *given)


def _kernels(
    config: RPCConfig,
    wanted: str,
    given: tuple[Policy | None, Sequence[KVLayer], Queries, torch.Tensor, Reduce | None],
) -> tuple[Backend | None, str]:
    """The kernels if they pass their trial here; else None, and the reason as a part of a sentence.

    Raises ConfigError if there is nothing to try: a package or a GPU is missing.
    """
    for package in {"triton", wanted}:
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"scoring '{wanted}' needs the package {package}; install it, or use 'auto'", CODE)
    # Triton is imported only where it is wanted.
    from sglang_rpc.backends.triton_backend import TritonBackend
    from sglang_rpc.scoring import key_table

    _policy, layers, ring, req_to_token, _reduce = given
    device = req_to_token.device
    if not key_table.runs_on(device):
        raise ConfigError(f"scoring '{wanted}' needs a GPU, and the KV cache is on {device}; use 'auto'", CODE)
    try:
        reason = self_check.failure(config, layers, ring, expected=ReferenceBackend, actual=TritonBackend)
        if reason is None:
            return TritonBackend(config, *given), ""
    except ValueError as error:
        reason = str(error)
    except Exception as error:  # whatever keeps kernels from being compiled here need not keep the server from starting
        reason = f"{type(error).__name__}: {error}"
    return None, reason


def _best(device: torch.device) -> str:
    return "triton" if device.type == "cuda" and importlib.util.find_spec("triton") is not None else "reference"
