"""What each place in SGLang that RPC needs looked like when it was proven, and how it differs now. No printing here.

Pins are one file a version, `patches/sglang-<version>.json`; the versions that have one are those RPC is proven on.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from sglang_rpc.contract.source import Sources, find
from sglang_rpc.contract.targets import Hook, Need
from sglang_rpc.errors import IncompatibleSGLangError

ASSUMED = "assumed"

#: Of the errors about the pins themselves.
CODE = "incompatible.pins"


class State(Enum):
    """How a target compares with its pin."""

    OK = "ok"
    BODY = "body changed"
    MISSING = "missing"
    KIND = "kind changed"
    SIGNATURE = "signature changed"
    UNPINNED = "not pinned"

    @property
    def breaks(self) -> bool:
        """Whether RPC refuses to start; a changed body is a warning."""
        return self not in (State.OK, State.BODY)


@dataclass(frozen=True)
class Pin:
    """One target as it was: see `source.Found` and `source.Sources.fingerprint`."""

    target: str
    use: str  #: the kind of hook, or "assumed"
    kind: str
    signature: str
    fingerprint: str | None
    modules: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Pins:
    """The pins of one SGLang version, and the sha256 of the source of every module they were read from."""

    version: str
    modules: Mapping[str, str]
    pins: tuple[Pin, ...]

    def of(self, target: str) -> Pin | None:
        """The pin of `target`, if there is one."""
        return next((pin for pin in self.pins if pin.target == target), None)


@dataclass(frozen=True)
class Finding:
    """One need compared with its pin; `detail` is empty where all is well."""

    need: Need
    state: State
    detail: str = ""


def use_of(need: Need) -> str:
    """The kind of hook, or "assumed"."""
    return need.kind if isinstance(need, Hook) else ASSUMED


# ---- comparing ----------------------------------------------------------------------------------------------


def compare(pins: Pins, needs: Iterable[Need]) -> list[Finding]:
    """Every need against its pin. Imports the targets' modules.

    A module whose bytes are those that were pinned isn't parsed: that is what makes it cheap enough for the start of
    every process.
    """
    sources = Sources()
    return [Finding(need, *_compare(pins, need, sources)) for need in needs]


def _compare(pins: Pins, need: Need, sources: Sources) -> tuple[State, str]:
    try:
        now = find(need.target, need.attributes)
        pin = pins.of(need.target)
        if pin is None:
            return State.UNPINNED, "run `python -m sglang_rpc.doctor --pin`"
        if now.kind != pin.kind:
            return State.KIND, f"is a {now.kind}, pinned a {pin.kind}"
        if now.signature != pin.signature:
            return State.SIGNATURE, f"takes {now.signature}, pinned {pin.signature}"
        same = now.modules == pin.modules and all(sources.digest(m) == pins.modules.get(m) for m in now.modules)
        if same or sources.fingerprint(now) == pin.fingerprint:
            return State.OK, ""
    except LookupError as error:
        return State.MISSING, str(error)
    return State.BODY, f"in {', '.join(now.modules) or 'no Python source'}"


def take(version: str, needs: Iterable[Need]) -> Pins:
    """Pins of what is installed here. Raises IncompatibleSGLangError if a target, or its attribute, does not exist."""
    sources, pins = Sources(), []
    for need in needs:
        try:
            now = find(need.target, need.attributes)
            how = now.kind, now.signature, sources.fingerprint(now), now.modules
        except LookupError as error:
            raise IncompatibleSGLangError(f"{need.target} can't be pinned ({need.reason}): {error}", CODE) from error
        pins.append(Pin(need.target, use_of(need), *how, need.reason))
    modules = sorted({module for pin in pins for module in pin.modules})
    return Pins(version, {module: sources.digest(module) for module in modules}, tuple(pins))


# ---- reading and writing ------------------------------------------------------------------------------------


def directory() -> Path:
    """Where the pins lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_patches"
    return installed if installed.is_dir() else package.parent / "patches"


def path_of(version: str, folder: Path) -> Path:
    """Where the pins of a version stand in `folder`."""
    return folder / f"sglang-{public(version)}.json"


def public(version: str) -> str:
    """A version without what a distributor appended (`0.5.23+cu130`): that is a build of the same source."""
    return version.partition("+")[0]


def load(version: str, folder: Path | None = None) -> Pins:
    """The pins of this version, else those of the newest one pinned: see `Pins.version`.

    Raises IncompatibleSGLangError if there are none, or the file can't be read.
    """
    folder = directory() if folder is None else folder
    path = path_of(version, folder)
    if not path.is_file():
        path = max(folder.glob("sglang-*.json"), key=lambda other: _order(other.stem), default=path)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        pins = tuple(Pin(**{**entry, "modules": tuple(entry["modules"])}) for entry in raw["pins"])
        return Pins(raw["sglang"], raw["modules"], pins)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IncompatibleSGLangError(
            f"the pins of SGLang can't be read from {path}: {error}; install sglang-rpc again", CODE
        ) from error


def _order(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))


def save(pins: Pins, folder: Path) -> Path:
    """Write them where `load` reads; returns the file. Raises IncompatibleSGLangError if it can't be written."""
    content = {"sglang": public(pins.version), "modules": pins.modules, "pins": [asdict(pin) for pin in pins.pins]}
    path = path_of(pins.version, folder)
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise IncompatibleSGLangError(f"the pins can't be written to {path}: {error}", CODE) from error
    return path
