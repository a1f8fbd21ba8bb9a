"""Peak attention times the value's norm: an entry is kept if one of the newest tokens looked at it hard, and got much.

a_ij = softmax_j(q_i . k_j * scale)     over all that query i sees: prompt, candidates and the newest tokens
s_j = sum over KV heads of |v_j| * sum over its query heads of max over the newest R queries of a_ij

Built on VATP (Guo et al. 2024, arXiv 2406.12335: accumulated attention times the value's L1 norm) and on SnapKV's
window of queries (Li et al. 2024, arXiv 2404.14469). No paper has exactly this. Against `rpc`, each for a reason:

maximum, not sum        what was needed once is kept before what is always attended to a little
all that is visible     a query that in truth attends to the prompt has no vote among the candidates
value norm              attention sinks have much attention and small values
no pooling              after a compression, neighbours in the cache were not neighbours in the text

`paired` keeps what was said after a name with it: an entry also has half the score of the one before it.
"""

from dataclasses import replace

from sglang_rpc.policy.base import attention_policy
from sglang_rpc.types import ScoreRule

RULE = ScoreRule(softmax="visible", over_queries="max", over_heads="sum", value_power=1)

peak = attention_policy("peak", RULE)

#: The maximum over a KV head's query heads too.
grouped = attention_policy("peak-grouped", replace(RULE, over_heads="max"))

#: The expected squared change of the attention's output if an entry goes, were values uncorrelated.
squares = attention_policy("peak-squares", replace(RULE, over_queries="squares", value_power=2))

#: An entry also has half the score of the one before it: peaks first, then what was said after them.
paired = attention_policy("peak-paired", RULE, pooling="pairs")
