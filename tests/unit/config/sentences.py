"""What each refusal says: a sentence with a code."""

import re

import pytest

from sglang_rpc.config import MAX_TOKENS
from sglang_rpc.errors import ConfigError, RPCError

NAN, INF = float("nan"), float("inf")
UP_TO = f"from 1 to {MAX_TOKENS}"
INTERVAL_UP_TO = f"from 2 to {MAX_TOKENS}"  # of an interval of 1 there is nothing to keep and to drop
RATIO = "above 1 and at most the interval"


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RPCError)
    error = caught.value
    assert error.sentence
    assert "\n" not in error.sentence
    assert str(error) == f"{error.sentence} [{error.code}]"
    assert re.fullmatch(r"(config|request)\.[a-z_]+", error.code)
    return error.sentence
