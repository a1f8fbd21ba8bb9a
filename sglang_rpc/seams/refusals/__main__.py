"""`python -m sglang_rpc.seams.refusals > docs/limits.md`"""

from sglang_rpc.seams.refusals.page import limits_page

print(limits_page(), end="")
