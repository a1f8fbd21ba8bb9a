"""What RPC refuses, as tables: rows of the server's arguments, of the model and pools, and of single requests.

Each row says when it applies, why RPC cannot work there, and the way out; its sentence is what a user reads.
SGLang is imported inside functions only, so that the tables can be read without it: docs/limits.md is made from them.
"""

from sglang_rpc.contract.refusals.model import MODEL_ROWS, ServingFacts, gather_facts, refuse_model_runner
from sglang_rpc.contract.refusals.request import REQUEST_ROWS, refuse_request
from sglang_rpc.contract.refusals.server import ATTENTION_BACKENDS, SERVER_ROWS, refuse_arguments, refuse_server_args

__all__ = [
    "ATTENTION_BACKENDS",
    "MODEL_ROWS",
    "REQUEST_ROWS",
    "SERVER_ROWS",
    "ServingFacts",
    "gather_facts",
    "refuse_arguments",
    "refuse_model_runner",
    "refuse_request",
    "refuse_server_args",
]
