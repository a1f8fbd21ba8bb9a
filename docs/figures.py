"""Draws the pictures of the documentation: `python docs/figures.py` writes the SVG files beside it.

Standard library only. The results are read from the tables in eval/results; a test compares the files with this script.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "eval" / "results"
sys.path.insert(0, str(DOCS.parent))

from eval.compare import entries  # noqa: E402
from sglang_rpc.policy.budget import Budget  # noqa: E402

BLUE, AMBER, PALE, GREEN, GREY, INK = "#4b6cb7", "#e9a23b", "#f6dcb0", "#3a9d6e", "#ededed", "#333333"
MUTED = "#666666"


@dataclass
class Drawing:
    """An SVG of `width` x `height` pixels, built top-down; coordinates are pixels."""

    title: str
    width: int
    height: int
    parts: list[str] = field(default_factory=list)

    def rect(self, x: float, y: float, w: float, h: float, fill: str, rx: float = 2) -> None:
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{rx:g}" fill="{fill}"/>')

    def text(
        self, x: float, y: float, words: str, size: int = 13, fill: str = INK, anchor: str = "start", bold: bool = False
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"{weight}>'
            f"{escape(words)}</text>"
        )

    def line(self, points: list[tuple[float, float]], stroke: str, width: float = 1.2, arrow: bool = False) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width:g}"{end}/>')

    def curve(self, x1: float, y1: float, x2: float, y2: float, stroke: str) -> None:
        middle = (y1 + y2) / 2
        path = f"M{x1:g} {y1:g} C {x1:g} {middle:g}, {x2:g} {middle:g}, {x2:g} {y2:g}"
        self.parts.append(f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="1.2"/>')

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            'font-family="system-ui, DejaVu Sans, sans-serif">\n'
            f"<title>{escape(self.title)}</title>\n"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{MUTED}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"


# --- the method -------------------------------------------------------------------------------------------------

CELL, LEFT = 14, 20  #: pixels a slot; left margin
PROMPT, CANDIDATES, WINDOW = 14, 24, 6
KEPT = (1, 5, 9, 10, 15, 21)  #: candidates that survive: 24 / 4


def method() -> Drawing:
    """One compression of one request, slot by slot; below, the entries it holds over its life."""
    d = Drawing(
        "One compression: the prompt stays, the best quarter of the candidates moves up, the rest is freed", 860, 430
    )
    first, last = LEFT + PROMPT * CELL + 8, LEFT + (PROMPT + CANDIDATES) * CELL + 16
    d.text(LEFT, 24, "KV slots of one request when a compression is due (P = 24, R = 6, c = 4)", 15, bold=True)
    for x, name, words, colour in (
        (LEFT, "prompt", "shared, never touched", BLUE),
        (first, "candidates", "scored by the attention of the window", "#a86e12"),
        (last, "window", "the newest R tokens, always kept", GREEN),
    ):
        d.text(x, 50, name, 13, colour, bold=True)
        d.text(x, 66, words, 12, MUTED)
    _slots(d, LEFT, 74, PROMPT, BLUE)
    for i in range(CANDIDATES):
        d.rect(first + i * CELL, 74, CELL - 2, 20, AMBER if i in KEPT else PALE)
    _slots(d, last, 74, WINDOW, GREEN)
    after = first + len(KEPT) * CELL + 8
    freed = after + WINDOW * CELL + 8
    for place, i in enumerate(KEPT):
        d.curve(first + i * CELL + 6, 96, first + place * CELL + 6, 156, AMBER)
    d.curve(last + WINDOW * CELL / 2, 96, after + WINDOW * CELL / 2, 156, GREEN)
    d.text(LEFT, 148, "and afterwards", 15, bold=True)
    _slots(d, LEFT, 158, PROMPT, BLUE)
    _slots(d, first, 158, len(KEPT), AMBER)
    _slots(d, after, 158, WINDOW, GREEN)
    _slots(d, freed, 158, CANDIDATES - len(KEPT), GREY)
    d.text(LEFT, 195, "the same bytes", 12, MUTED)
    d.text(first, 195, "kept, in order, at their positions", 12, MUTED)
    d.text(freed + 40, 195, "free at once for other requests", 12, MUTED)
    _life(d, 235)
    return d


def _slots(d: Drawing, x: float, y: float, count: int, fill: str) -> None:
    for i in range(count):
        d.rect(x + i * CELL, y, CELL - 2, 20, fill)


def _life(d: Drawing, top: float) -> None:
    """Entries held over tokens generated, by the budget's own arithmetic."""
    tokens, budget = 240, Budget(interval=24, window=6, step=6)
    d.text(LEFT, top, "KV entries that it holds while it thinks", 15, bold=True)
    left, bottom, wide, high = LEFT + 46, top + 165, 640, 140

    def at(n: float, held: float) -> tuple[float, float]:
        return left + n / tokens * wide, bottom - held / tokens * high

    d.line([at(0, 0), at(tokens, 0)], INK, 1)
    d.line([at(0, 0), at(0, tokens)], INK, 1)
    for n in range(0, tokens + 1, 60):
        d.text(at(n, 0)[0], bottom + 16, str(n), 11, MUTED, "middle")
        d.text(left - 6, at(0, n)[1] + 4, str(n), 11, MUTED, "end")
    d.text(left + wide + 10, bottom + 4, "generated tokens", 12, MUTED)
    d.line([at(0, 0), at(tokens, tokens)], MUTED, 1.5)
    saw = []
    for n in range(tokens + 1):
        done = budget.compressions_due(n)
        if done > budget.compressions_due(n - 1):
            saw.append(at(n, n - (done - 1) * (budget.interval - budget.step)))
        saw.append(at(n, n - done * (budget.interval - budget.step)))
    d.line(saw, AMBER, 2.5)
    d.text(left + wide + 10, at(0, tokens)[1] + 4, "SGLang", 13, MUTED, bold=True)
    d.text(left + wide + 10, saw[-1][1] + 4, "with RPC", 13, "#a86e12", bold=True)


