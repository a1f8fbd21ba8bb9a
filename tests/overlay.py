"""Another SGLang version over this environment's: its own code first on the path, all that it depends on from here.

`python -m tests.overlay VERSION` makes it, if it is not there yet, and prints its folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def overlay(version: str) -> Path:
    """The folder to put on PYTHONPATH. Installed with pip on first use: 10 seconds, 0.2 GB in `.cache`.

    Raises CalledProcessError if pip fails; what it says goes to standard error.
    """
    folder = ROOT / ".cache" / f"sglang-{version}"
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", str(part), f"sglang=={version}"], check=True, timeout=600, stdout=sys.stderr)
        part.rename(folder)
    return folder


if __name__ == "__main__":
    print(overlay(sys.argv[1]))
