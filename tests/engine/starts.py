"""How many engines and servers this process has started, by kind; tests/conftest.py prints the sum of all workers."""

from __future__ import annotations

from collections import Counter

counts: Counter[str] = Counter()