# --- what it gives and costs ------------------------------------------------------------------------------------

SERVED = (
    ("cpu-tiny-tight", "4 x 2560 tokens, 1/4 of the memory"),
    ("cpu-tiny-shared-n32", "32 samples of one prompt, 1/4"),
    ("cpu-smollm2-tight", "SmolLM2's shape, 8 x 400, 1/4"),
    ("cpu-tiny-ample", "8 x 640 tokens, ample memory"),
    ("cpu-smollm2-ample", "SmolLM2's shape, 8 x 240, ample"),
)
SOLVED = (("near", 8), ("near", 12), ("far", 2), ("far", 4), ("far", 6))
JUDGED = {"rpc": GREEN, "peak": AMBER}  #: policies whose accuracy is drawn, where they were measured


def results() -> Drawing:
    """Ratios to SGLang at the same KV pool, and accuracy of the small reasoner beside its full KV."""
    d = Drawing("Throughput and requests at once against SGLang at the same KV pool, and accuracy kept", 860, 350)
    d.text(LEFT, 26, "RPC / SGLang at the same KV pool, c = 4", 15, bold=True)
    d.rect(LEFT, 40, 12, 12, BLUE)
    d.text(LEFT + 18, 51, "requests at once", 12)
    d.rect(LEFT + 150, 40, 12, 12, AMBER)
    d.text(LEFT + 168, 51, "tokens/s (line: lowest to highest pair)", 12)
    left, unit = LEFT + 236, 50.0
    for i, (table, words) in enumerate(SERVED):
        row, y = _rpc_row(table), 66 + i * 46
        d.text(left - 10, y + 20, words, 12, INK, "end")
        running, speed = float(row["running_mean_ratio"]), float(row["tok_s_ratio"])
        d.rect(left, y, unit * running, 13, BLUE)
        d.text(left + unit * running + 6, y + 11, f"{running:.1f}x", 11)
        d.rect(left, y + 15, unit * speed, 13, AMBER)
        low, high = (left + unit * float(row[f"tok_s_ratio_{end}"]) for end in ("low", "high"))
        d.line([(low, y + 21.5), (high, y + 21.5)], INK, 1.5)
        d.text(max(left + unit * speed, high) + 6, y + 26, f"{speed:.2f}x", 11)
    d.line([(left + unit, 62), (left + unit, 292)], INK, 1)
    d.text(left + unit, 306, "SGLang = 1", 11, MUTED, "middle")
    _accuracy(d, 570)
    d.text(
        LEFT,
        336,
        "Two virtual CPU cores, float32, no GPU. Left: random weights, forced lengths, medians of pairs.",
        11,
        MUTED,
    )
    d.text(840, 336, "Right: 0.6 M-parameter reasoner, 300 problems.", 11, MUTED, "end")
    return d


