"""The server's configuration: what is taken, and what each refusal says."""

import dataclasses

import pytest

from sglang_rpc.config import MAX_TOKENS, RPCConfig
from tests.unit.config.sentences import INF, INTERVAL_UP_TO, NAN, UP_TO, refusal


def test_the_defaults_are_the_papers():
    config = RPCConfig()
    assert (config.interval, config.window, config.ratio, config.kernel_size) == (4096, 32, 4, 7)
    assert (config.pooling, config.aggregation, config.selector, config.scope) == ("avg", "all", "official", "think")
    assert (config.think_start, config.think_end, config.query_slots) == (None, None, None)
    assert config.budget_step == 1024


def test_the_defaults_under_pressure():
    config = RPCConfig()
    assert (config.when, config.high_watermark, config.low_watermark) == ("always", 0.8, 0.6)
    assert (config.pressure, config.max_ratio, config.host_backup_gb) == ("early", None, 4)


def test_the_highest_ratio_is_four_times_the_ratio_unless_it_is_given():
    assert RPCConfig().highest_ratio == 16
    assert RPCConfig(ratio=2.5).highest_ratio == 10
    assert RPCConfig(ratio=2.5, max_ratio=3).highest_ratio == 3
    assert RPCConfig(ratio=2.5, max_ratio=2.5).highest_ratio == 2.5


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RPCConfig().interval = 8  # type: ignore[misc]


@pytest.mark.parametrize(
    "values",
    [
        {"interval": 2, "ratio": 2},
        {"interval": MAX_TOKENS, "ratio": MAX_TOKENS},
        {"window": 1},
        {"window": MAX_TOKENS},
        {"interval": 8, "window": 32},  # P < R
        {"ratio": 1.0000001},
        {"ratio": 4096},
        {"kernel_size": 1},
        {"kernel_size": MAX_TOKENS - 1},
        {"pooling": "max"},
        {"aggregation": "group"},
        {"selector": "paper"},
        {"scope": "all"},
        {"think_start": 0, "think_end": 151668},
        {"think_start": "<think>", "think_end": "</think>"},
        {"query_slots": 1},
        {"query_slots": MAX_TOKENS},
        {"when": "pressure"},
        {"high_watermark": 1, "low_watermark": 0},
        {"high_watermark": 0.0, "low_watermark": 0.0},
        {"high_watermark": 1.0, "low_watermark": 1.0},  # both in one place
        {"high_watermark": 0.6},
        {"low_watermark": 0.8},
        {"pressure": "off"},
        {"scoring": "triton"},
        {"pressure": "ratio"},
        {"max_ratio": 4},
        {"max_ratio": 4.5, "ratio": 4.5},
        {"max_ratio": MAX_TOKENS},
        {"host_backup_gb": 0},
        {"host_backup_gb": 1e-9},
        {"host_backup_gb": MAX_TOKENS},
        {"trace": "traces"},
        {"trace": "~/with blanks/é"},
    ],
    ids=str,
)
def test_bounds_are_inclusive(values):
    config = RPCConfig(**values)
    assert {name: getattr(config, name) for name in values} == values
    assert RPCConfig.from_mapping(values) == config
    assert RPCConfig.parse(config.to_json()) == config


COUNTS = ("interval", "window", "kernel_size", "query_slots")
NOT_A_COUNT = (0, -1, MAX_TOKENS + 1, 2**63, 1.0, 4.5, NAN, INF, True, False, "64", "", [64], {"n": 64}, b"64", 1j)


@pytest.mark.parametrize("value", NOT_A_COUNT, ids=repr)
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_must_be_an_integer_in_range(name, value):
    allowed = INTERVAL_UP_TO if name == "interval" else UP_TO
    assert refusal(RPCConfig, **{name: value}) == f"{name} must be an integer {allowed}, got {value!r}"


@pytest.mark.parametrize("name", [c for c in COUNTS if c != "query_slots"])
def test_a_count_cannot_be_null(name):
    allowed = INTERVAL_UP_TO if name == "interval" else UP_TO
    assert refusal(RPCConfig, **{name: None}) == f"{name} must be an integer {allowed}, got None"


@pytest.mark.parametrize("value", [2, 8, MAX_TOKENS])
def test_an_even_kernel_is_refused(value):
    assert (
        refusal(RPCConfig, kernel_size=value) == f"kernel_size must be odd so that pooling stays centred, got {value}"
    )


@pytest.mark.parametrize(
    "value",
    [1, 1.0, 0, 0.5, -4, 4096.5, 4097, NAN, INF, -INF, True, False, "4", None, [4], {"c": 4}, 4 + 0j, 10**30],
    ids=repr,
)
def test_the_ratio_must_be_a_finite_number_that_keeps_and_drops(value):
    assert refusal(RPCConfig, ratio=value) == (
        "ratio must be a number above 1 and at most the interval (4096), so that a compression keeps something and "
        f"drops something, got {value!r}"
    )


