"""Plain values that cross layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sglang_rpc.errors import ConfigError

#: A length that is never reached.
NEVER = 2**62


@dataclass(frozen=True)
class ScoreRule:
    """How the attention of the newest queries becomes one score of each candidate.

        score_j = sum over KV heads of |v_j|^value_power * over its query heads, of over the queries, of a_ij

    with a_ij the softmax weight that query i gives candidate j. Every rule is a sum over KV heads, so that
    tensor-parallel ranks can add theirs. Never negative.

    Raises ConfigError if a field is none of its choices.
    """

    softmax: str = "candidates"  #: what a query's weights add up to 1 over: candidates, or all entries visible to it
    over_queries: str = "sum"  #: sum, max, or squares: the sum of squared weights
    over_heads: str = "sum"  #: of the query heads of one KV head: sum, max
    value_power: int = 0  #: of the value's Euclidean norm: 0, 1, 2

    def __post_init__(self) -> None:
        for name, allowed in _RULE.items():
            value = getattr(self, name)
            if value not in allowed:
                sentence = f"{name} of a score rule must be one of {', '.join(map(str, allowed))}, got {value!r}"
                raise ConfigError(sentence, "config.policy")

    @property
    def visible(self) -> bool:
        """Whether the softmax is over all that a query sees: prompt, candidates and window, up to its own token."""
        return self.softmax == "visible"

    @property
    def one_sum(self) -> bool:
        """Whether weights are added up over queries and heads alike."""
        return self.over_queries == self.over_heads == "sum"


#: The choices of each field.
_RULE: dict[str, tuple[str | int, ...]] = {
    "softmax": ("candidates", "visible"),
    "over_queries": ("sum", "max", "squares"),
    "over_heads": ("sum", "max"),
    "value_power": (0, 1, 2),
}


@dataclass(frozen=True)
class KVLayer:
    """One attention layer's cache on this rank."""

    keys: torch.Tensor  #: [pool_slots, kv_heads, head_dim], storage dtype
    values: torch.Tensor  #: [pool_slots, kv_heads, v_head_dim], storage dtype; of MLA's latents a view of `keys`
    dtype: torch.dtype  #: what the storage dtype stands for (FP8 is stored as bytes)
    scaling: float  #: softmax scale, times the scale of quantised keys
    logit_cap: float = 0.0  #: soft cap on attention logits; 0 for none
    #: float32 [pool_slots, kv_heads, 1]: attention got so far, if a policy asks.
    accumulated: torch.Tensor | None = None
    window: int = 0  #: in a sliding-window layer, entries before its own that a token sees; 0: full attention
    earlier: int = 0  #: scored layers of the model on earlier pipeline stages

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """All that belongs to a slot, and moves with it: keys; values, unless they are a part of the keys; and what has
        been accumulated."""
        kv = (self.keys,) if self.latent else (self.keys, self.values)
        return kv if self.accumulated is None else (*kv, self.accumulated)

    @property
    def latent(self) -> bool:
        """Whether an entry is key and value in one, of all heads (MLA)."""
        offset = self.values.data_ptr() - self.keys.data_ptr()
        entry_bytes = self.keys.shape[2] * self.keys.element_size()
        return self.keys.stride() == self.values.stride() and 0 <= offset < entry_bytes


@dataclass(frozen=True)
class LayersByKind:
    """A model's layers on this rank. Full attention is recorded and scored, and each layer keeps candidates of its own
    choice. A sliding-window layer keeps as many, the newest."""

    full: tuple[KVLayer, ...]
    windows: tuple[KVLayer, ...]

    @classmethod
    def of(cls, layers: Sequence[KVLayer]) -> LayersByKind:
        """`layers` by kind, each in their order."""
        return cls(
            tuple(layer for layer in layers if not layer.window), tuple(layer for layer in layers if layer.window)
        )

    @property
    def reach(self) -> int:
        """Entries before its own that a token of any sliding-window layer sees at most; 0 if there is none."""
        return max((layer.window for layer in self.windows), default=0)


@dataclass(frozen=True)
class Compression:
    """One compression of one request, decided on the host. Counts are KV entries, positions are row positions.

    The defaults are those of a made-up request without a prompt, as start-up checks use it.
    """

    row: int  #: the request's line in req_to_token
    generated: int  #: logical entries after the prompt
    window: int  #: R
    begin: int  #: row position of the first candidate
    end: int  #: physical length of the row, prompt included
    keep: int  #: candidates that survive
    prompt_length: int = 0  #: logical
    offset: int = 0  #: entries that the row holds less of its prompt, part of which was taken over compressed
    slot: int = 0  #: its query slot; 0 is the dummy slot
    event: int = 1  #: n, which compression of the request this is
    late: bool = False  #: after its due date
    early: bool = False  #: before its due date, to spare a retraction
    query_before: bool = False  #: whether the query of the entry before the window is recorded too
    seed: int = 0  #: for a policy that draws at random: equal for equal texts

    @property
    def candidates(self) -> int:
        """Entries that compete."""
        return self.end - self.begin - self.window

    @property
    def new_end(self) -> int:
        """Physical length of the row afterwards."""
        return self.begin + self.keep + self.window

    @property
    def evicted(self) -> int:
        """Entries that the row loses."""
        return self.end - self.new_end


@dataclass(frozen=True)
class CompressionBatch:
    """Compressions that are applied together, as kernels read them: int32 [B or more] each, on the device."""

    size: int  #: B
    most_candidates: int
    most_kept: int
    longest: int  #: physical length of the longest row
    rows: torch.Tensor
    slots: torch.Tensor  #: query slots
    begins: torch.Tensor  #: row position of the first candidate
    candidates: torch.Tensor
    keeps: torch.Tensor  #: candidates that survive
    windows: torch.Tensor
    lengths: torch.Tensor  #: logical, prompt included: one more than the newest query's position

    @staticmethod
    def of(compressions: Sequence[Compression], device: torch.device) -> CompressionBatch:
        """One small copy to the device, which the host does not wait for."""
        each = [  # in the order of the fields
            (c.row, c.slot, c.begin, c.candidates, c.keep, c.window, c.prompt_length + c.generated)
            for c in compressions
        ]
        # Each array begins on 16 bytes whatever B is: Triton compiles a kernel anew for another alignment.
        padded = [*each, *[(0,) * len(each[0])] * (-len(each) % 4)]
        columns = list(zip(*padded, strict=True))
        numbers = torch.tensor(columns, dtype=torch.int32, pin_memory=device.type == "cuda")
        return CompressionBatch(
            len(compressions),
            max(c.candidates for c in compressions),
            max(c.keep for c in compressions),
            max(c.end for c in compressions),
            *numbers.to(device, non_blocking=True).unbind(0),
        )


#: Is shown compressions that are applied together, and int [layers, B, 1 or kv_heads, most_kept] on the device: the
#: candidates that stay, ascending. What stands after a compression's own `keep` is not set.
Observer = Callable[[Sequence[Compression], torch.Tensor], None]
