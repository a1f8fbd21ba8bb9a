"""The page in a browser that is really there: headless Chromium runs it and hands back what stands in it."""

import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser

import pytest

from eval.trace_view import holdings
from eval.trace_view.page import page
from tests.loops.decode_loop import END, MARKERS, START, config
from tests.loops.traced_loop import Traced

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to run the page in")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=5000"),
)


class Shown(HTMLParser):
    """Texts by id, token spans by class of those that are to be seen, headings."""

    def __init__(self, text: str):
        super().__init__()
        self.by_id: dict[str, str] = {}
        self.tokens: Counter[str] = Counter()
        self._open: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        result = dict(attributes)
        self._open = result.get("id")
        if tag == "span" and "data-t" in result:
            self.tokens[result.get("class") or "not shaded"] += 1

    def handle_data(self, data):
        if self._open is not None:
            self.by_id[self._open] = self.by_id.get(self._open, "") + data

    def handle_endtag(self, tag):
        self._open = None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    traced = Traced(folder / "traces", config(scope="think", aggregation="group"), markers=MARKERS)
    request = traced.loop.add(output=[7, START, *range(300, 366), END, *[5] * 600])
    traced.rids[id(request)] = "<b>bold</b>"
    traced.loop.run(90)
    traced.finish(request)
    trace = traced.only()
    (folder / "page.html").write_text(page(trace, None))
    return folder, trace


@pytest.mark.parametrize("stage", [0, 2, 4])
def test_it_shows_what_was_held(run, tmp_path, stage):
    folder, trace = run
    composed = holdings.compose(trace)
    address = f"{(folder / 'page.html').as_uri()}#stage={stage}"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    shown, at = Shown(done.stdout), composed.stages[stage]
    assert "data-ready" in done.stdout, done.stderr[-2000:]
    counts = {name: shown.by_id[name] for name in ("generated", "held", "evicted")}
    assert counts == {name: str(getattr(at, name)) for name in counts}
    # Shades count from 0, held by nobody, to 8, held by every head of every layer.
    holders = composed.held(stage).sum(0)
    wanted = Counter(f"k{-(-8 * int(count) // trace.sets)}" for count in holders)
    visible = {name: count for name, count in shown.tokens.items() if name.startswith("k")}
    assert visible == wanted
    assert shown.by_id.get("rid") == "<b>bold</b>"
    assert bool(shown.by_id.get("agrees")) == (stage == 4)
    if stage == 4:
        assert {name: trace.receipt[name] for name in counts} == {name: int(text) for name, text in counts.items()}
