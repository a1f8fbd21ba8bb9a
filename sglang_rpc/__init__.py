"""Reasoning Path Compression inside SGLang: a server that forgets what a reasoning model no longer needs."""

from sglang_rpc.config import RPCConfig
from sglang_rpc.errors import ConfigError, IncompatibleSGLangError, RPCError, UnsupportedError

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "Engine",
    "IncompatibleSGLangError",
    "RPCConfig",
    "RPCError",
    "UnsupportedError",
    "__version__",
]


def __getattr__(name: str) -> object:
    # Engine imports SGLang, which takes seconds: only when it is asked for.
    if name == "Engine":
        from sglang_rpc.engine import Engine

        return Engine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
