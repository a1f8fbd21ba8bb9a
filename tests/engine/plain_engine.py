"""A plain `sglang.Engine`, as a program that knows nothing of RPC; prints its response as JSON, with SGLang's version.

python -m tests.engine.plain_engine MODEL PROMPT_JSON TOKENS
"""

import json
import sys

from sglang_rpc.startup import cpu

if __name__ == "__main__":
    cpu.prepare("cpu")  # no part of RPC: SGLang's stand-in for a machine without a GPU
    import sglang

    engine = sglang.Engine(
        model_path=sys.argv[1],
        skip_tokenizer_init=True,
        dtype="float32",
        context_length=2048,
        **{**cpu.server_defaults(), "max_total_tokens": 4096},
    )
    sampling = {"temperature": 0, "max_new_tokens": int(sys.argv[3]), "ignore_eos": True}
    response = engine.generate(input_ids=json.loads(sys.argv[2]), sampling_params=sampling)
    print("RESULT", json.dumps({**response, "sglang": sglang.__version__}))
    engine.shutdown()
