"""The network that is trained: a small Qwen2 whose first heads look back from the first step on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from eval.reasoner.words import BOS, EOS, PAD

ROTATIONS = 10  #: frequencies of a head that look-back heads use; the fastest ones tell neighbours apart
SHARPNESS = 7.0
THETA = 100_000.0


@dataclass(frozen=True)
class Size:
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    wide: int = 384
    back: tuple[int, ...] = (1, 2, 3)  #: tokens that the first heads of layer 0 look back, to begin with


@dataclass(frozen=True)
class Alike:
    """Words of one meaning: `count` words from each of `starts` on mean the same, one by one."""

    starts: Sequence[int]
    count: int


def build(size: Size, words: int, meanings: Sequence[Alike]) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=words,
        hidden_size=size.hidden,
        intermediate_size=size.wide,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        use_sliding_window=False,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.normal_(std=0.5)
            elif weight.ndim == 2:
                out = "o_proj" in name or "down_proj" in name
                weight.normal_(std=(0.4 if out else 1.0) * weight.shape[1] ** -0.5)
            elif name.endswith("bias"):
                weight.zero_()
        model.model.norm.weight.fill_(0.2)
        for meaning in meanings:
            make_alike(model.model.embed_tokens.weight, meaning)
        look_back(model.model.layers[0].self_attn, size)
    return model


def make_alike(embedding: torch.Tensor, meaning: Alike) -> None:
    """Make words of one meaning begin alike: a key and the question for it, a number and an increment of it.

    Looking one key up, and adding one pair of numbers, then teaches more than itself.
    """
    shared = sum(embedding[start : start + meaning.count] for start in meaning.starts)
    shared = shared * (2 / len(meaning.starts)) ** 0.5
    for start in meaning.starts:
        own = torch.randn(1, embedding.shape[1]) * 0.3  # that it is a key, or a question
        embedding[start : start + meaning.count] = 0.2 * embedding[start : start + meaning.count] + 0.6 * shared + own


def look_back(attention: torch.nn.Module, size: Size) -> None:
    """Make the first heads attend `size.back` tokens back, whatever the tokens.

    With a constant key u, rotated by its position j, and a constant query u rotated back by d and then by its position
    i, the logit is u . R(j - i + d) u, largest at j = i - d.
    """
    dim, half = size.head_dim, size.head_dim // 2
    used = min(ROTATIONS, half)
    angles = THETA ** (-torch.arange(0, dim, 2).float() / dim)[:used]
    group = size.heads // size.kv_heads
    for head, back in enumerate(size.back):
        query, key = head * dim, head // group * dim
        attention.q_proj.weight[query : query + dim] *= 0.1
        attention.k_proj.weight[key : key + dim] *= 0.1
        attention.k_proj.bias[key : key + used] = SHARPNESS
        attention.q_proj.bias[query : query + used] = SHARPNESS * (back * angles).cos()
        attention.q_proj.bias[query + half : query + half + used] = -SHARPNESS * (back * angles).sin()
