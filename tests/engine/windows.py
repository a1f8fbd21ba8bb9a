"""Small models with sliding windows, one for each family, and their judge: transformers' own code, which keeps all KV.

Of what a compression evicts the judge knows only that layers with full attention see it no more. Its window layers see
what their window says, over tokens. What a server gave is right if each token has the probability that the judge gives
it, after all tokens before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import avg_pool1d
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.engine.oracle import Rule
from tests.engine.test_random import SELECTION_TOLERANCE

#: A log probability may differ as much: float32 in another order of summation.
TOLERANCE = 1e-4
KINDS = ("sliding_attention", "full_attention")
WINDOW = 24  #: tokens, its own included, as configurations count
SHARED = dict(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    sliding_window=WINDOW,
    layer_types=[*KINDS, *KINDS],
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)


@dataclass(frozen=True)
class Family:
    """How a model of it is configured, and what SGLang makes of its window."""

    model_type: str
    reach: int = WINDOW - 1  #: entries before its own that a token of a window layer sees
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "gemma3": Family(
        "gemma3_text",
        config=dict(head_dim=16, query_pre_attn_scalar=24, architectures=["Gemma3ForCausalLM"]),
    ),
    # torch_native does not apply the soft cap on attention logits, and neither does the judge; both score with it.
    "gemma2": Family(
        "gemma2",
        config=dict(
            head_dim=16,
            query_pre_attn_scalar=24,
            hidden_act="gelu_pytorch_tanh",  # by which name SGLang reads it
            attn_logit_softcapping=2.0,
            final_logit_softcapping=30.0,
            architectures=["Gemma2ForCausalLM"],
        ),
    ),
    # SGLang reads one theta for all layers, and not from where transformers writes it: here both have the same.
    "olmo3": Family(
        "olmo3",
        config=dict(
            architectures=["Olmo3ForCausalLM"],
            rope_parameters={kind: dict(rope_type="default", rope_theta=10000.0) for kind in KINDS},
        ),
    ),
    # SGLang takes its window for the tokens before one's own: it sees one more than in transformers.
    "cohere2": Family("cohere2", reach=WINDOW, config=dict(architectures=["Cohere2ForCausalLM"], logit_scale=0.5)),
}


def write_model(path: Path, family: Family, seed: int = 0) -> Path:
    """Random weights, large enough that attention is sharp and greedy tokens differ."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family.model_type, **{**SHARED, **family.config})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    gemma = family.model_type.startswith("gemma")
    adds_one = gemma and family.model_type != "gemma4_text"  # to the weights of norms
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(0.0 if adds_one else 1.0, 0.3)
            elif "embed" in name:
                weight.normal_(0, 0.05 if gemma else 1.0)
            elif "q_proj" in name or "k_proj" in name:
                weight.normal_(0, 0.4)
            else:
                weight.normal_(0, 0.25)
    model.save_pretrained(path)
    return path


