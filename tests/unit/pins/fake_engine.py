"""A package that stands for SGLang, and what is needed of it."""

from sglang_rpc.contract import pins
from sglang_rpc.contract.targets import AFTER, Assumption, Hook

CORE = '''
import functools

LIMIT = 64


def logged(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper


def plan(batch, /, limit=3, *rest, wait, **more):
    """Doc."""
    return batch


class Base:
    inherited: int = 0


class Loop(Base):
    depth: int = 1

    def __init__(self, size):
        self.size, self.spare = size, 0

    def step(self, batch, *, up_to):
        # a comment
        return batch + up_to

    @logged
    def decorated(self, batch):
        return batch

    @classmethod
    def make(cls, size):
        return cls(size)

    @staticmethod
    def add(a, b=2):
        return a + b

    @property
    def full(self):
        return self.spare == 0

    async def serve(self):
        return None
'''


def nothing(*_args):
    """What the hooks here do."""


def on(name, kind=AFTER, when="serving"):
    return Hook(f"fake_engine.core.{name}", kind, f"why {name}", nothing, when)


def needs():
    methods = ("Loop.step", "Loop.decorated", "Loop.make", "Loop.add", "plan", "Loop.serve")
    attributes = ("depth", "full", "inherited", "size", "step")
    return [
        *map(on, methods),
        Assumption("fake_engine.core.Loop", "its fields", attributes),
        Assumption("fake_engine.core.LIMIT", "a value of the module"),
    ]


def states(pinned):
    return {finding.need.target.removeprefix("fake_engine.core."): finding for finding in compare(pinned)}


def compare(pinned):
    return pins.compare(pinned, needs())
