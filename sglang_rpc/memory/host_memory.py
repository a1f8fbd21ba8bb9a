"""How much host memory may be pinned. What is pinned cannot be swapped out, so to pin too much ends processes."""

from pathlib import Path

#: Of what is available, the share that all processes with a device may pin together.
SHARE = 0.8
#: Where a container's limit stands, and its usage with the names of the page cache in it: cgroup v2, then v1.
_CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file")),
    (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_active_file", "total_inactive_file"),
    ),
)


def may_pin(processes: int, root: Path = Path("/")) -> int | None:
    """Bytes that each of `processes` on this host may pin; None where the system does not say what it has."""
    available = available_bytes(root)
    return None if available is None else int(available * SHARE) // processes


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can be allocated without swapping, here and within the container; None if that is not known.

    Page cache counts as available, as in the kernel's own estimate: the weights have just been read through it.
    """
    known = [size for size in (_of_host(root), *(_of_container(root, *each) for each in _CGROUPS)) if size is not None]
    return min(known, default=None)


def _of_host(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None  # not Linux
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _of_container(root: Path, folder: str, limit: str, usage: str, cache: tuple[str, ...]) -> int | None:
    """None without a limit: of v2, the file says `max` or is missing; of v1, it says more than any host has."""
    try:
        most = (root / folder / limit).read_text().strip()
        used = int((root / folder / usage).read_text())
        stat = dict(line.split() for line in (root / folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if most == "max":
        return None
    return max(0, int(most) - used + sum(int(stat.get(name, 0)) for name in cache))
