"""The client libraries' own virtual environment: their pins contradict SGLang's."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
INSTALL_SECONDS = 900


class ClientsMissing(Exception):
    """The environment could not be made; the sentence says what failed."""


def requirements() -> list[str]:
    """The extra `clients` of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["optional-dependencies"]["clients"]


def make() -> Path:
    """Folder of the environment, under .cache/, made if it is not there. Raises ClientsMissing."""
    wanted = sorted(requirements())
    digest = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:12]
    folder = ROOT / ".cache" / f"clients-{digest}"
    done = folder / "complete"
    if done.is_file():
        return folder
    try:
        _run(sys.executable, "-m", "venv", "--clear", str(folder))
        _run(str(python(folder)), "-m", "pip", "install", "--quiet", *wanted)
    except (subprocess.SubprocessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise ClientsMissing(f"the client libraries could not be installed into {folder}: {said[-600:]}") from error
    done.touch()
    return folder


def python(folder: Path) -> Path:
    return folder / "bin" / "python"


def site_packages(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
