"""`sglang_rpc.Engine`: `sglang.Engine` with Reasoning Path Compression, for offline use."""

from collections.abc import Callable
from typing import Any

from sglang_rpc.config import RPCConfig
from sglang_rpc.contract.sglang.server import ServerArgs
from sglang_rpc.errors import UnsupportedError
from sglang_rpc.startup import cpu

# Before SGLang decides what it runs on: without an accelerator it needs the CPU stand-in.
_ON_CPU = cpu.prepare()

from sglang.srt.entrypoints.engine import Engine as SGLangEngine  # noqa: E402

_DEFAULT = RPCConfig()


class Engine(SGLangEngine):  # type: ignore[misc]  # mypy does not follow SGLang
    """`sglang.Engine` whose requests are compressed while they think.

        engine = sglang_rpc.Engine(model_path="...", reasoning_parser="deepseek-r1", rpc=RPCConfig(interval=1024))

    `rpc`: the configuration, a dict of its fields, or None for SGLang as it is. Everything else is `sglang.Engine`'s.
    Without an accelerator, arguments that only work with one get their CPU counterpart unless given.

    Raises ConfigError, UnsupportedError or IncompatibleSGLangError, in one sentence, before a process is started.
    """

    server_args_class: Callable[..., ServerArgs]

    def __init__(self, *, rpc: RPCConfig | dict[str, Any] | None = _DEFAULT, **kwargs: Any):
        from sglang_rpc.contract.refused import was_refused
        from sglang_rpc.contract.settings import attach
        from sglang_rpc.startup.process import switch_on

        config = rpc if rpc is None or isinstance(rpc, RPCConfig) else RPCConfig.from_mapping(rpc)
        if config is not None:
            switch_on()
        if "server_args" in kwargs:
            attach(kwargs["server_args"], config)
        elif _ON_CPU:
            tp, pp, dp = (kwargs.get(size, 1) for size in ("tp_size", "pp_size", "dp_size"))
            cpu.prepare(kwargs.get("device"), cpu.processes(tp, pp, dp, kwargs.get("enable_dp_attention", False)))
            kwargs = {**cpu.server_defaults(), **kwargs}
        record: Callable[..., ServerArgs] = self.server_args_class

        def with_rpc(**fields: Any) -> ServerArgs:
            server_args = record(**fields)
            attach(server_args, config)
            return server_args

        self.server_args_class = with_rpc
        try:
            super().__init__(**kwargs)
        except RuntimeError as error:
            if was_refused(error):
                raise UnsupportedError(
                    "RPC cannot work with this model: its process has said why, just above", "unsupported.model"
                ) from None
            raise

    @classmethod
    def attach_tokenizer_worker(cls, parent_pid: int | None = None) -> SGLangEngine:
        """As `sglang.Engine`'s: joins an Engine of another process, and checks options and adds receipts in this one.

        Raises IncompatibleSGLangError or ConfigError.
        """
        from sglang_rpc.contract.settings import config_of
        from sglang_rpc.startup.process import switch_on

        engine = super().attach_tokenizer_worker(parent_pid)
        if config_of(engine.server_args) is not None:
            switch_on()
        return engine
