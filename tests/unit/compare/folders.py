"""Folders as eval.compare leaves them, without a run."""

import csv
import json

COLUMNS = ("arm", "policy", "interval", "window", "ratio", "min_kept", "problems", "accuracy", "error")


def comparison(path, task, marks, kv=(115.6, 208.0), other_kv=None):
    """`marks`: (policy, ratio) -> 0 or 1 for each problem. `other_kv`: by policy, where it is not `kv` * 4 / ratio."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "comparison.json").write_text(json.dumps({"task": task}))
    (path / "conditions.json").write_text(json.dumps({"all": {"commit": "abc"}, "arms": {}}))
    columns = (*COLUMNS, "accuracy_low", "accuracy_high", "mean_entries", "peak_entries", "held_entries")
    names = {}
    with (path / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for (policy, ratio), each in marks.items():
            share = sum(each) / len(each)
            entries = (other_kv or {}).get(policy, [value / (ratio / 4) for value in kv])
            if policy == "full":
                entries = (279.0, 557.0)
            name = names[policy, ratio] = "full" if policy == "full" else f"{policy}-P64-R32-c{ratio:g}"
            low, high = max(0.0, share - 0.04), min(1.0, share + 0.04)
            head = [name, policy, 64, 32, ratio, 0, len(each)]
            writer.writerow([*head, share, 0.02, low, high, *entries, entries[-1]])
    with (path / "problems.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["problem", *names.values()])
        for i in range(len(next(iter(marks.values())))):
            writer.writerow([f"p{i}", *(each[i] for each in marks.values())])
    return path


def first(right, of=40):
    """Marks of which the first so many are right."""
    return [1] * right + [0] * (of - right)
