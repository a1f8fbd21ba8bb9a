"""A model whose queries can be said beforehand, exactly: whole numbers, and attention that returns its queries."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.radix_attention import RadixAttention

VOCAB, HIDDEN, LAYERS, HEADS, DIM = 23, 8, 2, 2, 8
#: Of a latent model's queries: the absorbed part, and the roped one.
RANK, ROPE = 5, 3


class EchoAttention(AttentionBackend):
    """Attention that returns the queries, and needs nothing prepared."""

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None: ...

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None: ...

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        return 1

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, **kwargs):
        return q


class SmallModel(torch.nn.Module):
    """Layers of attention, and nothing between them. A latent model hands its queries over in two parts."""

    shared_experts_config = None

    def __init__(self, latent: bool):
        super().__init__()
        random = torch.Generator().manual_seed(3)

        def whole(*shape: int) -> torch.Tensor:
            return torch.randint(-1, 2, shape, generator=random).float()

        self.latent = latent
        self.head_dim = RANK + ROPE if latent else DIM  #: of the queries that attention is given
        self.embedding = whole(VOCAB, HIDDEN)
        self.qkv = [whole(HIDDEN, 3 * HEADS * DIM) for _ in range(LAYERS)]
        self.absorbing = whole(HEADS, DIM - ROPE, RANK)
        self.out = [whole(HEADS * (RANK if latent else DIM), HIDDEN) for _ in range(LAYERS)]
        self.attention = torch.nn.ModuleList(
            RadixAttention(HEADS, DIM, 1.0, num_kv_heads=HEADS, layer_id=index) for index in range(LAYERS)
        )

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: Any) -> LogitsProcessorOutput:
        """Logits [n, VOCAB]."""
        x = self.embedding[input_ids]
        for index, attention in enumerate(self.attention):
            queries = self._queries(index, x, positions)
            parts = {"q_rope": queries[1]} if self.latent else {}
            x = x + attention(queries[0], None, None, forward_batch, **parts).reshape(len(x), -1) @ self.out[index]
        return LogitsProcessorOutput(next_token_logits=x @ self.embedding.T)

    def expected(self, token: int, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The queries of a token at a logical position, [LAYERS, HEADS, head_dim], and its logits."""
        x, made = self.embedding[[token]], []
        for index in range(LAYERS):
            queries = self._queries(index, x, torch.tensor([position]))
            made.append(torch.cat([part.view(HEADS, -1) for part in queries], -1))
            x = x + queries[0].reshape(1, -1) @ self.out[index]
        return torch.stack(made), (x @ self.embedding.T)[0]

    def _queries(self, index: int, x: torch.Tensor, positions: torch.Tensor) -> list[torch.Tensor]:
        # Laid out as SGLang's models leave them: a part of a wider tensor; absorbed, heads outermost.
        queries = (x @ self.qkv[index]).split(HEADS * DIM, -1)[0] + positions[:, None]
        if not self.latent:
            return [queries]
        plain, roped = queries.view(-1, HEADS, DIM).split([DIM - ROPE, ROPE], -1)
        return [torch.bmm(plain.transpose(0, 1), self.absorbing).transpose(0, 1), roped]
