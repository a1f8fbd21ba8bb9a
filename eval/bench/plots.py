"""The plots, drawn from results.csv alone: PNG to look at, SVG to put in a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval import plotting
from eval.bench import summary as summaries
from eval.bench import table
from eval.bench.statistics import median
from eval.bench.table import Row

#: Colour-blind safe (Okabe and Ito); built-in arms keep theirs in every plot.
_COLOURS = {"stock": "#000000", "constrained": "#E69F00", "off": "#56B4E9", "rpc-off": "#CC79A7", "rpc": "#D55E00"}
_OTHERS = ("#0072B2", "#009E73", "#F0E442", "#8c564b", "#7f7f7f")

_STYLE = {"axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False}


def draw(rows: Sequence[Row], baseline: str, out: Path) -> list[Path]:
    """Every plot that the rows have data for; the paths written. Without matplotlib: none, said in the log."""
    if plotting.pyplot(**_STYLE) is None:
        return []
    good = [row for row in table.latest(rows).values() if summaries.is_good(row)]
    written = []
    for name, plot in _PLOTS.items():
        figure = plot(good, baseline)
        if figure is not None:
            figure.text(0.01, 0.005, _conditions(good), fontsize=6, color="#555555", va="bottom")
            for suffix in ("png", "svg"):
                path = out / f"{name}.{suffix}"
                figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
                written.append(path)
    import matplotlib.pyplot

    matplotlib.pyplot.close("all")
    return written


def _ratio_by_pool(rows: list[Row], baseline: str) -> Any:
    """Throughput ratio to the baseline against the pool: a panel a load, a line an arm, a dot a pair."""
    arms = [arm for arm in _arms(rows) if arm != baseline]
    by_key = table.latest(rows)
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row["arm"] != baseline and (baseline, row["workload"], int(row["repetition"])) in by_key:
            panels.setdefault(_load(row), []).append(row)
    if not panels:
        return None
    figure, axes = _axes(len(panels))
    for axis, (title, members) in zip(axes, panels.items(), strict=True):
        for arm in arms:
            points: dict[float, list[float]] = {}
            for row in members:
                if row["arm"] == arm:
                    pair = (row, by_key[(baseline, row["workload"], int(row["repetition"]))])
                    points.setdefault(float(row["pool_fraction"]), []).extend(summaries.pair_ratios([pair], "tok_s"))
            _line(axis, points, arm, arms)
        axis.axhline(1, color=_colour(baseline, arms), linewidth=1)
        axis.set(title=title, xlabel="pool / what the load holds uncompressed", ylabel=f"tok/s, ratio to {baseline}")
        axis.set_ylim(bottom=0)
    return _finish(figure, axes[0])


def _requests_at_once(rows: list[Row], baseline: str) -> Any:
    """Requests running at once: a bar is the mean over a run (median of repetitions), a tick the peak."""
    return _bars(rows, "running_mean", "running_peak", "requests at once (bar: mean, tick: peak)")


def _throughput_by_load(rows: list[Row], baseline: str) -> Any:
    """tok/s against the offered load: a panel a pool and shape of request."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        title = f"pool {row['pool_tokens']}, n={row['n']}, {row['prompt_tokens']}+{row['output_tokens']} tokens"
        panels.setdefault(title, []).append(row)
    # A load that was not varied makes no curve; where none was, every panel is shown, or there would be no plot.
    varied = {t: m for t, m in panels.items() if len({r["concurrency"] for r in m}) > 1} or panels
    if not varied:
        return None
    figure, axes = _axes(len(varied))
    arms = _arms(rows)
    for axis, (title, members) in zip(axes, varied.items(), strict=True):
        for arm in arms:
            points: dict[float, list[float]] = {}
            for row in members:
                if row["arm"] == arm:
                    points.setdefault(float(row["concurrency"]), []).append(float(row["tok_s"]))
            _line(axis, points, arm, arms)
        axis.set(title=title, xlabel="samples offered at once", ylabel="output tok/s")
        axis.set_ylim(bottom=0)
    return _finish(figure, axes[0])


def _first_token(rows: list[Row], baseline: str) -> Any:
    return _bars(rows, "ttft_p50_s", "ttft_p99_s", "time to first token, s (bar: p50, tick: p99)")


def _inter_token(rows: list[Row], baseline: str) -> Any:
    return _bars(rows, "itl_p50_s", "itl_p99_s", "inter-token latency, ms (bar: p50, tick: p99)", 1000)


