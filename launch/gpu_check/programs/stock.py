"""Does SGLang itself, without RPC, serve here: four layers of a 7B shape, random weights, CUDA graphs, 16 requests."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from eval.bench.shapes import SHAPES
from launch.gpu_check.programs import say

LAYERS, REQUESTS, PROMPT_TOKENS, TOKENS = 4, 16, 128, 512


def main(backend: str, folder: Path) -> None:
    import sglang

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES["qwen-7b"] | {"num_hidden_layers": LAYERS}))
    began = time.monotonic()
    engine = sglang.Engine(
        model_path=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        attention_backend=backend,
        sampling_backend="pytorch",
        grammar_backend="none",
        cuda_graph_bs_decode=[1, 2, 4, 8, 16],
        max_running_requests=REQUESTS,
        context_length=4096,
        disable_prefill_cuda_graph=True,
        disable_flashinfer_autotune=True,
        disable_radix_cache=True,
        mem_fraction_static=0.7,
        skip_server_warmup=True,
        random_seed=0,
        log_level="info",
    )
    try:
        say(f"{backend}: an engine in {time.monotonic() - began:.0f} s")
        prompts = [[(7 * i + 13 * j) % 150000 + 5 for j in range(PROMPT_TOKENS)] for i in range(REQUESTS)]
        for tokens in (8, TOKENS):  # the first compiles
            began = time.monotonic()
            params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
            results = engine.generate(input_ids=prompts, sampling_params=params)
            seconds = time.monotonic() - began
            made = sum(len(result["output_ids"]) for result in results)
            assert made == REQUESTS * tokens, f"{REQUESTS * tokens} tokens were asked for, {made} came"
        say(f"{backend}: OK, {made / seconds:.0f} tokens/s, {1000 * seconds / TOKENS:.2f} ms per step")
    finally:
        engine.shutdown()


if __name__ == "__main__":  # needed: SGLang spawns its scheduler
    main(sys.argv[1], Path(sys.argv[2]))
