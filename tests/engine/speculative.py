"""What an engine that speculates is started with, and drafts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def drafting(model: Path, tokens: int, **more: Any) -> dict[str, Any]:
    """Arguments of an engine whose drafts come from `model`, with `tokens` rows that a request verifies in a step."""
    return {
        "speculative_algorithm": "STANDALONE",
        "speculative_draft_model_path": str(model),
        "speculative_num_steps": tokens - 1,
        "speculative_eagle_topk": 1,
        "speculative_num_draft_tokens": tokens,
        "disable_overlap_schedule": True,
        **more,
    }
