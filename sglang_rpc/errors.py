"""The errors that sglang-rpc raises, each with a code for programs.

RPCError                    "error"
|- ConfigError              "config.<setting>": a setting of the server; "request.<option>": one request (HTTP 400)
|- UnsupportedError         "unsupported.<name>": a row of docs/limits.md, or what else cannot be combined with RPC
`- IncompatibleSGLangError  "incompatible.<what>": SGLang is not what RPC was built for

A message is one sentence (what was given, what is allowed, what to do) and then the code in brackets, so that
`re.search(r"\\[([a-z_.]+)\\]$", message)` finds it in a log line or in the body of an HTTP 400. Codes stay;
sentences may change.
"""

from typing import Self


class RPCError(Exception):
    """Base of every error raised by sglang-rpc.

    Args:
        sentence: what a user reads.
        code: what a program matches; None: the family's own, such as "config".
    """

    code = "error"

    def __init__(self, sentence: str, code: str | None = None):
        self.sentence = sentence
        self.code = code or type(self).code
        super().__init__(sentence)

    def __str__(self) -> str:
        return f"{self.sentence} [{self.code}]"

    def prefixed(self, where: str) -> Self:
        """The same error, saying first where the value came from."""
        return type(self)(where + self.sentence, self.code)


class ConfigError(RPCError, ValueError):
    """A setting, for the server or for one request, is out of range or of the wrong type."""

    code = "config"


class UnsupportedError(RPCError, ValueError):
    """RPC cannot work together with a feature that is switched on."""

    code = "unsupported"


class IncompatibleSGLangError(RPCError):
    """A place in SGLang that RPC attaches to is missing or is not what this version was built for."""

    code = "incompatible"
