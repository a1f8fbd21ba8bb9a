"""Configuration of Reasoning Path Compression (arXiv 2505.13866), for a server and for one request.

Precedence, lowest first: the defaults here, `SGLANG_RPC_CONFIG`, `--rpc-config`, the single `--rpc-*` flags,
and for one request its `custom_params: {"rpc": {...}}`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sglang_rpc.errors import ConfigError

#: Set to a JSON object (or the path of a JSON file) it switches RPC on for a plain `sglang.Engine`; `{}` = defaults.
CONFIG_ENV = "SGLANG_RPC_CONFIG"

POOLINGS = ("avg", "max")
AGGREGATIONS = ("all", "group")
SELECTORS = ("official", "paper")
SCOPES = ("think", "all")
WHEN = ("always", "pressure")
PRESSURES = ("off", "early", "ratio")
SCORINGS = ("auto", "triton", "flashinfer", "reference")

#: The largest interval, window or kernel size taken; beyond any context length, below any integer overflow.
MAX_TOKENS = 2**24


@dataclass(frozen=True)
class RPCConfig:
    """What a server does to the KV cache of the tokens it generates.

    Raises:
        ConfigError: a value is of the wrong type or out of range; the sentence names the field.
    """

    interval: int = 4096  #: P: generated tokens between two compressions
    window: int = 32  #: R: the newest tokens, whose queries score the others and which are always kept
    ratio: float = 4  #: c: of every P candidates, int(P / c) are kept
    kernel_size: int = 7  #: width of the pooling over neighbouring scores; odd
    pooling: str = "avg"  #: avg or max, over the scores before selection
    aggregation: str = "all"  #: all: one kept set a layer; group: one per layer and KV head
    selector: str = "official"  #: official: the newest R-1 queries, the newest counted twice; paper: the last R
    policy: str = "rpc"  #: which candidates are kept; a name that sglang_rpc/policy/resolve.py knows
    policy_seed: int = 0  #: of policies that draw lots
    gist_tokens: tuple[str | int, ...] | None = None  #: of policy lightthinker: the model's, texts or ids, in order
    gist_resume: str | int | None = None  #: of policy lightthinker: what may follow them, and is kept; None: nothing
    scope: str = "think"  #: think: compress only while the model thinks; all: every generated token
    think_start: str | int | None = None  #: text or token id that opens a think segment; None: the reasoning parser's
    think_end: str | int | None = None  #: text or token id that closes it; None: the reasoning parser's
    query_slots: int | None = None  #: requests whose last R queries can be held at once; None: sized from the KV pool
    when: str = "always"  #: always: at every due date; pressure: only while the pool is under memory pressure
    high_watermark: float = 0.8  #: share of the pool in use at which it counts as under memory pressure
    low_watermark: float = 0.6  #: share at which it no longer does
    pressure: str = "early"  #: before retracting, compress earlier (early), or at a higher c too (ratio)
    max_ratio: float | None = None  #: the highest ratio that `pressure="ratio"` may use; None: four times the ratio
    scoring: str = "auto"  #: triton: kernels, on a GPU; flashinfer: these, with its log-sum-exp; reference: PyTorch
    host_backup_gb: float = 4  #: host memory for the KV of retracted requests, 10^9 bytes a rank; 0: none is kept
    trace: str | None = None  #: folder for a file a request that says what each compression kept; None: none is written

    def __post_init__(self) -> None:
        _integer("interval", self.interval, 2, MAX_TOKENS)
        _integer("window", self.window, 1, MAX_TOKENS)
        _ratio(self.ratio, self.interval)
        _integer("kernel_size", self.kernel_size, 1, MAX_TOKENS)
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size must be odd so that pooling stays centred, got {self.kernel_size}")
        _choice("pooling", self.pooling, POOLINGS)
        _choice("aggregation", self.aggregation, AGGREGATIONS)
        _choice("selector", self.selector, SELECTORS)
        if not isinstance(self.policy, str) or not self.policy:
            raise ConfigError(f"policy must be the name of a policy, got {_show(self.policy)}")
        _integer("policy_seed", self.policy_seed, 0, 2**31)
        if self.gist_tokens is not None:
            if not isinstance(self.gist_tokens, list | tuple) or not self.gist_tokens:
                raise ConfigError(f"gist_tokens must be a list of texts or token ids, got {_show(self.gist_tokens)}")
            for token in self.gist_tokens:
                if token is None:
                    raise ConfigError(f"gist_tokens must be texts or token ids, got {_show(self.gist_tokens)}")
                _marker("gist_tokens", token)
            object.__setattr__(self, "gist_tokens", tuple(self.gist_tokens))  # JSON has lists
        _marker("gist_resume", self.gist_resume)
        _choice("scope", self.scope, SCOPES)
        _marker("think_start", self.think_start)
        _marker("think_end", self.think_end)
        if self.query_slots is not None:
            _integer("query_slots", self.query_slots, 1, MAX_TOKENS)
        _choice("when", self.when, WHEN)
        _number("high_watermark", self.high_watermark, 0, 1)
        _number("low_watermark", self.low_watermark, 0, 1)
        if self.low_watermark > self.high_watermark:
            raise ConfigError(
                f"low_watermark must not be above the high_watermark ({self.high_watermark:g}), "
                f"got {self.low_watermark:g}"
            )
        _choice("pressure", self.pressure, PRESSURES)
        _choice("scoring", self.scoring, SCORINGS)
        if self.max_ratio is not None:
            _number("max_ratio", self.max_ratio, self.ratio, MAX_TOKENS, " (the ratio is its least)")
        _number("host_backup_gb", self.host_backup_gb, 0, MAX_TOKENS)
        if self.trace is not None and (not isinstance(self.trace, str) or not self.trace or "\0" in self.trace):
            raise ConfigError(f"trace must be the path of a folder, got {_show(self.trace)}")

    @classmethod
    def from_mapping(cls, values: Any, base: RPCConfig | None = None) -> RPCConfig:
        """`base` (default: the defaults) with `values` laid over it. Raises ConfigError on an unknown field."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"the RPC configuration must be a JSON object, got {_show(values)}")
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown RPC setting {_show(name)}; the settings are {', '.join(known)}")
        return replace(base or cls(), **values)

    @classmethod
    def parse(cls, text: str, base: RPCConfig | None = None) -> RPCConfig:
        """From JSON text (it starts with `{`) or the path of a JSON file. Raises ConfigError."""
        source = text.strip()
        if not source.startswith("{"):
            try:
                with open(os.path.expanduser(source), encoding="utf-8") as file:
                    source = file.read()
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"the RPC configuration must be a JSON object or the path of a readable JSON file, "
                    f"got {_show(text)} ({error})"
                ) from error
        try:
            values = json.loads(source)
        except ValueError as error:
            raise ConfigError(f"the RPC configuration {_show(text)} is not valid JSON: {error}") from error
        return cls.from_mapping(values, base)

    @classmethod
    def from_env(cls) -> RPCConfig | None:
        """The configuration that `SGLANG_RPC_CONFIG` asks for; None if it is not set. Raises ConfigError."""
        text = os.environ.get(CONFIG_ENV)
        if text is None or not text.strip():
            return None
        try:
            return cls.parse(text)
        except ConfigError as error:
            raise ConfigError(f"{CONFIG_ENV}: {error}") from error

    @property
    def budget_step(self) -> int:
        """T = int(P / c): entries that each compression adds to the budget."""
        return int(self.interval / self.ratio)

    @property
    def highest_ratio(self) -> float:
        """What a request of the server's ratio may be compressed at to avoid a retraction."""
        return 4 * self.ratio if self.max_ratio is None else self.max_ratio

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.as_dict())


