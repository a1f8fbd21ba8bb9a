"""Building wheels, and an environment that has them beside the heavy packages of this one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


def build_wheel(project: Path, folder: Path) -> Path:
    """The project's wheel, in `folder`. Without hatchling here, pip fetches it from the package index."""
    isolated = [] if importlib.util.find_spec("hatchling") is None else ["--no-build-isolation"]
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), *isolated, str(project))
    (wheel,) = folder.glob("*.whl")
    return wheel


def fresh_environment(folder: Path, *wheels: Path) -> Path:
    """A new virtual environment with these wheels; its interpreter.

    It finds torch, SGLang and the like where this interpreter has them. The line of a .pth file adds a folder without
    the .pth files in there, so that an editable installation of the project is not seen.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    _pip("--python", str(python), "install", "--no-deps", "--no-index", *map(str, wheels))
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "heavy.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def clean(**more: str) -> dict[str, str]:
    """Environment variables under which neither the working folder nor PYTHONPATH offers a module."""
    return {**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": "1", **more}


def copy_of(project: Path, folder: Path) -> Path:
    """The project in a folder of its own, which a build or a test may write to."""
    return shutil.copytree(project, folder)


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
