"""The server's configuration and one request's options: what is taken, and what each refusal says."""

import dataclasses
import json
import re

import pytest

from sglang_rpc.config import CONFIG_ENV, MAX_TOKENS, RequestOptions, RPCConfig
from sglang_rpc.errors import ConfigError, RPCError

NAN, INF = float("nan"), float("inf")
UP_TO = f"from 1 to {MAX_TOKENS}"
INTERVAL_UP_TO = f"from 2 to {MAX_TOKENS}"  # of an interval of 1 there is nothing to keep and to drop
RATIO = "above 1 and at most the interval"


@pytest.fixture(autouse=True)
def no_configuration_in_the_environment(monkeypatch):
    monkeypatch.delenv(CONFIG_ENV, raising=False)


def refusal(call, *args, **kwargs) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, RPCError)
    error = caught.value
    assert error.sentence and "\n" not in error.sentence
    assert str(error) == f"{error.sentence} [{error.code}]"
    assert re.fullmatch(r"(config|request)\.[a-z_]+", error.code)
    return error.sentence


# --- the server's configuration ---------------------------------------------------------------------------------


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
    assert (
        message.startswith("ratio must be a number above 1 and at most the interval (4096)") and "got 1000" in message
    )


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
    assert len(message) < 200 and message.endswith("...")


# --- where it comes from ----------------------------------------------------------------------------------------


def test_a_mapping_lies_over_its_base():
    base = RPCConfig(interval=64, window=8, pooling="max")
    assert RPCConfig.from_mapping({"window": 4}, base) == RPCConfig(interval=64, window=4, pooling="max")
    assert RPCConfig.from_mapping({}, base) == base
    assert RPCConfig.from_mapping({}) == RPCConfig()


@pytest.mark.parametrize("name", ["intervall", "Interval", "P", "", 1, None, "budget_step", "x" * 500], ids=repr)
def test_an_unknown_setting_names_the_known_ones(name):
    message = refusal(RPCConfig.from_mapping, {name: 1})
    shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
    assert message.startswith(f"unknown RPC setting {shown}; the settings are interval, window, ratio,")
    assert all(field.name in message for field in dataclasses.fields(RPCConfig))


@pytest.mark.parametrize("values", [None, [], [["interval", 64]], "interval=64", 64, True, NAN], ids=repr)
def test_only_an_object_is_a_configuration(values):
    assert refusal(RPCConfig.from_mapping, values) == f"the RPC configuration must be a JSON object, got {values!r}"


def test_json_text_and_file(tmp_path):
    wanted = RPCConfig(interval=512, ratio=2.5, think_end="</think>")
    text = '  {"interval": 512, "ratio": 2.5, "think_end": "</think>"}\n'
    assert RPCConfig.parse(text) == wanted
    (tmp_path / "rpc.json").write_text(text)
    assert RPCConfig.parse(str(tmp_path / "rpc.json")) == wanted
    assert RPCConfig.parse('{"window": 16}', wanted) == dataclasses.replace(wanted, window=16)


def test_a_file_in_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "rpc.json").write_text('{"interval": 99}')
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RPCConfig.parse("~/rpc.json").interval == 99


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b"interval: 64", "not valid JSON"),
        (b'{"interval": 64,}', "not valid JSON"),
        (b"[1]", "must be a JSON object, got [1]"),
        (b"null", "must be a JSON object, got None"),
        (b'{"interval": NaN}', "interval must be an integer"),
        (b'{"ratio": Infinity}', "ratio must be a number"),
        (b"\xff\xfe\x00", "must be a JSON object or the path of a readable JSON file"),
    ],
)
def test_a_wrong_file(tmp_path, content, said):
    path = tmp_path / "rpc.json"
    path.write_bytes(content)
    assert said in refusal(RPCConfig.parse, str(path))


@pytest.mark.parametrize("text", ["", "   ", "/no/such/file.json", ".", "on", "1", "null", "a\0b"], ids=repr)
def test_neither_json_nor_a_file(text):
    message = refusal(RPCConfig.parse, text)
    assert message.startswith("the RPC configuration must be a JSON object or the path of a readable JSON file, got ")
    assert repr(text) in message


@pytest.mark.parametrize("text", ["{", '{"interval" 64}', "{'interval': 64}", '{"interval": 0x40}', '{"window": 1}}'])
def test_wrong_json_is_shown(text):
    message = refusal(RPCConfig.parse, text)
    assert message.startswith(f"the RPC configuration {text!r} is not valid JSON: ")


@pytest.mark.parametrize("text", [None, "", "  \n"])
def test_an_environment_that_asks_for_nothing(monkeypatch, text):
    if text is not None:
        monkeypatch.setenv(CONFIG_ENV, text)
    assert RPCConfig.from_env() is None


def test_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv(CONFIG_ENV, "{}")
    assert RPCConfig.from_env() == RPCConfig()
    (tmp_path / "rpc.json").write_text('{"interval": 77}')
    monkeypatch.setenv(CONFIG_ENV, str(tmp_path / "rpc.json"))
    assert RPCConfig.from_env() == RPCConfig(interval=77)
    monkeypatch.setenv(CONFIG_ENV, '{"interval": 0}')
    assert refusal(RPCConfig.from_env) == f"{CONFIG_ENV}: interval must be an integer {INTERVAL_UP_TO}, got 0"


