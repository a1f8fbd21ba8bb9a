"""The prefill server of prefill/decode disaggregation on a CPU.

Where a transfer's indices may stay tensors, SGLang copies them to pinned memory and records a CUDA event. A CPU has
neither. Where they may not, it makes them arrays, which is all that a CPU needs.
"""

from typing import Any

from sglang_rpc.contract.targets import AFTER, hook


@hook(
    AFTER,
    "sglang.srt.disaggregation.common.conn.CommonKVSender.__init__",
    "on a CPU, what is sent to a decode server cannot be pinned",
)
def send_arrays(_result: object, sender: Any, *_args: object, **_kwargs: object) -> None:
    """AFTER CommonKVSender.__init__, once per request of a prefill server: sets an attribute of the sender."""
    sender.supports_host_tensor_indices = False
