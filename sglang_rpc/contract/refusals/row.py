"""One record for every refusal, whatever it looks at: the server's arguments, the model and pools, or one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, ParamSpec

from sglang_rpc.errors import UnsupportedError

P = ParamSpec("P")
OFF = "start with --disable-rpc"


@dataclass(frozen=True)
class Row(Generic[P]):
    """One thing that does not work with RPC."""

    name: str  #: stable: what a program matches, as the last part of the error's code
    predicate: Callable[P, str | None]  #: what was given, in the user's spelling; None: the row does not apply
    why: str
    way_out: str = ""  #: besides switching RPC off
    switches: str = ""  #: flags and variables it looks at, as a user knows them


def refuse(rows: Iterable[Row[P]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Raises UnsupportedError: the sentence of the first row that applies."""
    for row in rows:
        given = row.predicate(*args, **kwargs)
        if given is not None:
            ways = f"{row.way_out}, or {OFF}" if row.way_out else OFF
            raise UnsupportedError(f"{given} does not work with RPC: {row.why}; {ways}", f"unsupported.{row.name}")
