"""`python -m sglang_rpc.contract.refusals > docs/limits.md`"""

from sglang_rpc.contract.refusals.page import limits_page

print(limits_page(), end="")