def test_round_trip():
    config = RPCConfig(interval=100, ratio=3, scope="all", think_start=7, query_slots=3)
    assert RPCConfig.from_mapping(config.as_dict()) == config
    assert json.loads(config.to_json()) == config.as_dict()
    assert list(config.as_dict()) == [field.name for field in dataclasses.fields(RPCConfig)]


# --- one request ------------------------------------------------------------------------------------------------

SERVER = RPCConfig(interval=128, window=16, ratio=4, scope="think")


@pytest.mark.parametrize("params", [None, {}, {"other": 1}, [], "rpc", 3, {"RPC": {"interval": 0}}], ids=repr)
def test_a_request_that_says_nothing_gets_the_servers_settings(params):
    assert RequestOptions.from_custom_params(params, SERVER) == RequestOptions(True, 128, 16, 4, "think", asked=False)


def test_a_request_changes_what_it_names():
    options = RequestOptions.from_custom_params({"rpc": {}}, SERVER)
    assert options == RequestOptions(True, 128, 16, 4, "think", asked=True)
    given = {"enabled": False, "interval": 64, "window": 1, "ratio": 2.5, "scope": "all"}
    options = RequestOptions.from_custom_params({"rpc": given, "x": 1}, SERVER)
    assert options == RequestOptions(**given, asked=True)
    assert options.budget_step == 25


def test_a_requests_bounds_are_inclusive():
    for given in (
        {"window": 16},
        {"interval": 4},
        {"interval": MAX_TOKENS},
        {"ratio": 128},
        {"interval": 4, "window": 16},
    ):
        assert RequestOptions.from_custom_params({"rpc": given}, SERVER).asked


def test_without_think_tokens_the_default_scope_is_all():
    assert RequestOptions.from_custom_params(None, SERVER, knows_markers=False).scope == "all"
    assert RequestOptions.from_custom_params({"rpc": {}}, SERVER, knows_markers=False).scope == "all"
    message = refusal(RequestOptions.from_custom_params, {"rpc": {"scope": "think"}}, SERVER, knows_markers=False)
    assert message == (
        "custom_params.rpc.scope 'think' needs think tokens, and this server knows none; "
        "use 'all', or start it with --reasoning-parser or --rpc-think-end"
    )


DEEP: list = []
for _ in range(50):
    DEEP = [DEEP]

WINDOW = "from 1 to 16 (the server's --rpc-window)"
MALFORMED = [
    # the options as a whole
    *(
        (value, "custom_params.rpc must be an object such as {'enabled': true}, got ")
        for value in (None, True, False, 0, 1, NAN, "on", '{"interval": 64}', [], [{"interval": 64}], DEEP)
    ),
    # fields that do not exist, or not for a request
    *(
        ({name: 1}, f"custom_params.rpc has no field {name!r}; its fields are enabled, interval, window, ratio, scope")
        for name in (
            "Interval",
            "p",
            "",
            "rpc",
            "kernel_size",
            "pooling",
            "selector",
            "think_end",
            "query_slots",
            "when",
            "high_watermark",
            "low_watermark",
            "pressure",
            "max_ratio",
            "host_backup_gb",
            3,
            None,
        )
    ),
    ({"interval": 64, "x" * 300: 1}, "custom_params.rpc has no field 'xxx"),
    *(
        ({"enabled": value}, f"custom_params.rpc.enabled must be true or false, got {value!r}")
        for value in (1, 0, None, "true", "", NAN, [True], {"enabled": True})
    ),
    *(
        ({"interval": value}, f"custom_params.rpc.interval must be an integer {INTERVAL_UP_TO}, got {value!r}")
        for value in (0, -64, MAX_TOKENS + 1, 2**63, 64.0, NAN, INF, True, False, None, "64", [64], {"p": 64})
    ),
    *(
        ({"window": value}, f"custom_params.rpc.window must be an integer {WINDOW}, got {value!r}")
        for value in (0, -1, 17, 32, 2**63, 8.0, NAN, -INF, True, None, "8", [8], {})
    ),
    *(
        ({"ratio": value}, f"custom_params.rpc.ratio must be a number {RATIO} (128), so")
        for value in (1, 1.0, 0, 0.5, -4, 128.5, 10**30, 10**400, NAN, INF, -INF, True, None, "4", [4], {"c": 4})
    ),
    ({"interval": 2, "ratio": 4}, f"custom_params.rpc.ratio must be a number {RATIO} (2), so"),
    ({"interval": 2}, f"custom_params.rpc.ratio must be a number {RATIO} (2), so"),  # the server's ratio is above it
    *(
        ({"scope": value}, f"custom_params.rpc.scope must be one of think, all, got {value!r}")
        for value in ("", "THINK", "none", None, True, 0, ["think"], {"think": 1})
    ),
    ({"enabled": False, "interval": 0}, "custom_params.rpc.interval must be"),  # switched off does not hide a mistake
]


def test_the_table_of_malformed_requests_is_long_enough():
    assert len(MALFORMED) >= 40


@pytest.mark.parametrize(("given", "said"), MALFORMED, ids=lambda value: str(value)[:40])
def test_a_malformed_request_is_refused_in_one_sentence(given, said):
    message = refusal(RequestOptions.from_custom_params, {"rpc": given}, SERVER)
    assert message.startswith(said)
    assert len(message) < 400


def test_an_integer_too_long_to_print_in_a_request():
    message = refusal(RequestOptions.from_custom_params, {"rpc": {"interval": 10**5000}}, SERVER)
    assert message.startswith(f"custom_params.rpc.interval must be an integer {INTERVAL_UP_TO}, got ")
