"""matplotlib as all plots of the laboratory have it: no display, text stays text, equal files for equal results."""

from __future__ import annotations

from typing import Any


def pyplot(**more: Any) -> Any:
    """`matplotlib.pyplot`, set up, with `more` of its parameters; None without matplotlib, said on standard output."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[bench]')")
        return None
    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "eval", "font.size": 9, **more})
    from matplotlib import pyplot as found

    return found
