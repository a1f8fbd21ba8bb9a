"""Configuration of Reasoning Path Compression (arXiv 2505.13866), for a server and for one request.

Precedence, lowest first: the defaults here, `SGLANG_RPC_CONFIG`, `--rpc-config`, the single `--rpc-*` flags,
and for one request its `custom_params: {"rpc": {...}}`.

A field of RPCConfig carries all that is said of it: default, bounds, help. Validation, the flags of the command line
and docs/reference.md are made from it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from sglang_rpc.errors import ConfigError
from sglang_rpc.kinds import (
    FOLDER,
    MAX_TOKENS,
    POLICY,
    TOKEN,
    TOKENS,
    Kind,
    choice,
    integer,
    number,
    ratio_of,
    show,
    whole,
)

#: Set to a JSON object (or the path of a JSON file) it switches RPC on for a plain `sglang.Engine`; `{}` = defaults.
CONFIG_ENV = "SGLANG_RPC_CONFIG"

POOLINGS = ("avg", "max")


@dataclass(frozen=True)
class Setting:
    """What is said of one field of RPCConfig."""

    kind: Kind | Callable[[RPCConfig], Kind]  #: a function where its bounds are other settings
    help: str
    metavar: str | None = None
    unset: str = ""  #: what None stands for, where it is the default

    def kind_in(self, config: RPCConfig) -> Kind:
        """The values it takes beside the other settings of `config`."""
        return self.kind if isinstance(self.kind, Kind) else self.kind(config)


def _setting(
    default: Any, kind: Kind | Callable[[RPCConfig], Kind], help: str, metavar: str | None = None, unset: str = ""
) -> Any:
    return field(default=default, metadata={"setting": Setting(kind, help, metavar, unset)})


@dataclass(frozen=True)
class RPCConfig:
    """What a server does to the KV cache of the tokens it generates.

    Raises ConfigError, which names the field, if a value is of the wrong type or out of range.
    """

    interval: int = _setting(4096, integer(2), "generated tokens between two compressions", "P")
    window: int = _setting(32, integer(1), "newest tokens: always kept, and their queries score the others", "R")
    ratio: float = _setting(4, lambda c: ratio_of(c.interval), "of every P candidates, int(P / C) are kept", "C")
    min_kept: int = _setting(
        0, integer(0), "candidates that every compression keeps at least, where c leaves fewer; 0: as c says", "F"
    )
    kernel_size: int = _setting(7, integer(1), "width of the pooling over neighbouring scores; odd", "K")
    pooling: str = _setting("avg", choice(POOLINGS), "pooling of the scores before selection")
    aggregation: str = _setting(
        "all", choice(("all", "group")), "all: one kept set per layer; group: per layer and KV head"
    )
    selector: str = _setting(
        "official",
        choice(("official", "paper")),
        "official: the newest R-1 queries with the newest counted twice, as in the authors' code; paper: the last R",
    )
    policy: str = _setting(
        "rpc",
        POLICY,
        "which candidates are kept: a built-in policy, the name that an installed package registers, or "
        "package.module:function; rpc is the paper's",
        "NAME",
    )
    policy_seed: int = _setting(0, integer(0, 2**31), "seed of policies that draw at random", "N")
    gist_tokens: tuple[str | int, ...] | None = _setting(
        None, TOKENS, "for policy lightthinker: texts or ids of the model's gist tokens, in order", "TOKEN", "none"
    )
    gist_resume: str | int | None = _setting(
        None, TOKEN, "for policy lightthinker: text or id of what may follow them, and is kept", "TOKEN", "nothing"
    )
    scope: str = _setting(
        "think", choice(("think", "all")), "think: compress only what the model thinks; all: all it generates"
    )
    think_start: str | int | None = _setting(
        None, TOKEN, "text or token id that opens a reasoning segment", "TOKEN", "the reasoning parser's"
    )
    think_end: str | int | None = _setting(
        None, TOKEN, "text or token id that closes a reasoning segment", "TOKEN", "the reasoning parser's"
    )
    query_slots: int | None = _setting(
        None,
        integer(1),
        "requests whose last R queries can be held at once; the others are compressed late, in turn",
        "N",
        "as many as can be due together, in at most 10% of the pool's memory",
    )
    when: str = _setting(
        "always",
        choice(("always", "pressure")),
        "always: compress at every due date; pressure: only while the pool is under memory pressure",
    )
    high_watermark: float = _setting(
        0.8, number(0, 1), "share of the pool in use at which it counts as under memory pressure", "SHARE"
    )
    low_watermark: float = _setting(0.6, number(0, 1), "share of the pool in use at which it no longer does", "SHARE")
    pressure: str = _setting(
        "early",
        choice(("off", "early", "ratio")),
        "before a request is retracted for want of memory, compress others: off: never; early: before their due date; "
        "ratio: and, if that is not enough, at up to --rpc-max-ratio",
    )
    max_ratio: float | None = _setting(
        None,
        lambda c: number(c.ratio, MAX_TOKENS, " (the ratio is its least)"),
        "highest ratio under --rpc-pressure ratio",
        "C",
        "4 x --rpc-ratio",
    )
    scoring: str = _setting(
        "auto",
        choice(("auto", "triton", "flashinfer", "reference")),
        "triton: kernels, on a GPU; flashinfer: these, with FlashInfer's log-sum-exp; reference: PyTorch; "
        "auto: triton where it can run",
    )
    window_pool: str = _setting(
        "plain",
        choice(("plain", "swa")),
        "of a model with sliding windows, plain: --disable-hybrid-swa-memory is on where the model can do without a KV "
        "pool for its windows, and compressions shrink them too; swa: SGLang chooses, and keeps just the windows there",
    )
    reuse: str = _setting(
        "off",
        choice(("off", "share", "continue")),
        "share: a request takes over the compressed KV of an earlier one, if its prompt begins with that one's prompt "
        "and output; all such requests share the entries; continue: and its due dates go on from there, its first "
        "compression of them in a copy of its own; off: its prompt is prefilled whole",
    )
    reuse_text: float = _setting(
        0,
        number(0, MAX_TOKENS),
        "memory per process that tokenizes, in 10^6 bytes, for prompts and outputs as text and ids: a prompt that is "
        "text, and begins with them, gets the ids that were generated; needs reuse; 0: none, ids are the tokenizer's",
        "MB",
    )
    host_backup_gb: float = _setting(
        4,
        number(0, MAX_TOKENS),
        "host memory per rank, in 10^9 bytes, set aside for the KV of retracted requests; 0: prefill them again",
        "GB",
    )
    trace: str | None = _setting(
        None,
        FOLDER,
        "folder for one file per compressed request, with its text and what each layer kept",
        "DIR",
        "none is written",
    )

    def __post_init__(self) -> None:
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            if value is not None or not setting.unset:
                setting.kind_in(self).check(name, value)
        if self.kernel_size % 2 == 0:
            raise ConfigError(
                f"kernel_size must be odd so that pooling stays centred, got {self.kernel_size}", "config.kernel_size"
            )
        if self.low_watermark > self.high_watermark:
            raise ConfigError(
                f"low_watermark must not be above the high_watermark ({self.high_watermark:g}), "
                f"got {self.low_watermark:g}",
                "config.low_watermark",
            )
        if self.reuse_text and self.reuse == "off":
            raise ConfigError(
                f"reuse_text must be 0 where reuse is off, got {self.reuse_text:g}; set reuse to share or continue",
                "config.reuse_text",
            )
        if self.gist_tokens is not None:
            object.__setattr__(self, "gist_tokens", tuple(self.gist_tokens))  # JSON has lists

    @classmethod
    def from_mapping(cls, values: Any, base: RPCConfig | None = None) -> RPCConfig:
        """`base` (default: the defaults) with `values` laid over it. Raises ConfigError on an unknown field."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"the RPC configuration must be a JSON object, got {show(values)}", "config.source")
        for name in values:
            if name not in SETTINGS:
                known = ", ".join(SETTINGS)
                raise ConfigError(f"unknown RPC setting {show(name)}; the settings are {known}", "config.unknown")
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
                    f"got {show(text)} ({error})",
                    "config.source",
                ) from error
        try:
            values = json.loads(source)
        except ValueError as error:
            raise ConfigError(
                f"the RPC configuration {show(text)} is not valid JSON: {error}", "config.source"
            ) from error
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
            raise error.prefixed(f"{CONFIG_ENV}: ") from error

    @property
    def budget_step(self) -> int:
        """T = int(P / c): entries that each compression adds to the budget."""
        return int(self.interval / self.ratio)

    @property
    def highest_ratio(self) -> float:
        """What a request of the server's ratio may be compressed at to avoid a retraction."""
        return 4 * self.ratio if self.max_ratio is None else self.max_ratio

    def as_dict(self) -> dict[str, Any]:
        """Every setting by name, as JSON has it."""
        return asdict(self)

    def to_json(self) -> str:
        """Every setting, as `parse` reads it."""
        return json.dumps(self.as_dict())


