"""The page of a trace: what it embeds is what was held, whatever the tokens spell."""

import base64
import html.parser
import json
import re
import zlib

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eval.trace_view import __main__ as command
from eval.trace_view import holdings, reader
from eval.trace_view.page import curve, page
from eval.trace_view.tokens import load_tokenizer, pieces, visible
from sglang_rpc.trace import writer as recorder
from tests.loops.decode_loop import END, MARKERS, START, config
from tests.loops.traced_loop import Traced

ODD = ["</script><script>alert(1)</script>", "<!--", "&lt;", '"', "\n", "\t", "\0", "\u202e", "\u2028", "a<b", "]]>"]


@pytest.fixture(scope="module")
def bytewise() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary in which every byte is a token of its own, and so an emoji is four."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    built = PreTrainedTokenizerFast(tokenizer_object=model)
    built.add_tokens(ODD)
    return built


def traced(folder, steps=90, prompt=7, **settings) -> reader.Trace:
    run = Traced(folder, config(**settings), markers=MARKERS)
    thoughts = [START, *range(300, 366), END]
    request = run.loop.add(prompt=prompt, output=[*range(200, 220), *thoughts, *[5] * 600])
    run.loop.run(steps)
    run.finish(request)
    return run.only()


def embedded(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL).group(1))


def held(data: dict, stage: int) -> np.ndarray:
    """bool [sets, generated], from nothing but what the page embeds."""
    at = data["stages"][stage]
    epoch = data["epochs"][at["epoch"]]
    raw = zlib.decompress(base64.b64decode(epoch["dropped"]))
    dropped = np.frombuffer(raw, f"<u{data['bytes']}").reshape(data["layers"] * data["heads"], epoch["tokens"])
    return dropped[:, : at["generated"]] > stage


@pytest.mark.parametrize("aggregation", ["all", "group"])
@pytest.mark.parametrize("scope", ["think", "all"])
def test_token_counts_on_the_page_equal_the_receipt(tmp_path, aggregation, scope):
    trace = traced(tmp_path, aggregation=aggregation, scope=scope)
    data, composed = embedded(page(trace, None)), holdings.compose(trace)
    assert len(data["stages"]) == trace.receipt["compressions"] + 2
    for number, stage in enumerate(data["stages"]):
        assert (held(data, number).sum(1) == stage["held"]).all() and stage["held"] <= stage["generated"]
        assert np.array_equal(held(data, number), composed.held(number))
    end = data["stages"][-1]
    assert {name: end[name] for name in ("compressions", "generated", "held", "evicted")} == {
        name: trace.receipt[name] for name in ("compressions", "generated", "held", "evicted")
    }
    assert data["stages"][0]["held"] == data["stages"][0]["generated"] and data["stages"][0]["evicted"] == 0
    assert data["output"]["ids"] == trace.output and len(data["output"]["texts"]) == end["generated"]
    assert data["think"] == [21, 88] and data["notes"][0].startswith("Token ids stand for the text")


def test_more_stages_than_a_byte_counts():
    def drops_one(number: int) -> reader.Compression:
        kept = np.array([[True, False]])
        return reader.Compression(number, number + 2, 0, 3, 1, 1, False, False, kept)

    receipt = {"compressions": 300, "generated": 302, "held": 2, "evicted": 300}
    header = {"rid": "", "options": {}, "config": {}}
    each = [drops_one(number) for number in range(1, 301)]
    trace = reader.Trace(header, 1, 1, [], list(range(302)), each, None, {}, receipt, False)
    data = embedded(page(trace, None))
    assert data["bytes"] == 2 and len(data["stages"]) == 302
    for stage in (0, 1, 254, 255, 256, 300, 301):
        generated = 3 if stage == 0 else min(stage + 2, 302)
        expected = [0, 1, 2] if stage == 0 else [0, generated - 1]
        assert np.flatnonzero(held(data, stage)).tolist() == expected


def test_what_the_server_left_out_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "PENDING_BYTES", 0)
    data = embedded(page(traced(tmp_path), None))
    assert [stage["epoch"] for stage in data["stages"]] == [0] + [None] * 6
    assert any("could not keep up" in note for note in data["notes"]) and "not known" in data["stages"][3]["said"]


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
    assert Elements(text).tags == plain.tags and text.count("</script>") == 2


