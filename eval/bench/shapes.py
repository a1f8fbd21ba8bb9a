"""Models: any path, or a built-in shape whose config is written here and whose weights SGLang makes up.

Speed does not depend on the values of weights when every output's length is forced, so neither shape needs a download.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.bench.errors import BenchError

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "torch_dtype": "float32",
}

_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

SHAPES: dict[str, dict[str, Any]] = {
    # A step costs what the scheduler costs. One layer: on a CPU, SGLang's attention calls PyTorch once a request and
    # layer, and that must stay small beside the step.
    "tiny": {
        **_LLAMA,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 512,
        "max_position_embeddings": 8192,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    # HuggingFaceTB/SmolLM2-135M: attention and weights cost what they cost in a small real model.
    "smollm2": {
        **_LLAMA,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rope_theta": 100000.0,
        "tie_word_embeddings": True,
    },
    # deepseek-ai/DeepSeek-R1-Distill-Qwen-7B
    "qwen-7b": {
        **_QWEN2,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_theta": 10000.0,
    },
    # Qwen/QwQ-32B
    "qwq-32b": {
        **_QWEN2,
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "rope_theta": 1000000.0,
    },
}

_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2, "fp8_e5m2": 1, "fp8_e4m3": 1}


@dataclass(frozen=True)
class Model:
    """What the benchmark must know of a model; the numbers are those of its config.json."""

    label: str  #: shape:NAME, or the path given
    path: str  #: for --model-path
    dummy: bool  #: weights are made up (--load-format dummy)
    vocab_size: int
    max_positions: int
    layers: int
    kv_heads: int
    head_dim: int
    sha: str  #: of config.json

    def kv_bytes_per_token(self, dtype: str) -> int | None:
        """Bytes of one token's keys and values in all layers; None where `dtype` does not say how wide they are."""
        width = _BYTES.get(dtype.removeprefix("torch."))
        return None if width is None else 2 * self.layers * self.kv_heads * self.head_dim * width


def of_shape(name: str, folder: Path) -> Model:
    """A built-in shape whose config.json belongs into `folder`; `write` puts it there. Raises BenchError."""
    if name not in SHAPES:
        raise BenchError(f"--shape must be one of {', '.join(SHAPES)}, got {name}")
    return _model(f"shape:{name}", folder, True, _text(name))


def write(model: Model) -> None:
    """The config.json of a built-in shape; nothing for a model that has its own."""
    kind, _, name = model.label.partition(":")
    if kind == "shape" and name in SHAPES:
        Path(model.path).mkdir(parents=True, exist_ok=True)
        (Path(model.path) / "config.json").write_text(_text(name))


def at_path(path: str, dummy: bool) -> Model:
    """A folder with a config.json. Raises BenchError."""
    folder = Path(path).expanduser().resolve()
    try:
        text = (folder / "config.json").read_text()
    except OSError as error:
        raise BenchError(
            f"--model-path must be a folder with a config.json (a hub's name is not looked up), "
            f"and {folder / 'config.json'} cannot be read: {error.strerror}"
        ) from error
    return _model(path, folder, dummy, text)


def _text(shape: str) -> str:
    return json.dumps(SHAPES[shape], indent=1) + "\n"


def _model(label: str, folder: Path, dummy: bool, text: str) -> Model:
    try:
        config = json.loads(text)
        config = {**config, **config.get("text_config", {})}
        heads = config["num_attention_heads"]
        return Model(
            label=label,
            path=str(folder),
            dummy=dummy,
            vocab_size=config["vocab_size"],
            max_positions=config["max_position_embeddings"],
            layers=config["num_hidden_layers"],
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            sha=hashlib.sha256(text.encode()).hexdigest()[:12],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{folder}/config.json does not look like a transformer's: {error!r}") from error