#: Field of RPCConfig -> what is said of it, in their order.
SETTINGS: dict[str, Setting] = {f.name: f.metadata["setting"] for f in fields(RPCConfig)}


def flag(name: str) -> str:
    """The command line's name of a setting."""
    return f"--rpc-{name.replace('_', '-')}"


#: What a server without reuse cannot do was not checked when it started.
_REUSE_WHERE_OFF = Kind("off (the server's --rpc-reuse)", lambda v: v == "off")


def request_kinds(server: RPCConfig, interval: int) -> dict[str, Kind]:
    """What one request's options may be on this server, if the request's interval is this."""
    return {
        "enabled": Kind("true or false", lambda v: isinstance(v, bool)),
        "interval": SETTINGS["interval"].kind_in(server),
        "window": integer(1, server.window, " (the server's --rpc-window)"),
        "ratio": ratio_of(interval),
        "min_kept": SETTINGS["min_kept"].kind_in(server),
        "scope": SETTINGS["scope"].kind_in(server),
        "reuse": _REUSE_WHERE_OFF if server.reuse == "off" else SETTINGS["reuse"].kind_in(server),
    }


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
    min_kept: int = 0  #: F
    reuse: str = "off"  #: whether it takes over compressed KV, and leaves its own to others
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
        defaults = cls(True, server.interval, server.window, server.ratio, default_scope, server.min_kept, server.reuse)
        if not isinstance(custom_params, Mapping) or "rpc" not in custom_params:
            return defaults
        given = custom_params["rpc"]
        if isinstance(given, Mapping):
            given = {name: whole(value) for name, value in given.items()}
        _check_options(given, defaults, server)
        options = replace(defaults, **given, asked=True)
        if options.scope == "think" and not knows_markers:
            raise ConfigError(
                "custom_params.rpc.scope 'think' needs think tokens, and this server knows none; "
                "use 'all', or start it with --reasoning-parser or --rpc-think-end",
                "request.scope",
            )
        return options


def _check_options(given: Any, defaults: RequestOptions, server: RPCConfig) -> None:
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"custom_params.rpc must be an object such as {{'enabled': true}}, got {show(given)}", "request.rpc"
        )
    for name in given:
        if name not in REQUEST_OPTIONS:
            known = ", ".join(REQUEST_OPTIONS)
            raise ConfigError(f"custom_params.rpc has no field {show(name)}; its fields are {known}", "request.unknown")
        if server.gist_tokens is not None and name in ("interval", "window", "ratio", "min_kept"):
            raise ConfigError(
                f"custom_params.rpc.{name} has no meaning here: this server's policy evicts a thought when its gist "
                "tokens are there; leave it out",
                f"request.{name}",
            )
    interval = given.get("interval", server.interval)
    SETTINGS["interval"].kind_in(server).check("interval", interval, request=True)  # first: it bounds the ratio
    for name, kind in request_kinds(server, interval).items():
        note = " (the server's: send a ratio with this interval)" if name == "ratio" and name not in given else ""
        kind.check(name, given.get(name, getattr(defaults, name)), request=True, note=note)


#: What a request's `custom_params.rpc` may hold.
REQUEST_OPTIONS = tuple(request_kinds(RPCConfig(), RPCConfig().interval))
