"""What every test may ask for."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, nothing written to the tree, and no limit on a single example: machines are shared.
settings.register_profile("project", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of recordings of the RPC authors' code. Fails, never skips, where it is missing."""
    folder = Path(os.environ.get("SGLANG_RPC_GOLDENS") or ROOT.parent / "shared" / "goldens")
    if not (folder / "compress_kv").is_dir():
        pytest.fail(
            f"the goldens are not at {folder}: put them at ../shared/goldens beside the project, "
            "or name their folder in SGLANG_RPC_GOLDENS",
            pytrace=False,
        )
    return folder
