"""What the rows of texts say of an arm: means with standard errors over texts, pairs with a baseline on the same texts.

Texts are the units of every error: tokens of one text are not independent.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eval.accuracy.statistics import paired
from eval.compare.arms import FULL, Arm
from eval.fidelity.rows import Row, mean
from eval.redundancy.measure import standard_error

COLUMNS = (
    *("arm", "policy", "interval", "window", "ratio", "min_kept", "texts", "tokens", "compressions"),
    *("kl", "kl_error", "kl_before", "ratio_to_baseline", "ratio_low", "ratio_high", "lower_on"),
    *("agree", "agree_error", "agree_to_baseline", "agree_to_baseline_error"),
    *("loss", "to_full", "to_full_error", "mean_entries", "peak_entries", "mean_share"),
)


def summary(found: Mapping[Arm, Sequence[Row]], baseline: str) -> list[dict[str, Any]]:
    """A row an arm. `baseline`: the policy whose arm of the same interval and ratio each is compared with."""
    return [_row(arm, rows, _baseline(arm, found, baseline)) for arm, rows in found.items()]


def geometric_ratio(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[float, float, float]:
    """Geometric mean over texts of ours / theirs, and one standard error of it down and up.

    nan where a value is not above 0, and without an error of a single text.
    """
    if not ours.keys() & theirs.keys() or min([*ours.values(), *theirs.values()]) <= 0:
        return math.nan, math.nan, math.nan
    logs = [{name: math.log(value) for name, value in each.items()} for each in (ours, theirs)]
    centre, error, _ = paired(*logs)
    return math.exp(centre), math.exp(centre - error), math.exp(centre + error)


def _baseline(arm: Arm, found: Mapping[Arm, Sequence[Row]], policy: str) -> Sequence[Row]:
    """Rows of the arm that differs from this one in its policy alone; none of full KV."""
    return [] if arm.policy == FULL else found.get(replace(arm, policy=policy), [])


def _by_text(rows: Sequence[Row], name: str) -> dict[str, float]:
    return {row.text: getattr(row, name) for row in rows}


def _row(arm: Arm, rows: Sequence[Row], baseline: Sequence[Row]) -> dict[str, Any]:
    ours, theirs = _by_text(rows, "kl"), _by_text(baseline, "kl")
    ratio, low, high = geometric_ratio(ours, theirs)
    agree, agree_error, _ = paired(_by_text(rows, "agree"), _by_text(baseline, "agree"))
    return {
        "arm": arm.name,
        "policy": arm.policy,
        "interval": arm.interval,
        "window": arm.window,
        "ratio": arm.ratio,
        "min_kept": arm.min_kept,
        "texts": len(rows),
        "tokens": sum(row.tokens for row in rows),
        "compressions": mean(rows, "compressions"),
        "kl": mean(rows, "kl"),
        "kl_error": standard_error([row.kl for row in rows]),
        "kl_before": mean(rows, "kl_before"),
        "ratio_to_baseline": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "lower_on": sum(ours[name] < theirs[name] for name in ours.keys() & theirs.keys()) if theirs else None,
        "agree": mean(rows, "agree"),
        "agree_error": standard_error([row.agree for row in rows]),
        "agree_to_baseline": agree,
        "agree_to_baseline_error": agree_error,
        "loss": mean(rows, "loss"),
        "to_full": mean(rows, "to_full"),
        "to_full_error": standard_error([row.to_full for row in rows]),
        "mean_entries": mean(rows, "mean_entries"),
        "peak_entries": mean(rows, "peak_entries"),
        "mean_share": mean(rows, "mean_share"),
    }


def write(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def plain(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [asdict(row) for row in rows]


def markdown(rows: Sequence[dict[str, Any]], found: Mapping[Arm, Sequence[Row]], baseline: str) -> str:
    """The summary, and KL text by text, as two tables."""
    texts = list(dict.fromkeys(row.text for each in found.values() for row in each))
    lines = [
        "Means over texts ± standard error, of the tokens after the first compression. KL is to the full KV cache, in",
        f"nats per token. Its ratio to `{baseline}` is a geometric mean over texts, plus and minus one standard error.",
        "KV entries are those after the prompt: mean and peak over all of a text.",
        "",
        f"| arm | KL | KL / {baseline}'s | lower on | top-1 agreement, % | to {baseline}, points | loss | loss to full "
        "| KV held, mean | peak | mean, of full |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        f"| KL, nats per token | {' | '.join(texts)} |",
        f"|---|{'---|' * len(texts)}",
    ]
    for arm, each in found.items():
        if arm.policy != FULL:
            by_text = {row.text: f"{row.kl:.4f}" for row in each}
            lines.append(f"| `{arm.name}` | {' | '.join(by_text[text] for text in texts)} |")
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    compared = not math.isnan(row["ratio_to_baseline"])
    cells = [
        f"`{row['arm']}`",
        _with_error(row["kl"], row["kl_error"], ".4f"),
        f"{row['ratio_to_baseline']:.3f} [{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]" if compared else "",
        f"{row['lower_on']} of {row['texts']}" if compared else "",
        _with_error(100 * row["agree"], 100 * row["agree_error"], ".1f"),
        _with_error(100 * row["agree_to_baseline"], 100 * row["agree_to_baseline_error"], "+.2f") if compared else "",
        f"{row['loss']:.4f}",
        _with_error(row["to_full"], row["to_full_error"], "+.4f"),
        f"{row['mean_entries']:.1f}",
        f"{row['peak_entries']:.0f}",
        f"{row['mean_share']:.1%}",
    ]
    return f"| {' | '.join(cells)} |"


def _with_error(value: float, error: float, form: str) -> str:
    return f"{value:{form}}" if math.isnan(error) else f"{value:{form}} ± {error:{form.removeprefix('+')}}"
