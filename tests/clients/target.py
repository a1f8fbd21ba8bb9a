"""The server that a kit speaks to, and what every kit asks of it.

Kits run in two environments, so this imports nothing outside the standard library.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

#: Enough of them for three compressions at the servers' settings.
TOKENS = 60


@dataclass(frozen=True)
class Target:
    url: str
    model: str  #: folder of the served model

    def call(self, path: str, body: Any = None, method: str | None = None, timeout: float = 600) -> tuple[int, Any]:
        """Status and decoded JSON, or text."""
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def generate(self, text: str, tokens: int = TOKENS, **sampling: Any) -> dict[str, Any]:
        """One greedy /generate of exactly `tokens` tokens."""
        params = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **sampling}
        status, answer = self.call("/generate", {"text": text, "sampling_params": params})
        expect(status == 200, answer)
        return answer

    def flush(self, seconds: float = 60) -> None:
        """Empty the cache, which SGLang does only once nothing runs or waits."""
        deadline = time.monotonic() + seconds
        while self.call("/flush_cache", method="POST")[0] != 200:
            expect(time.monotonic() < deadline, f"the server is not idle after {seconds:.0f} s")
            time.sleep(0.5)


def expect(condition: bool, said: Any = "") -> None:
    """Raises AssertionError with what the server said. (Kits are no test modules: pytest rewrites no assert there.)"""
    if not condition:
        raise AssertionError(said if isinstance(said, str) else json.dumps(said, default=str))
