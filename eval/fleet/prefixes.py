"""A replica's cache of the prompts that groups of requests share, counted in KV entries."""

from __future__ import annotations

from collections import OrderedDict


class PrefixCache:
    """Prompts that groups share. Those that no request uses stay until their slots are needed, oldest first."""

    def __init__(self) -> None:
        self._users: OrderedDict[int, int] = OrderedDict()
        self._tokens: dict[int, int] = {}
        self.used = 0  #: entries of prefixes in use
        self.idle = 0  #: entries of the others

    def holds(self, group: int) -> bool:
        return group in self._users

    def idle_of(self, group: int) -> int:
        """Entries that stop being idle once the group is used."""
        return self._tokens[group] if self._users.get(group) == 0 else 0

    def use(self, group: int, tokens: int) -> None:
        """One more request of the group; its prefix is there from now on."""
        self.idle -= self.idle_of(group)
        if not self._users.get(group):
            self.used += tokens
        self._tokens[group] = tokens
        self._users[group] = self._users.get(group, 0) + 1
        self._users.move_to_end(group)

    def leave(self, group: int) -> None:
        """One request less."""
        self._users[group] -= 1
        if not self._users[group]:
            self.used -= self._tokens[group]
            self.idle += self._tokens[group]

    def evict(self, entries: int) -> None:
        """Drop idle prefixes until so many entries are free, or none is left."""
        for group in [group for group, users in self._users.items() if not users]:
            if entries <= 0:
                return
            tokens = self._tokens.pop(group)
            del self._users[group]
            self.idle -= tokens
            entries -= tokens
