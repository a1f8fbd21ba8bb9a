"""A refusal inside a scheduler process ends it with a sentence, and its parent learns that from the exit code."""

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from sglang_rpc.errors import RPCError

#: Exit code (EX_CONFIG) of a scheduler that RPC refuses to run in; its parent's error quotes it.
REFUSED = 78

P = ParamSpec("P")
R = TypeVar("R")


def ends_if_refused(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, but an RPCError in it ends this process at once, with the sentence and no traceback.

    SGLang would answer the exception with a traceback and kill its parent.
    """

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except RPCError as error:
            print(f"sglang-rpc: {error}", file=sys.stderr, flush=True)
            os._exit(REFUSED)  # nothing has been served, and other threads must not keep the process

    return checked


def was_refused(error: RuntimeError) -> bool:
    """Whether this error of SGLang's start-up means that a scheduler ended with a refusal."""
    return f"(exit code: {REFUSED})" in str(error)
