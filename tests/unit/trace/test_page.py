"""The page of a trace: what it embeds is what was held, whatever the tokens spell."""

import html.parser
import re

import numpy as np
import pytest

from eval.trace_view import holdings, reader
from eval.trace_view.page import curve, page
from eval.trace_view.tokens import visible
from sglang_rpc.trace import writer as recorder
from tests.loops.decode_loop import config
from tests.loops.traced_loop import Traced
from tests.unit.trace.pages import ODD, embedded, held, traced


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("scope", ["think", "all"])
def test_token_counts_on_the_page_equal_the_receipt(tmp_path, aggregation, scope):
    trace = traced(tmp_path, aggregation=aggregation, scope=scope)
    data, composed = embedded(page(trace, None)), holdings.compose(trace)
    assert len(data["stages"]) == trace.receipt["compressions"] + 2
    for number, stage in enumerate(data["stages"]):
        assert (held(data, number).sum(1) == stage["held"]).all()
        assert stage["held"] <= stage["generated"]
        assert np.array_equal(held(data, number), composed.held(number))
    end = data["stages"][-1]
    assert {name: end[name] for name in ("compressions", "generated", "held", "evicted")} == {
        name: trace.receipt[name] for name in ("compressions", "generated", "held", "evicted")
    }
    assert data["stages"][0]["held"] == data["stages"][0]["generated"]
    assert data["stages"][0]["evicted"] == 0
    assert data["output"]["ids"] == trace.output
    assert len(data["output"]["texts"]) == end["generated"]
    assert data["think"] == [21, 88]
    assert data["notes"][0].startswith("Token ids stand for the text")


def test_more_stages_than_a_byte_counts():
    def drops_one(number: int) -> reader.Compression:
        kept = np.array([[True, False]])
        return reader.Compression(number, number + 2, 0, 3, 1, 1, False, False, kept)

    receipt = {"compressions": 300, "generated": 302, "held": 2, "evicted": 300}
    header = {"rid": "", "options": {}, "config": {}}
    each = [drops_one(number) for number in range(1, 301)]
    trace = reader.Trace(header, 1, 1, [], list(range(302)), each, None, {}, receipt, False)
    data = embedded(page(trace, None))
    assert data["bytes"] == 2
    assert len(data["stages"]) == 302
    for stage in (0, 1, 254, 255, 256, 300, 301):
        generated = 3 if stage == 0 else min(stage + 2, 302)
        expected = [0, 1, 2] if stage == 0 else [0, generated - 1]
        assert np.flatnonzero(held(data, stage)).tolist() == expected


def test_what_the_server_left_out_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "PENDING_BYTES", 0)
    data = embedded(page(traced(tmp_path), None))
    assert [stage["epoch"] for stage in data["stages"]] == [0] + [None] * 6
    assert any("could not keep up" in note for note in data["notes"])
    assert "not known" in data["stages"][3]["said"]


def test_the_line_falls_at_each_compression(tmp_path):
    trace = traced(tmp_path, steps=60)
    assert curve(holdings.compose(trace).stages) == [
        (0, 0), (20, 20), (20, 8), (36, 24), (36, 12), (52, 28), (52, 16), (60, 24),
    ]  # fmt: skip


class Elements(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes


def test_nothing_that_a_token_or_a_rid_spells_becomes_html(tmp_path, bytewise):
    run = Traced(tmp_path, config())
    odd = [bytewise.convert_tokens_to_ids(text) for text in ODD]
    request = run.loop.add(prompt=odd, output=odd * 60)
    run.rids[id(request)] = "</script><b>"
    run.loop.run(40)
    run.finish(request)
    text = page(run.only(), bytewise)
    data = embedded(text)
    assert data["prompt"]["texts"] == [visible(piece) for piece in ODD]
    assert data["request"]["rid"] == "</script><b>"
    plain = Elements(page(traced(tmp_path / "plain"), None))
    assert Elements(text).tags == plain.tags
    assert text.count("</script>") == 2


def test_the_page_needs_nothing_else(tmp_path):
    text = page(traced(tmp_path), None)
    elements = Elements(text)
    assert not {"link", "img", "iframe", "base"} & set(elements.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in elements.attributes}
    assert "default-src 'none'" in text
    assert "@@" not in text
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "url(" not in text
    assert "fetch(" not in text
    assert "import" not in text
