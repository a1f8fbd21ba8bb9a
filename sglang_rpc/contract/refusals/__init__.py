"""What RPC refuses, as tables: rows of the server's arguments, of the model and pools, and of single requests.

Each row says when it applies, why RPC cannot work there, and the way out; its sentence is what a user reads.
SGLang is imported inside functions only, so that the tables can be read without it. `docs/limits.md` is these tables:
`python -m sglang_rpc.contract.refusals > docs/limits.md`.
"""

from sglang_rpc.contract.refusals.arguments import Arguments, ServerRow, refuse_arguments, refuse_server_args
from sglang_rpc.contract.refusals.facts import ServingFacts, gather_facts
from sglang_rpc.contract.refusals.model import MODEL_ROWS, ModelRow, refuse_model_runner
from sglang_rpc.contract.refusals.page import limits_page
from sglang_rpc.contract.refusals.request import REQUEST_ROWS, RequestRefusal, RequestRow, Severity, refuse_request
from sglang_rpc.contract.refusals.server_rows import SERVER_ROWS
from sglang_rpc.contract.refusals.wording import ALLOCATORS, ATTENTION_BACKENDS, KV_DTYPES, KV_POOLS, ROW_POOLS, TREES

__all__ = [
    "ALLOCATORS",
    "ATTENTION_BACKENDS",
    "KV_DTYPES",
    "KV_POOLS",
    "MODEL_ROWS",
    "REQUEST_ROWS",
    "ROW_POOLS",
    "SERVER_ROWS",
    "TREES",
    "Arguments",
    "ModelRow",
    "RequestRefusal",
    "RequestRow",
    "ServerRow",
    "ServingFacts",
    "Severity",
    "gather_facts",
    "limits_page",
    "refuse_arguments",
    "refuse_model_runner",
    "refuse_request",
    "refuse_server_args",
]
