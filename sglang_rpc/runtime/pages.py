"""Whole pages of the KV pool, counted in slots."""

from __future__ import annotations


def ceil_align(entries: int, page: int) -> int:
    """Slots of the pages that `entries` from a page's start on lie in."""
    return -(-entries // page) * page