def _accuracy(d: Drawing, left: float) -> None:
    d.text(left, 26, "accuracy (full KV: 100 %)", 15, bold=True)
    x = left
    for policy, colour in JUDGED.items():
        d.rect(x, 40, 12, 12, colour)
        d.text(x + 18, 51, policy, 12)
        x += 60
    d.text(x, 51, "by KV entries held, mean", 12, MUTED)
    scale = 1.5
    for i, (task, ratio) in enumerate(SOLVED):
        rows = [r for r in _table(RESULTS / f"cpu-reasoner-{task}" / "summary.csv") if float(r["ratio"]) == ratio]
        found = {r["policy"]: r for r in rows if r["policy"] in JUDGED and not int(r.get("min_kept") or 0)}
        y = 66 + i * 46
        d.text(left + 84, y + 13, f"{task}, c = {ratio}", 12, INK, "end")
        d.text(left + 84, y + 28, f"{_mean_entries(found['rpc']):.0f} entries", 11, MUTED, "end")
        for j, (policy, row) in enumerate(found.items()):
            share, top = 100 * float(row["accuracy"]), y + 17 * j
            d.rect(left + 94, top, scale * 100, 14, GREY)
            d.rect(left + 94, top, scale * share, 14, JUDGED[policy])
            d.text(left + 100, top + 11, f"{share:.1f} ± {100 * float(row['error']):.1f} %", 11)


def _mean_entries(row: dict[str, str]) -> float:
    """KV entries that a request held in the mean; of a table without this column, from its mean length."""
    told = row.get("mean_entries")
    return float(told) if told else entries.mean_at(entries.budget_of(row), float(row["tokens"]))


def _rpc_row(table: str) -> dict[str, str]:
    return next(row for row in _table(RESULTS / table / "summary.csv") if row["arm"] == "rpc")


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- one step of the scheduler ----------------------------------------------------------------------------------

STEP = (
    ("watch the pool", "free slots, watermarks", "hooks/pressure.py", GREEN),
    ("poll each request", "is its next check reached?", "runtime/", AMBER),
    ("score, select, move", "all layers of all due requests", "backends/", AMBER),
    ("free and shorten", "pages to the pool, new lengths", "hooks/compaction.py", AMBER),
    ("merge, admit, retract", "freed slots count in this step", "SGLang; hooks/admission.py", BLUE),
    ("forward", "stores newest queries in the ring", "SGLang; hooks/capture.py", BLUE),
)


def step() -> Drawing:
    """One scheduler step in its order, with the place in the package that does each part."""
    d = Drawing("One scheduler step: pressure, poll, compress, free, then SGLang's own admission and forward", 860, 250)
    d.text(LEFT, 26, "One step of SGLang's scheduler with RPC", 15, bold=True)
    wide, gap = 248, 32
    for i, (name, words, where, colour) in enumerate(STEP):
        column, row = i % 3, i // 3
        x, y = LEFT + column * (wide + gap), 46 + row * 104
        d.rect(x, y, wide, 72, "#f7f7f7", 6)
        d.rect(x, y, 6, 72, colour, 3)
        d.text(x + 18, y + 22, f"{i + 1}  {name}", 14, bold=True)
        d.text(x + 18, y + 42, words, 12)
        d.text(x + 18, y + 60, where, 12, MUTED)
        if column < 2:
            d.line([(x + wide + 4, y + 36), (x + wide + gap - 4, y + 36)], MUTED, 1.5, arrow=True)
    turn, end = LEFT + 2 * (wide + gap) + wide / 2, LEFT + wide / 2
    d.line([(turn, 120), (turn, 134), (end, 134), (end, 147)], MUTED, 1.5, arrow=True)
    d.text(
        LEFT,
        244,
        "Steps 1 to 4 run before the step is planned, while the last forward may still be on the device.",
        11,
        MUTED,
    )
    return d


FIGURES = {"how-it-works.svg": method, "results.svg": results, "step.svg": step}


def main() -> None:
    for name, draw in FIGURES.items():
        (DOCS / name).write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