@dataclass(frozen=True)
class RequestOptions:
    """One request's settings: the server's, with what its `custom_params.rpc` changes.

    The pooling, aggregation and selector are the server's alone: one kernel launch serves all due requests.
    """

    enabled: bool
    interval: int  #: P
    window: int  #: R
    ratio: float  #: c
    scope: str
    asked: bool = False  #: the request itself carried RPC options, so its response carries a receipt

    @property
    def budget_step(self) -> int:
        """T = int(P / c)."""
        return int(self.interval / self.ratio)

    @classmethod
    def from_custom_params(cls, custom_params: Any, server: RPCConfig, *, knows_markers: bool = True) -> RequestOptions:
        """Options of a request with these `custom_params` (None, or a mapping that may hold "rpc").

        Args:
            server: the server's configuration, the default of every field and the bound of `window`.
            knows_markers: whether think tokens are known, without which `scope: think` cannot be honoured.

        Raises:
            ConfigError: names the field, the value and what is allowed.
        """
        default_scope = server.scope if knows_markers else "all"
        if not isinstance(custom_params, Mapping) or "rpc" not in custom_params:
            return cls(True, server.interval, server.window, server.ratio, default_scope)
        given = custom_params["rpc"]
        if not isinstance(given, Mapping):
            raise ConfigError(f"custom_params.rpc must be an object such as {{'enabled': true}}, got {_show(given)}")
        allowed = ("enabled", "interval", "window", "ratio", "scope")
        for name in given:
            if name not in allowed:
                raise ConfigError(f"custom_params.rpc has no field {_show(name)}; its fields are {', '.join(allowed)}")
        where = "custom_params.rpc."
        enabled = given.get("enabled", True)
        if not isinstance(enabled, bool):
            raise ConfigError(f"{where}enabled must be true or false, got {_show(enabled)}")
        interval = given.get("interval", server.interval)
        window = given.get("window", server.window)
        ratio = given.get("ratio", server.ratio)
        scope = given.get("scope", default_scope)
        if server.gist_tokens is not None:
            for name in ("interval", "window", "ratio"):
                if name in given:
                    raise ConfigError(
                        f"{where}{name} has no meaning here: this server's policy evicts a thought when its gist "
                        "tokens are there; leave it out"
                    )
        _integer(f"{where}interval", interval, 2, MAX_TOKENS)
        _integer(f"{where}window", window, 1, server.window, " (the server's --rpc-window)")
        _ratio(ratio, interval, where, "" if "ratio" in given else " (the server's: send a ratio with this interval)")
        _choice(f"{where}scope", scope, SCOPES)
        if scope == "think" and not knows_markers:
            raise ConfigError(
                f"{where}scope 'think' needs think tokens, and this server knows none; "
                "use 'all', or start it with --reasoning-parser or --rpc-think-end"
            )
        return cls(enabled, interval, window, ratio, scope, asked=True)


def _show(value: Any) -> str:
    """The value as the user wrote it, short enough for one sentence."""
    try:
        text = repr(value)
    except ValueError:  # an int of more digits than Python prints
        text = f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 80 else text[:77] + "..."


def _integer(name: str, value: Any, low: int, high: int, why: str = "") -> None:
    # bool is an int in Python; true for a token count is a mistake worth naming.
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be an integer from {low} to {high}{why}, got {_show(value)}")


def _number(name: str, value: Any, low: float, high: float, why: str = "") -> None:
    number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
    if not number or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low:.12g} to {high:.12g}{why}, got {_show(value)}")


def _ratio(value: Any, interval: int, where: str = "", why: str = "") -> None:
    # An int of any size is finite, and may be too large for isfinite to say so.
    number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
    if not number or not 1 < value <= interval:
        raise ConfigError(
            f"{where}ratio must be a number above 1 and at most the interval ({interval}), so that a compression "
            f"keeps something and drops something, got {_show(value)}{why}"
        )


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {_show(value)}")


def _marker(name: str, value: Any) -> None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a non-empty text or a token id, got {_show(value)}")
