"""How many tests each of some pytest commands selects, in one process: JSON lists of arguments -> a JSON list."""

import json
import sys

import pytest


class Counter:
    def pytest_collection_finish(self, session):
        self.count = len(session.items)


counts = []
for arguments in json.loads(sys.argv[1]):
    counter = Counter()
    status = pytest.main(["--collect-only", *arguments], plugins=[counter])
    counts.append(counter.count if status == 0 else 0)
print(json.dumps(counts))
