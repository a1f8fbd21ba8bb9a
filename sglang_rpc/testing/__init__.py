"""For the tests of a policy in a package of its own. `docs/policies.md` shows how.

check_policy("mine")          raises AssertionError with one sentence per rule that the policy breaks
made_up_layer(...)            a layer of random KV, as a policy sees it
keeps(policy, layer, count)   which candidates of it stay
"""

from sglang_rpc.testing.conformance import check_policy, keeps, policy_failures
from sglang_rpc.testing.layers import made_up_layer

__all__ = ["check_policy", "keeps", "made_up_layer", "policy_failures"]
