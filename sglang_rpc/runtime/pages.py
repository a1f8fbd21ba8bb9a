"""Whole pages of the KV pool, counted in slots."""

from typing import TypeVar

import numpy as np

Entries = TypeVar("Entries", int, np.ndarray)


def ceil_align(entries: Entries, page: int) -> Entries:
    """Slots of the pages that `entries` from a page's start on lie in."""
    return -(-entries // page) * page