_PLOTS: dict[str, Callable[[list[Row], str], Any]] = {
    "throughput_ratio_by_pool": _ratio_by_pool,
    "requests_at_once": _requests_at_once,
    "throughput_by_load": _throughput_by_load,
    "time_to_first_token": _first_token,
    "inter_token_latency": _inter_token,
}


def _bars(rows: list[Row], bar: str, tick: str, label: str, factor: float = 1) -> Any:
    """A group of bars a workload, a bar an arm; None where no row has the number."""
    rows = [row for row in rows if row[bar]]
    if not rows:
        return None
    import matplotlib.pyplot as plt

    arms, workloads = _arms(rows), list(dict.fromkeys(row["workload"] for row in rows))
    width = 0.8 / len(arms)
    figure, axis = plt.subplots(figsize=(max(5.0, 1.6 + 0.55 * len(arms) * len(workloads)), 4))
    for number, arm in enumerate(arms):
        for place, workload in enumerate(workloads):
            mine = [row for row in rows if row["arm"] == arm and row["workload"] == workload]
            if not mine:
                continue
            at = place + (number - (len(arms) - 1) / 2) * width
            label_once = arm if arm not in axis.get_legend_handles_labels()[1] else None
            height = factor * (median(summaries.numbers(mine, bar)) or 0)
            axis.bar(at, height, 0.9 * width, color=_colour(arm, arms), label=label_once)
            top = median(summaries.numbers(mine, tick))
            if top is not None:
                axis.hlines(factor * top, at - 0.4 * width, at + 0.4 * width, color="#444444", linewidth=1.5)
    names = [next(row for row in rows if row["workload"] == workload) for workload in workloads]
    axis.set_xticks(
        range(len(workloads)), [f"{_load(r)}\npool {float(r['pool_fraction']):g}" for r in names], fontsize=7
    )
    axis.set_ylabel(label)
    axis.set_ylim(bottom=0)
    axis.grid(axis="x", visible=False)
    return _finish(figure, axis)


def _line(axis: Any, points: dict[float, list[float]], arm: str, arms: list[str]) -> None:
    places = sorted(place for place, values in points.items() if values)
    if not places:
        return
    colour = _colour(arm, arms)
    axis.plot(places, [median(points[place]) for place in places], marker="o", color=colour, label=arm)
    for place in places:
        axis.plot([place] * len(points[place]), points[place], ".", color=colour, alpha=0.5, markersize=4)


def _axes(count: int) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    across = min(3, count)
    down = -(-count // across)
    figure, grid = plt.subplots(down, across, figsize=(1 + 3.8 * across, 0.6 + 3.2 * down), squeeze=False)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def _finish(figure: Any, axis: Any) -> Any:
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    return figure


def _arms(rows: Sequence[Row]) -> list[str]:
    """Built-in ones first, in their order; then the user's, as they appear."""
    seen = list(dict.fromkeys(row["arm"] for row in rows))
    return [arm for arm in _COLOURS if arm in seen] + [arm for arm in seen if arm not in _COLOURS]


def _colour(arm: str, arms: list[str]) -> str:
    if arm in _COLOURS:
        return _COLOURS[arm]
    return _OTHERS[[name for name in arms if name not in _COLOURS].index(arm) % len(_OTHERS)]


def _load(row: Row) -> str:
    rate = "" if row["rate"] == "closed" else f", {row['rate']}/s"
    return f"c={row['concurrency']}{rate}, n={row['n']}, {row['prompt_tokens']}+{row['output_tokens']}"


def _conditions(rows: Sequence[Row]) -> str:
    row = rows[-1]
    rpc = next((r for r in rows if r["rpc_interval"]), None)
    method = f"P={rpc['rpc_interval']} R={rpc['rpc_window']} c={rpc['rpc_ratio']}" if rpc else "no RPC"
    hardware = row["gpu"] or f"{row['cpu']}, {row['cores']} cores, {row['threads'] or 'default'} thread(s)"
    dirty = "+" if row["dirty"] == "yes" else ""
    return (
        f"{row['model']}, {row['dtype']}, {method}; {hardware}; SGLang {row['sglang_version']}, "
        f"sglang-rpc {row['sglang_rpc_version']} ({row['commit'][:9]}{dirty})"
    )