def test_the_page_needs_nothing_else(tmp_path):
    text = page(traced(tmp_path), None)
    elements = Elements(text)
    assert not {"link", "img", "iframe", "base"} & set(elements.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in elements.attributes}
    assert "default-src 'none'" in text and "@@" not in text
    assert set(re.findall(r"https?://[^\"' ]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "url(" not in text and "fetch(" not in text and "import" not in text


# --- ids to text ------------------------------------------------------------------------------------------------


def test_a_character_is_shown_by_the_token_that_completes_it(bytewise):
    text = "naïve 🙂 日本\n"
    ids = bytewise.encode(text)
    found = pieces(ids, bytewise)
    assert "".join(found) == text and len(found) == len(ids) == len(text.encode())
    assert found[2:4] == ["", "ï"] and [p for p in found if p] == list(text)
    cut = pieces(ids[: 7 + 2], bytewise)  # two of the four bytes of 🙂
    assert cut[:7] == found[:7] and cut[7] == "" and cut[8].startswith("\ufffd")


def test_bytes_that_are_no_text_do_not_hold_up_what_follows(bytewise):
    stray = bytewise.encode("🙂")[1]  # a continuation byte
    found = pieces([*bytewise.encode("a"), stray, *bytewise.encode("bc")], bytewise)
    assert found[0] == "a" and found[-1] == "c" and "".join(found) == "a\ufffdbc"
    many = pieces([stray] * 40, bytewise)
    assert "".join(many).count("\ufffd") == 40


def test_ids_without_a_text(bytewise):
    assert pieces([3, 2**40, -1], None) == ["3 ", "1099511627776 ", "-1 "]
    a = bytewise.encode("a")
    assert pieces([*a, 2**40, -1, *a], bytewise) == ["a", "⟨1099511627776⟩", "⟨-1⟩", "a"]


def test_what_cannot_be_seen_is_spelled_out():
    assert visible("a\nb\tc") == "a↵\nb⇥\tc"
    assert visible("\0\u202e\u2028\ufeff") == "⟨U+0000⟩⟨U+202E⟩⟨U+2028⟩⟨U+FEFF⟩"
    assert visible("👩\u200d🔬 é <b>") == "👩\u200d🔬 é <b>"


def test_a_tokenizer_is_a_local_folder(tmp_path, bytewise):
    bytewise.save_pretrained(tmp_path / "model")
    assert pieces(bytewise.encode("ab"), load_tokenizer(str(tmp_path / "model"))) == ["a", "b"]
    for missing in (tmp_path / "nowhere", tmp_path, "nobody/has-this-model", "../..", "\0", ""):
        assert load_tokenizer(str(missing)) is None


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page(tmp_path, capsys, bytewise):
    traced(tmp_path / "traces")
    (file,) = (tmp_path / "traces").iterdir()
    assert command.main([str(file)]) == 0
    said = capsys.readouterr().out
    assert "90 tokens, 5 compressions" in said and "of token ids" in said and said.count("\n") == 1
    assert embedded(file.with_suffix(".html").read_text())["stages"]
    bytewise.save_pretrained(tmp_path / "model")
    out = tmp_path / "page.html"
    assert command.main([str(file), "--out", str(out), "--tokenizer", str(tmp_path / "model")]) == 0
    assert "of token ids" not in capsys.readouterr().out
    assert embedded(out.read_text())["notes"] == []


def test_the_command_refuses_in_a_sentence(tmp_path, capsys):
    traced(tmp_path / "traces")
    (file,) = (tmp_path / "traces").iterdir()
    wrong = {
        "cannot be read": [str(tmp_path / "nowhere")],
        "is no trace": [__file__],
        "is the trace itself": [str(file), "--out", str(file)],
        "holds no tokenizer": [str(file), "--tokenizer", str(tmp_path)],
        "No such file": [str(file), "--out", str(tmp_path / "no" / "page.html")],
    }
    before = file.read_bytes()
    for sentence, arguments in wrong.items():
        assert command.main(arguments) == 1
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1 and said.startswith("eval.trace_view: ")
    assert file.read_bytes() == before
