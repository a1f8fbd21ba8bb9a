"""DP attention on a CPU: what SGLang lacks for ranks with fewer rows than their peers, or none."""

import inspect

import pytest
import torch

from sglang_rpc.startup import cpu
from sglang_rpc.startup.cpu.idle_ranks import give_padding_a_length, rotate_nothing


@pytest.fixture
def rotary():
    cpu.prepare()
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    return RotaryEmbedding(8, 8, 64, 10000, True, torch.float32)


def rotated(rotary, tokens: int, around=None):
    """Queries of two heads and keys of one, as given and as rotated by SGLang, or by `around` put around it."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(tokens, 16, generator=generator), torch.randn(tokens, 8, generator=generator)
    original = inspect.unwrap(type(rotary).forward_cpu)
    rotate = original if around is None else lambda *args: around(original, *args)
    return given, rotate(rotary, torch.arange(tokens), *given)


def test_of_no_tokens_nothing_is_rotated(rotary):
    with pytest.raises(RuntimeError, match="0 elements"):
        rotated(rotary, 0)
    given, after = rotated(rotary, 0, rotate_nothing)
    assert all(one is other for one, other in zip(given, after, strict=True))


def test_tokens_are_rotated_as_sglang_does(rotary):
    given, sglangs = rotated(rotary, 3)
    _, ours = rotated(rotary, 3, rotate_nothing)
    assert all(map(torch.equal, ours, sglangs))
    assert not any(map(torch.equal, ours, given))


def test_padded_rows_have_the_length_of_sglangs_other_backend_for_cpus():
    cpu.prepare()
    from sglang.srt.layers.attention.intel_amx_backend import IntelAMXAttnBackend
    from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

    backend = object.__new__(TorchNativeAttnBackend)
    assert not hasattr(backend, "get_cpu_graph_seq_len_fill_value")
    give_padding_a_length(None, backend, None)
    other = IntelAMXAttnBackend.get_cpu_graph_seq_len_fill_value(None)
    assert backend.get_cpu_graph_seq_len_fill_value() == other == 1