class Judge:
    """One model's, with `scored` of its layers compressed; `reach`: see `Family`."""

    def __init__(self, path: Path, reach: int):
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        self.reach = reach
        kinds = self.model.config.layer_types
        self.full = [index for index, kind in enumerate(kinds) if kind == "full_attention"]
        ALL_ATTENTION_FUNCTIONS.register("judge", self._attend)
        self.model.config._attn_implementation = "judge"

    def _attend(
        self,
        module: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        _mask: Any,
        scaling: float,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        """[1, heads, tokens, dim] each; `k` and `v` are those of all tokens so far."""
        layer, per_group = module.layer_idx, q.shape[1] // k.shape[1]
        at = torch.arange(k.shape[2])
        own, before = at[-q.shape[2] :, None], at[None]
        hidden = before > own
        if layer in self.full:
            hidden = hidden | self.evicted[layer][: len(at)]
            self.queries[layer] = torch.cat([self.queries.get(layer, q[0, :, :0]), q[0]], 1)[:, -64:]
            self.keys[layer], self.scale[layer] = k[0], (scaling, softcap)
        else:
            hidden = hidden | (before < own - self.reach)
        logits = q @ k.repeat_interleave(per_group, 1).transpose(2, 3) * scaling
        weights = logits.masked_fill(hidden, -math.inf).softmax(-1)
        return (weights @ v.repeat_interleave(per_group, 1)).transpose(1, 2).contiguous(), None

    def _compress(self, rule: Rule, prompt: int, generated: int, keep: int) -> float:
        """Evict in each layer with full attention. Returns the smallest relative score gap at the cut."""
        closest = math.inf
        for layer in self.full:
            end = prompt + generated - rule.window
            candidates = [at for at in range(prompt + rule.first, end) if not self.evicted[layer][at]]
            q = self.queries[layer][:, -rule.window :]
            q = torch.cat([q[:, 1:], q[:, -1:]], 1)  # the official selector
            k = self.keys[layer][:, candidates].repeat_interleave(q.shape[0] // self.keys[layer].shape[0], 0)
            scaling, softcap = self.scale[layer]
            logits = q @ k.transpose(1, 2) * scaling
            if softcap:
                logits = softcap * (logits / softcap).tanh()
            scores = logits.softmax(-1).sum(1).mean(0)
            scores = avg_pool1d(scores[None], rule.kernel_size, 1, rule.kernel_size // 2)[0]
            ranked = scores.sort(descending=True).values
            closest = min(closest, float((ranked[keep - 1] - ranked[keep]) / ranked[keep - 1]))
            kept = {candidates[index] for index in scores.topk(keep).indices.tolist()}
            self.evicted[layer][[at for at in candidates if at not in kept]] = True
        return closest

    def cache(self) -> DynamicCache:
        """An empty one, which forgets nothing."""
        return DynamicCache()

    def begin(self, length: int) -> None:
        """Forget the last text; the next one has up to `length` tokens."""
        ALL_ATTENTION_FUNCTIONS.register("judge", self._attend)  # another judge may have taken the name
        self.evicted = {layer: torch.zeros(length, dtype=torch.bool) for layer in self.full}
        self.queries: dict[int, torch.Tensor] = {}
        self.keys: dict[int, torch.Tensor] = {}
        self.scale: dict[int, tuple[float, float | None]] = {}

    @torch.inference_mode()
    def logprobs(self, prompt: list[int], output: list[int], rule: Rule | None, least: int = 0, page: int = 1):
        """Log probability of each output token, how far its logit lies below the best, and the closest cut.

        `least`: candidates that each compression keeps at least. `page`: entries of which it evicts a multiple.
        """
        length = len(prompt) + len(output)
        self.begin(length)
        cache, closest, events = self.cache(), math.inf, 0
        chosen: list[torch.Tensor] = []
        step, tokens = 0, prompt
        while True:
            first = length - len(output) + step - len(tokens)
            positions = torch.arange(first, first + len(tokens))
            logits = self.model(
                torch.tensor([tokens]), past_key_values=cache, use_cache=True, position_ids=positions[None]
            ).logits[0]
            chosen.append(logits[-1:] if step == 0 else logits)
            if step == len(output):
                break
            if rule is not None and step:
                due, rest = divmod(step - rule.window, rule.interval)
                keep = max(least, due * int(rule.interval / rule.ratio))
                held = step - rule.window - int(self.evicted[self.full[0]].sum())
                keep = held - (held - keep) // page * page
                if due >= 1 and rest == 0 and keep < held and step < len(output) - 1:  # else no token comes after it
                    closest = min(closest, self._compress(rule, len(prompt), step, keep))
                    events += 1
            following = len(output)
            if rule is not None:
                following = (max(0, step - rule.window) // rule.interval + 1) * rule.interval + rule.window
            tokens, step = output[step : min(following, len(output))], min(following, len(output))
        all_logits = torch.cat(chosen)[: len(output)]
        picked = torch.tensor(output)[:, None]
        gaps = all_logits.max(-1).values - all_logits.gather(1, picked)[:, 0]
        self.events = events
        return all_logits.log_softmax(-1).gather(1, picked)[:, 0], gaps, closest


def check(judge: Judge, prompt: list[int], rpc: dict[str, Any], result: dict[str, Any], page: int = 1) -> bool:
    """Each token of a server's result has the probability that the judge gives it; whether the judge could tell.

    It can't where two candidates' scores lie so close that float32 may swap them.
    """
    meta, output = result["meta_info"], result["output_ids"]
    receipt = meta["rpc"]
    rule = Rule(rpc["interval"], rpc["window"], rpc["ratio"]) if "interval" in rpc else None
    expected, gaps, closest = judge.logprobs(prompt, output, rule, rpc.get("min_kept", 0), page)
    events = judge.events
    # Under overlap one more may come, before it is known that no token does.
    assert receipt["compressions"] - events in ((0, 1) if rule is not None else (0,)), (receipt, events)
    assert receipt["late"] == 0, receipt
    actual = torch.tensor([logprob for logprob, _, _ in meta["output_token_logprobs"]])
    off = (actual - expected).abs()
    print(rpc, len(output), f"off {off.max():.1e} gap {gaps.max():.1e} closest cut {closest:.1e}", receipt)
    if events:
        assert (actual - judge.logprobs(prompt, output, None)[0]).abs().max() > 1e-2  # it tells them apart
    judge.events = events
    if closest <= SELECTION_TOLERANCE:
        return False
    assert off.max() < TOLERANCE, (int(off.argmax()), closest, receipt)
    assert gaps.max() < TOLERANCE, (int(gaps.argmax()), closest, receipt)
    return True
