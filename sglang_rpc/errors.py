"""The errors sglang-rpc raises. Each message is one sentence: what was given, what is allowed, what to do."""


class RPCError(Exception):
    """Base of every error raised by sglang-rpc."""


class ConfigError(RPCError, ValueError):
    """A setting, for the server or for one request, is out of range or of the wrong type."""


class UnsupportedError(RPCError, ValueError):
    """RPC cannot work together with a feature that is switched on."""


class IncompatibleSGLangError(RPCError):
    """A place in SGLang that RPC attaches to is missing or is not what this version was built for."""
