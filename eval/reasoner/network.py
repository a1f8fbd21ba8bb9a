"""The network that is trained: a small Qwen2, or a Gemma 2, whose first heads look back from the first step on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedConfig, Qwen2Config, Qwen2ForCausalLM

from eval.reasoner.words import BOS, EOS, PAD

ROTATIONS = 10  #: frequencies of a head that look-back heads use; the fastest ones tell neighbours apart
SHARPNESS = 7.0
THETA = 100_000.0
BRANCH = 0.4  #: what attention and MLP add to begin with, beside words of 0.5
FINAL = 0.2  #: weights of the last norm


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


Network = Qwen2ForCausalLM | Gemma2ForCausalLM


def build(size: Size, words: int, meanings: Sequence[Alike], window: int | None = None) -> Network:
    """A Qwen2; with a `window`, a Gemma 2, of which layers 0, 2, 4 ... see that many tokens, their own included."""
    model = _qwen2(size, words) if window is None else _gemma2(size, words, window)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.normal_(std=0.5)
            elif weight.ndim == 2:
                out = "o_proj" in name or "down_proj" in name
                weight.normal_(std=(BRANCH if out else 1.0) * weight.shape[1] ** -0.5)
            elif name.endswith("bias"):
                weight.zero_()
        _scale_norms(model)
        for meaning in meanings:
            make_alike(model.model.embed_tokens.weight, meaning)
        look_back(model.model.layers[0].self_attn, size)
    return model


def _qwen2(size: Size, words: int) -> Qwen2ForCausalLM:
    rope = {"rope_theta": THETA, "rope_type": "default"}
    return Qwen2ForCausalLM(_configure(Qwen2Config, size, words, rope_parameters=rope, use_sliding_window=False))


def _gemma2(size: Size, words: int, window: int) -> Gemma2ForCausalLM:
    """With the biases that look-back heads need, and without caps on logits."""
    config = _configure(
        Gemma2Config,
        size,
        words,
        rope_parameters={"rope_theta": THETA, "rope_type": "default"},
        attention_bias=True,
        sliding_window=window,
        query_pre_attn_scalar=size.head_dim,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        hidden_act="gelu_pytorch_tanh",  # by which name SGLang reads it
    )
    return Gemma2ForCausalLM(config)


def _configure(kind: type[PreTrainedConfig], size: Size, words: int, **own: object) -> PreTrainedConfig:
    return kind(
        vocab_size=words,
        hidden_size=size.hidden,
        intermediate_size=size.wide,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        **own,
    )


def _scale_norms(model: Network) -> None:
    """Let both begin with logits of one size, and with branches of one size beside the words."""
    if isinstance(model, Qwen2ForCausalLM):
        model.model.norm.weight.fill_(FINAL)
        return
    # Gemma 2 multiplies by 1 + weight, embeddings by sqrt(hidden), and norms what each branch adds.
    model.model.norm.weight.fill_(FINAL - 1)
    for layer in model.model.layers:
        for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
            norm.weight.fill_(BRANCH * model.config.hidden_size**0.5 - 1)


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
