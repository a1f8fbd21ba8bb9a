"""A small Qwen2.5-VL with random weights, and the judge of what a server gave with it: a transformers loop that keeps
all KV and masks, layer by layer, what was evicted. It shares no code with the package.

Its rope has three axes (mrope): tokens of an image differ in time, height and width, text after it counts on from the
largest, so that positions are smaller than the number of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.engine.oracle import Rule

TOKENS = ("<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
#: The ids of `TOKENS`, after the 256 bytes.
END, VISION_START, VISION_END, IMAGE = 257, 258, 259, 260
SIDE = 28  #: pixels of an image that make one token


def write_model(path: Path) -> Path:
    """Weights large enough that attention is sharp; a tokenizer of bytes, which SGLang needs to take images."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers import Qwen2VLImageProcessor as Processor

    byte = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=byte, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(list(TOKENS))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=TOKENS[1], pad_token=TOKENS[0]).save_pretrained(path)
    size = {"shortest_edge": 4 * SIDE**2, "longest_edge": 1000 * SIDE**2}
    Processor(patch_size=SIDE // 2, temporal_patch_size=2, merge_size=2, size=size).save_pretrained(path)
    model = Qwen2_5_VLForConditionalGeneration(_config(Qwen2_5_VLConfig)).float()
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.fill_(1) if "norm" in name or "ln_q" in name else weight.normal_(0, 0.1, generator=made)
            else:
                gain = 4 if "lm_head" in name else 3 if "q_proj" in name else 1
                into = 1 if "embed_tokens" in name else weight[0].numel()
                weight.normal_(0, gain * into**-0.5, generator=made)
    model.save_pretrained(path)
    return path


def _config(kind: Any) -> Any:
    return kind(
        text_config=dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=264,
            max_position_embeddings=2048,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 3, 3]),
            bos_token_id=None,
            tie_word_embeddings=False,
            eos_token_id=END,
        ),
        vision_config=dict(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=64,
            patch_size=SIDE // 2,
            fullatt_block_indexes=[1],
            window_size=4 * SIDE // 2,
        ),
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        image_token_id=IMAGE,
        video_token_id=IMAGE + 1,
        tie_word_embeddings=False,
    )


def picture(high: int, wide: int, seed: int) -> Image.Image:
    """Noise that becomes `high * wide` tokens."""
    pixels = np.random.default_rng(seed).integers(0, 256, (high * SIDE, wide * SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class MaskedLoop:
    """Judges tokens, as `Oracle` does: how far each token's logit lies below the largest, given all before it."""

    def __init__(self, path: Path):
        from transformers import AutoImageProcessor, Qwen2_5_VLForConditionalGeneration
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.images = AutoImageProcessor.from_pretrained(path)
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, attn_implementation="eager").eval()
        self.layers = json.loads((path / "config.json").read_text())["text_config"]["num_hidden_layers"]
        ALL_ATTENTION_FUNCTIONS.register("masked", self._attend)
        self.model.model.language_model.config._attn_implementation = "masked"

    def _attend(self, module: Any, q: Any, k: Any, v: Any, _mask: Any, scaling: float, **_: Any) -> tuple[Any, None]:
        """Causal attention without the evicted: q [1, heads, new, dim], k and v [1, KV heads, all, dim]."""
        layer, new, all_ = module.layer_idx, q.shape[2], k.shape[2]
        self.queries[layer] = torch.cat([self.queries[layer], q[0].transpose(0, 1)])[-64:]
        self.keys[layer], self.scaling = k[0], scaling
        repeat = q.shape[1] // k.shape[1]
        logits = q @ k.repeat_interleave(repeat, 1).transpose(2, 3) * scaling
        hidden = torch.ones(new, all_, dtype=torch.bool).triu(1 + all_ - new)
        hidden[:, : len(self.evicted[layer])] |= self.evicted[layer]
        weights = logits.masked_fill(hidden, float("-inf")).softmax(-1)
        return (weights @ v.repeat_interleave(repeat, 1)).transpose(1, 2), None

    def _compress(self, rule: Rule, prompt: int, keep: int) -> float:
        """One compression, as the goldens' README defines it. Returns the smallest relative score gap at the cut."""
        closest = float("inf")
        for layer in range(self.layers):
            keys, queries = self.keys[layer], self.queries[layer][-rule.window :]
            queries = torch.cat([queries[1:], queries[-1:]])
            evicted = torch.zeros(keys.shape[1], dtype=torch.bool)
            evicted[: len(self.evicted[layer])] = self.evicted[layer]
            places = torch.arange(prompt, keys.shape[1] - rule.window)
            places = places[~evicted[places]]
            seen = keys[:, places].repeat_interleave(queries.shape[1] // len(keys), 0)
            attention = (torch.einsum("rhd,hnd->hrn", queries, seen) * self.scaling).softmax(-1)
            scores = torch.nn.functional.avg_pool1d(attention.sum(1).mean(0)[None, None], 7, 1, 3)[0, 0]
            ranked = scores.sort(descending=True)
            cut = ranked.values[keep - 1] - ranked.values[keep]
            closest = min(closest, float(cut / ranked.values[keep - 1]))
            evicted[places[ranked.indices[keep:]]] = True
            self.evicted[layer] = evicted
        return closest

    def expanded(self, prompt: list[int], image: Image.Image | None) -> list[int]:
        """`prompt` with as many image tokens as the image has."""
        if image is None:
            return prompt
        tokens = image.width * image.height // SIDE**2
        return [each for token in prompt for each in [token] * (tokens if token == IMAGE else 1)]

    @torch.inference_mode()
    def gaps(
        self, prompt: list[int], output: Sequence[int], rule: Rule | None, image: Image.Image | None = None
    ) -> tuple[list[float], float]:
        """As `Oracle.gaps`; `prompt` has one image token for the image, if there is one."""
        from transformers import DynamicCache

        self.evicted = [torch.zeros(0, dtype=torch.bool)] * self.layers
        self.queries = [torch.zeros(0, 4, 16)] * self.layers
        self.keys = [torch.zeros(0)] * self.layers
        ids = torch.tensor([self.expanded(prompt, image)])
        pixels: dict[str, Any] = {} if image is None else dict(self.images(images=[image], return_tensors="pt"))
        positions, after = torch.arange(ids.shape[1]).expand(3, 1, -1), ids.shape[1]
        if image is not None:
            kinds = (ids == IMAGE).int()
            positions, _ = self.model.model.get_rope_index(ids, kinds, image_grid_thw=pixels["image_grid_thw"])
            after = int(positions.max()) + 1
        cache = DynamicCache()
        last = self.model(ids, past_key_values=cache, position_ids=positions, **pixels).logits[0]
        gaps, closest = [], float("inf")
        dates = [] if rule is None else range(rule.window + rule.interval, len(output), rule.interval)
        for number, (begin, end) in enumerate(pairwise([0, *dates, len(output)]), 1):
            tokens = torch.tensor(output[begin:end])
            positions = torch.arange(after + begin, after + end).expand(3, 1, -1)
            logits = self.model(tokens[None], past_key_values=cache, position_ids=positions).logits[0]
            before = torch.cat([last[-1:], logits[:-1]])  # what each of the tokens was chosen from
            gaps += (before.max(-1).values - before.gather(1, tokens[:, None])[:, 0]).tolist()
            last = logits
            if rule is not None and end in dates:
                closest = min(closest, self._compress(rule, ids.shape[1], number * int(rule.interval / rule.ratio)))
        return gaps, closest
