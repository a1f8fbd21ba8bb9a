"""Prefill/decode disaggregation, as the arguments have it: which half a server is, and what RPC adds to them."""

from sglang_rpc.contract.sglang.server import ServerArgs


def only_prefills(server_args: ServerArgs) -> bool:
    """Whether it is a prefill server, which generates one token a request and has nothing to compress."""
    return _resolved(server_args).disaggregation_mode == "prefill"


def choose_backup(server_args: ServerArgs) -> None:
    """On a decode server that names no backup of retracted rows: tensors, where SGLang might choose HiCache's pool."""
    resolved = _resolved(server_args)
    if resolved.disaggregation_mode == "decode" and resolved.disaggregation_decode_retraction_backup is None:
        from sglang.srt.arg_groups.overrides import declare_resolution

        declare_resolution(server_args, "sglang-rpc", disaggregation_decode_retraction_backup="cpu_tensor")


def _resolved(server_args: ServerArgs) -> ServerArgs:
    from sglang.srt.arg_groups.overrides import resolving_view

    view: ServerArgs = resolving_view(server_args)
    return view
