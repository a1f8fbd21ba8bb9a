"""One record for every refusal, whatever it looks at: the server's arguments, the model and pools, or one request."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, ParamSpec

from sglang_rpc.errors import UnsupportedError

P = ParamSpec("P")
OFF = "start with --disable-rpc"


@dataclass(frozen=True)
class Row(Generic[P]):
    """One thing that does not work with RPC."""

    given: Callable[P, object]  #: what was given, in the user's spelling; anything false: the row does not apply
    why: str
    way_out: str = ""  #: besides switching RPC off
    switches: str = ""  #: flags and variables it looks at, as a user knows them
    name: str = ""  #: stable: what a program matches, as the last part of the error's code


def named(**rows: Row[P]) -> tuple[Row[P], ...]:
    """The rows in their order, each under its name."""
    return tuple(replace(row, name=name) for name, row in rows.items())


def refuse(rows: Iterable[Row[P]], *args: P.args, **kwargs: P.kwargs) -> None:
    """Raises UnsupportedError: the sentence of the first row that applies."""
    for row in rows:
        if given := row.given(*args, **kwargs):
            ways = f"{row.way_out}, or {OFF}" if row.way_out else OFF
            raise UnsupportedError(f"{given} does not work with RPC: {row.why}; {ways}", f"unsupported.{row.name}")
