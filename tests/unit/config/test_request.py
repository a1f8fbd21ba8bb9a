"""One request's options: what is taken, and what each refusal says."""

import pytest

from sglang_rpc.config import MAX_TOKENS, RequestOptions, RPCConfig
from tests.unit.config.sentences import INF, INTERVAL_UP_TO, NAN, RATIO, refusal

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


def test_an_integral_float_is_the_integer_that_it_stands_for():
    """Through gRPC every number comes as a float."""
    given = {"enabled": False, "interval": 64.0, "window": 8.0, "ratio": 4.0, "min_kept": 0.0, "scope": "all"}
    options = RequestOptions.from_custom_params({"rpc": given}, SERVER)
    assert options == RequestOptions(False, 64, 8, 4, "all", asked=True)
    assert [type(value) for value in (options.interval, options.window, options.min_kept)] == [int, int, int]
    assert given["interval"] == 64.0
    assert isinstance(given["interval"], float), "the request's own options stay as they came"


@pytest.mark.parametrize("value", [1e300, float(2**60), -64.0, 0.0, 64.5])
def test_a_float_out_of_range_is_refused_as_it_was_written(value):
    message = refusal(RequestOptions.from_custom_params, {"rpc": {"interval": value}}, SERVER)
    said = int(value) if abs(value) <= MAX_TOKENS and value.is_integer() else value
    assert message == f"custom_params.rpc.interval must be an integer {INTERVAL_UP_TO}, got {said!r}"


def test_a_request_may_leave_reuse_out_but_not_bring_it_in():
    """What a server without reuse cannot do was not checked when it started."""
    assert RequestOptions.from_custom_params({"rpc": {"reuse": "off"}}, SERVER).reuse == "off"
    message = refusal(RequestOptions.from_custom_params, {"rpc": {"reuse": "share"}}, SERVER)
    assert message == "custom_params.rpc.reuse must be off (the server's --rpc-reuse), got 'share'"
    sharing = RPCConfig(reuse="share")
    assert RequestOptions.from_custom_params(None, sharing).reuse == "share"
    assert RequestOptions.from_custom_params({"rpc": {"reuse": "off"}}, sharing).reuse == "off"
    assert RequestOptions.from_custom_params({"rpc": {"reuse": "continue"}}, sharing).reuse == "continue"
    message = refusal(RequestOptions.from_custom_params, {"rpc": {"reuse": "always"}}, sharing)
    assert message == "custom_params.rpc.reuse must be one of off, share, continue, got 'always'"


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
        (
            {name: 1},
            f"custom_params.rpc has no field {name!r}; "
            "its fields are enabled, interval, window, ratio, min_kept, scope",
        )
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
        for value in (0, -64, MAX_TOKENS + 1, 2**63, 64.5, NAN, INF, True, False, None, "64", [64], {"p": 64})
    ),
    *(
        ({"window": value}, f"custom_params.rpc.window must be an integer {WINDOW}, got {value!r}")
        for value in (0, -1, 17, 32, 2**63, 8.5, NAN, -INF, True, None, "8", [8], {})
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
