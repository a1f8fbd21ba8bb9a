"""Refusing the server's arguments: how a row is checked. The rows are in `server_rows.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.refusals.wording import OFF, sentence
from sglang_rpc.errors import IncompatibleSGLangError, UnsupportedError


class Arguments:
    """The resolved server arguments by name. Raises IncompatibleSGLangError for a name that SGLang lacks."""

    def __init__(self, source: Any):
        self._source = source

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._source, name)
        except AttributeError:
            raise IncompatibleSGLangError(
                f"this SGLang's ServerArgs has no {name}, which RPC must check before it starts; "
                f"install sglang==0.5.23, or {OFF}"
            ) from None


@dataclass(frozen=True)
class ServerRow:
    """One refusal that the server's arguments or environment show."""

    name: str
    switches: str  #: the flags and variables it looks at, as a user knows them
    predicate: Callable[[Arguments], str | None]  #: what was given, in the user's spelling; None: nothing to refuse
    why: str
    way_out: str

    def sentence(self, given: str) -> str:
        return sentence(given, self.why, self.way_out)


def refuse_server_args(server_args: Any, rpc_config: RPCConfig) -> None:
    """Check the arguments as SGLang resolved them; nothing has been spawned yet.

    Raises:
        UnsupportedError: the sentence of the first row that applies.
        IncompatibleSGLangError: this SGLang lacks an argument that has to be checked.
    """
    from sglang.srt.arg_groups.overrides import resolving_view

    refuse_arguments(resolving_view(server_args))


def refuse_arguments(arguments: Any) -> None:
    """As `refuse_server_args`, on an object whose attributes are the final values. Needs no SGLang."""
    from sglang_rpc.contract.refusals.server_rows import SERVER_ROWS

    view = Arguments(arguments)
    for row in SERVER_ROWS:
        given = row.predicate(view)
        if given is not None:
            raise UnsupportedError(row.sentence(given))
