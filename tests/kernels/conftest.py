"""The Triton kernels against their PyTorch references: on a GPU, or in Triton's interpreter.

The interpreter must be switched on before Triton is imported, so without a GPU these tests need a process of their own:
`TRITON_INTERPRET=1 pytest tests/kernels`, which is what tests/unit/test_kernels.py runs. On a GPU: `pytest -m gpu
tests/kernels`.
"""

import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

#: FlashInfer has kernels for GPUs only.
collect_ignore_glob = ["test_flashinfer.py"] if INTERPRETED else [] if torch.cuda.is_available() else ["test_*.py"]


def pytest_collection_modifyitems(items):
    for item in items:
        if not INTERPRETED and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
