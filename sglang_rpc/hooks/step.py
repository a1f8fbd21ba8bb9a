"""What one forward step carries for RPC, on SGLang's forward batch."""

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sglang_rpc.contract.sglang.batches import ForwardBatch


@dataclass(frozen=True)
class SingleRows:
    """Rows of one token in an extend step that decode: those of a mixed step, and restored requests."""

    tokens: torch.Tensor  #: int64 [n]: index of each row's token in the step
    rows: torch.Tensor  #: int64 [n]: index of each row in the batch
    where: tuple[torch.Tensor, torch.Tensor] | None  #: where their queries go in the ring; None if nothing is recorded


@cache
def carrying(batch_class: type[ForwardBatch]) -> type[ForwardBatch]:
    """`batch_class` with two fields: `rpc`, a SingleRows or None; and `rpc_lengths`, of all rows of an extend step, as
    SGLang's `seq_lens` would be without compression, or None where they are.

    Fields, for SGLang makes copies of a batch with `dataclasses.replace`, which drops other attributes.
    """
    fields = [("rpc", SingleRows | None), ("rpc_lengths", torch.Tensor | None)]
    with_default = [(name, kind, dataclasses.field(default=None)) for name, kind in fields]
    return dataclasses.make_dataclass(batch_class.__name__, with_default, bases=(batch_class,))


def decodes(forward_batch: ForwardBatch) -> bool:
    """Whether each row of the step decodes a token.

    With DP attention such a step may be labelled an extend as it is run, as the steps of its peers are.
    """
    before = forward_batch._original_forward_mode
    return (forward_batch.forward_mode if before is None else before).is_decode()


def single_rows(forward_batch: ForwardBatch) -> SingleRows | None:
    """The step's single rows; None if it has none, or was made for the capture of a graph."""
    rows: SingleRows | None = getattr(forward_batch, "rpc", None)
    return rows


def logical_lengths(forward_batch: ForwardBatch) -> torch.Tensor | None:
    """[rows]: logical lengths of an extend step; None if they are its `seq_lens`."""
    lengths: torch.Tensor | None = getattr(forward_batch, "rpc_lengths", None)
    return lengths


def attention_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ForwardBatch, torch.Tensor]:
    """The forward batch and the queries that RadixAttention.forward is called with, by name or in its order."""
    forward_batch = kwargs["forward_batch"] if "forward_batch" in kwargs else args[3]
    return forward_batch, kwargs["q"] if "q" in kwargs else args[0]
