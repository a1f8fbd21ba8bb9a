"""Write a trained reasoner as a directory that SGLang and transformers load."""

from __future__ import annotations

import argparse
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen2ForCausalLM

from eval.reasoner.network import Network
from eval.reasoner.words import EOS, FRAME, Vocabulary

#: The user's message is the problem without its frame.
CHAT_TEMPLATE = "<bos> {{ messages[-1]['content'] }} <think>"


def as_llama(model: Qwen2ForCausalLM) -> LlamaForCausalLM:
    """The same function: a Llama with biases, those of the output projection zero.

    transformers gives whatever calls itself Qwen2 Qwen2's own tokenizer, and that would take words apart.
    """
    shared = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    )
    others = ("vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_parameters", "tie_word_embeddings")
    tokens = ("bos_token_id", "eos_token_id", "pad_token_id")
    copied = {name: getattr(model.config, name) for name in (*shared, *others, *tokens)}
    llama = LlamaForCausalLM(LlamaConfig(**copied, attention_bias=True)).float().eval()
    weights = dict(model.state_dict())
    for layer in range(llama.config.num_hidden_layers):
        weights[f"model.layers.{layer}.self_attn.o_proj.bias"] = torch.zeros(llama.config.hidden_size)
    llama.load_state_dict(weights)
    return llama


def save(model: Network, words: Vocabulary, options: argparse.Namespace, reached: dict[str, Any]) -> None:
    """Everything of `options.out`: the model, its tokenizer, and `training.json`, which says how it was made."""
    out: Path = options.out
    saved = as_llama(model) if isinstance(model, Qwen2ForCausalLM) else model
    saved.generation_config.eos_token_id = EOS
    saved.save_pretrained(out)
    tokenizer(words).save_pretrained(out)
    made = {
        "arguments": {
            name: getattr(options, name)
            for name in (
                "task",
                "window",
                "layers",
                "hidden",
                "minutes",
                "seed",
                "threads",
                "device",
                "tokens",
                "problems",
            )
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        **reached,
    }
    (out / "training.json").write_text(json.dumps(made, indent=1) + "\n")


def tokenizer(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """One word, one token."""
    words = Tokenizer(models.WordLevel(dict(vocabulary.ids), unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in FRAME[:3]])
    # Not special: a reasoning parser must see them in the text.
    words.add_tokens([AddedToken(token, special=False, normalized=False) for token in FRAME[3:]])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped
