"""What values a setting takes: one Kind per sort of value, for validation, the command line and the reference page."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sglang_rpc.errors import ConfigError

#: The largest interval, window or kernel size taken; beyond any context length, below any integer overflow.
MAX_TOKENS = 2**24


@dataclass(frozen=True)
class Kind:
    """The values that a setting takes."""

    allowed: str  #: completes "must be ..."
    accepts: Callable[[Any], bool]
    parse: Callable[[str], Any] = str  #: from one word of the command line
    words: tuple[str, ...] | None = None  #: all its values, where they are few
    many: bool = False  #: whether the command line takes several words

    def check(self, name: str, value: Any, request: bool = False, note: str = "") -> None:
        """Raises ConfigError, which names the setting (of one request, if so), what is allowed and the value."""
        if not self.accepts(value):
            where, family = ("custom_params.rpc.", "request") if request else ("", "config")
            raise ConfigError(f"{where}{name} must be {self.allowed}, got {show(value)}{note}", f"{family}.{name}")


def show(value: Any) -> str:
    """The value as the user wrote it, short enough for one sentence."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:77] + "..."


def whole(value: Any) -> Any:
    """An integral float as the integer it stands for; anything else as it is.

    A request that travels through gRPC has floats alone: protobuf's Struct makes 64 into 64.0.
    """
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_TOKENS else value


def _is_integer(value: Any) -> bool:
    # bool is an int in Python; true for a token count is a mistake worth naming.
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # An int of any size is finite, and may be too large for isfinite to say so.
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _is_token(value: Any) -> bool:
    return (_is_integer(value) and value >= 0) or (isinstance(value, str) and value != "")


def _token(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def integer(low: int, high: int = MAX_TOKENS, why: str = "") -> Kind:
    """An integer from `low` to `high`; `why` completes the sentence."""
    return Kind(f"an integer from {low} to {high}{why}", lambda v: _is_integer(v) and low <= v <= high, int)


def number(low: float, high: float, why: str = "") -> Kind:
    """A finite number from `low` to `high`; `why` completes the sentence."""
    return Kind(f"a number from {low:.12g} to {high:.12g}{why}", lambda v: _is_number(v) and low <= v <= high, float)


def ratio_of(interval: int) -> Kind:
    """A ratio beside this interval: above 1, at most the interval."""
    return Kind(
        f"a number above 1 and at most the interval ({interval}), so that a compression keeps something and drops "
        "something",
        lambda v: _is_number(v) and 1 < v <= interval,
        float,
    )


def choice(words: tuple[str, ...]) -> Kind:
    """One of these words."""
    return Kind(f"one of {', '.join(words)}", lambda v: isinstance(v, str) and v in words, words=words)


TOKEN = Kind("a non-empty text or a token id", _is_token, _token)
TOKENS = Kind(
    "a list of non-empty texts or token ids",
    lambda v: isinstance(v, list | tuple) and len(v) > 0 and all(map(_is_token, v)),
    _token,
    many=True,
)
FOLDER = Kind("the path of a folder", lambda v: isinstance(v, str) and v != "" and "\0" not in v)
#: Which names there are, policy/resolve.py knows.
POLICY = Kind("the name of a policy", lambda v: isinstance(v, str) and v != "")
