"""docs/limits.md, generated from the tables."""

from __future__ import annotations

from collections.abc import Iterable

from sglang_rpc.contract.refusals.model import MODEL_ROWS
from sglang_rpc.contract.refusals.request import REQUEST_ROWS
from sglang_rpc.contract.refusals.server_rows import SERVER_ROWS

_HEAD = """# Limits

What does not work with RPC. A server with one of these switched on stops at start-up with a sentence that names it;
nothing is ever compressed wrongly, or silently not at all. `--disable-rpc` turns RPC off and lifts every one of them.
This page is generated: `python -m sglang_rpc.contract.refusals > docs/limits.md`.
"""


def limits_page() -> str:
    """The text of docs/limits.md."""
    return "\n".join(
        [
            _HEAD,
            "## Server flags and environment\n",
            *_table(
                ("name", "what", "why", "way out"),
                ((r.name, r.switches, r.why, r.way_out.rstrip(",")) for r in SERVER_ROWS),
            ),
            "\n## Models and memory pools\n",
            "Known once the model is loaded; a dash means that only `--disable-rpc` helps.\n",
            *_table(("name", "why", "way out"), ((r.name, r.why, r.way_out or "-") for r in MODEL_ROWS)),
            "\n## Single requests\n",
            "Such a request is served uncompressed and its receipt says why. If it asked for compression itself, with",
            '`custom_params: {"rpc": {...}}`, it gets HTTP 400 instead.\n',
            *_table(("name", "why"), ((r.name, r.why) for r in REQUEST_ROWS)),
            "",
        ]
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, tuple("---" for _ in head), *((f"`{name}`", *rest) for name, *rest in rows)]
    return [f"| {' | '.join(cells)} |" for cells in lines]
