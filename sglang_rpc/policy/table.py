"""Every built-in policy that scores candidates, one row each. `docs/policies.md` says how to add one."""

from __future__ import annotations

from dataclasses import replace

from sglang_rpc.policy import h2o, lightthinker, random, rkv, rpc, snapkv, streaming, tova
from sglang_rpc.policy.base import Policy

POLICIES: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy(
            "rpc",
            "Reasoning Path Compression, arXiv 2505.13866",
            "nothing: selections equal the authors' code",
            rpc.scores,
            pooling="config",
            as_rpc=lambda config: config,
        ),
        Policy(
            "random",
            "chance, with the prompt kept (compare arXiv 2609.03430)",
            "per layer; the newest R tokens are kept besides",
            random.scores,
            seeded=True,
        ),
        Policy(
            "streaming",
            "StreamingLLM, arXiv 2309.17453",
            "the whole prompt is kept, not only its first 4 tokens; keys keep the position of their token; the budget "
            "grows as RPC's does, where the paper's is constant",
            streaming.scores,
        ),
        Policy(
            "tova",
            "TOVA, arXiv 2401.06104",
            "every P tokens as many as the budget says, where the paper drops one entry a token; attention is over the "
            "candidates alone, as RPC's",
            tova.scores,
        ),
        Policy(
            "h2o",
            "H2O, arXiv 2306.14048",
            "every P tokens as many as the budget says, where the paper drops one entry a token; the newest R tokens "
            "are kept as its recent half; attention is over prompt and thoughts, and adds up from the first token "
            "generated on, not in the prefill; of a request that is retracted and restored, one step may count twice, "
            "and of one that is prefilled again all begin anew",
            h2o.scores,
            accumulates=True,
        ),
        Policy(
            "snapkv",
            "SnapKV, arXiv 2404.14469",
            "of the thoughts, every P tokens, where the paper compresses a prompt once; attention is over the "
            "candidates alone, as RPC's; one set a layer unless --rpc-aggregation group",
            snapkv.scores,
            pooling="max",
            as_rpc=lambda config: replace(config, selector="paper", pooling="max"),
        ),
        Policy(
            "rkv",
            "R-KV, arXiv 2505.24133",
            "the prompt is kept; the budget grows as RPC's does, where the paper's is constant; one set a layer, of "
            "the heads' summed scores, unless --rpc-aggregation group",
            rkv.scores,
            whole_groups=True,
        ),
    )
}

#: Every built-in name: policies that score candidates, and the one that reads the token stream.
NAMES = (*POLICIES, lightthinker.NAME)
