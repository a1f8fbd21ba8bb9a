"""The ranks of a server, and what they tell each other at the start so that all decide alike.

Every rank schedules by itself. What it decides by is equal on all of them, but for what is sized in bytes: with a
pipeline, a stage may have more layers than another, and a host less memory. Of that, all take what the least has.
"""

from typing import TypeVar

import torch

from sglang_rpc.contract.sglang.server import GroupCoordinator, ParallelArgs
from sglang_rpc.errors import ConfigError

T = TypeVar("T")


def tensor_parallel_group() -> GroupCoordinator | None:
    """The group whose ranks share the attention heads; None if this rank has them all."""
    from sglang.srt.distributed.parallel_state import get_attn_tp_group

    return _of_several(get_attn_tp_group())


def every_rank() -> GroupCoordinator | None:
    """The group of all ranks of this server, of every pipeline stage; None if there is but one."""
    from sglang.srt.distributed.parallel_state import get_world_group

    return _of_several(get_world_group())


def pipeline() -> ParallelArgs:
    """How many stages the pipeline of this server has, 1 without one, and which is this rank's."""
    from sglang.srt.runtime_context import get_parallel

    parallel: ParallelArgs = get_parallel()
    return parallel


def told_by_each(mine: T, group: GroupCoordinator | None) -> list[T]:
    """What each rank of `group` gives, by rank. A collective: every rank must call it."""
    if group is None:
        return [mine]
    everywhere: list[T] = [mine] * group.world_size
    torch.distributed.all_gather_object(everywhere, mine, group=group.cpu_group)
    return everywhere


def least(size: int, group: GroupCoordinator | None) -> int:
    """The least of what the ranks of `group` give."""
    return min(told_by_each(size, group))


def most(size: int, group: GroupCoordinator | None) -> int:
    """The most of what the ranks of `group` give."""
    return max(told_by_each(size, group))


def on_earlier_stages(count: int, group: GroupCoordinator | None) -> int:
    """What the stages before this one give in all, if this one gives `count`; the ranks of a stage give the same."""
    if group is None:
        return 0
    own = pipeline().pp_rank
    told = dict(told_by_each((own, count), group))
    return sum(theirs for other, theirs in told.items() if other < own)


def require_same(group: GroupCoordinator | None, settings: tuple[object, ...]) -> None:
    """Raises ConfigError: on ranks that compress differently rows would differ, and collectives would not pair up."""
    everywhere = told_by_each(settings, group)
    if any(other != settings for other in everywhere):
        raise ConfigError(
            "every rank must have the same --rpc-* flags, query slots and scoring: start every node with the same "
            f"flags and memory, and name --rpc-scoring where GPUs differ; got {everywhere}",
            "config.ranks_differ",
        )


def _of_several(group: GroupCoordinator) -> GroupCoordinator | None:
    return group if group.world_size > 1 else None