def test_a_ratio_too_large_for_a_float_is_refused_like_any_other():
    message = refusal(RPCConfig, ratio=10**400)
    assert message.startswith("ratio must be a number above 1 and at most the interval (4096)")
    assert "got 1000" in message


@pytest.mark.parametrize("value", ["", "a\0b", 1, True, ["traces"], b"traces"], ids=repr)
def test_a_folder_for_traces_must_be_a_path(value):
    assert refusal(RPCConfig, trace=value) == f"trace must be the path of a folder, got {value!r}"


def test_an_integer_too_long_to_print_is_refused_like_any_other():
    assert refusal(RPCConfig, interval=10**5000).startswith(f"interval must be an integer {INTERVAL_UP_TO}, got ")


@pytest.mark.parametrize(
    "value", ["", "AVG", " avg", "mean", None, 0, True, ["avg"], ("avg",), {"avg": 1}, NAN], ids=repr
)
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("pooling", "avg, max"),
        ("aggregation", "all, group"),
        ("selector", "official, paper"),
        ("scope", "think, all"),
        ("when", "always, pressure"),
        ("pressure", "off, early, ratio"),
        ("scoring", "auto, triton, flashinfer, reference"),
    ],
)
def test_a_choice_must_be_one_of_its_words(name, allowed, value):
    assert refusal(RPCConfig, **{name: value}) == f"{name} must be one of {allowed}, got {value!r}"


#: name -> its bounds, with the defaults of the others, and a reason if there is one
NUMBERS = {
    "high_watermark": (0, 1, ""),
    "low_watermark": (0, 1, ""),
    "max_ratio": (4, MAX_TOKENS, " (the ratio is its least)"),
    "host_backup_gb": (0, MAX_TOKENS, ""),
}
NOT_A_NUMBER = (NAN, INF, -INF, True, False, "1", "", [1], {"n": 1}, b"1", 1j, -1, -1e-9, MAX_TOKENS + 1, 10**30)


@pytest.mark.parametrize("value", NOT_A_NUMBER, ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_must_be_finite_and_in_range(name, value):
    low, high, why = NUMBERS[name]
    message = refusal(RPCConfig, **{name: value})
    # How many digits of the highest are written is not proven here.
    assert message.startswith(f"{name} must be a number from {low} to {high if high == 1 else ''}")
    assert message.endswith(f"{why}, got {value!r}")


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "max_ratio"])
def test_a_number_cannot_be_null(name):
    assert refusal(RPCConfig, **{name: None}).endswith(", got None")


@pytest.mark.parametrize("name", ["high_watermark", "low_watermark"])
@pytest.mark.parametrize("value", [1.0001, 2, 80])
def test_a_watermark_is_a_share(name, value):
    assert refusal(RPCConfig, **{name: value}) == f"{name} must be a number from 0 to 1, got {value}"


@pytest.mark.parametrize(
    ("values", "high", "low"),
    [
        ({"high_watermark": 0.5}, "0.5", "0.6"),  # the default of the other is above it
        ({"low_watermark": 0.9}, "0.8", "0.9"),
        ({"high_watermark": 0.3, "low_watermark": 0.31}, "0.3", "0.31"),
        ({"high_watermark": 0, "low_watermark": 1}, "0", "1"),
    ],
    ids=str,
)
def test_the_low_watermark_is_not_above_the_high_one(values, high, low):
    message = refusal(RPCConfig, **values)
    assert message == f"low_watermark must not be above the high_watermark ({high}), got {low}"


@pytest.mark.parametrize(("ratio", "highest"), [(4, 3), (4, 3.999), (4, 1), (8, 4), (2.5, 2)])
def test_the_highest_ratio_is_not_below_the_ratio(ratio, highest):
    message = refusal(RPCConfig, ratio=ratio, max_ratio=highest)
    assert message.startswith(f"max_ratio must be a number from {ratio} to ")
    assert message.endswith(f" (the ratio is its least), got {highest}")


def test_a_number_too_large_for_a_float_is_refused_like_any_other():
    assert refusal(RPCConfig, host_backup_gb=10**400).startswith("host_backup_gb must be a number from 0 to ")
    assert refusal(RPCConfig, max_ratio=10**5000).startswith("max_ratio must be a number from 4 to ")


@pytest.mark.parametrize("value", ["", -1, True, False, 1.5, NAN, ["<think>"], {"id": 3}, b"<think>"], ids=repr)
@pytest.mark.parametrize("name", ["think_start", "think_end"])
def test_a_marker_must_be_text_or_a_token_id(name, value):
    assert refusal(RPCConfig, **{name: value}) == f"{name} must be a non-empty text or a token id, got {value!r}"


def test_a_long_value_is_shown_shortened():
    message = refusal(RPCConfig, pooling="x" * 100_000)
    assert len(message) < 200
    assert message.endswith("...")
