"""Token ids to text."""

from eval.trace_view.tokens import load_tokenizer, pieces, visible


def test_a_character_is_shown_by_the_token_that_completes_it(bytewise):
    text = "naïve 🙂 日本\n"
    ids = bytewise.encode(text)
    result = pieces(ids, bytewise)
    assert "".join(result) == text
    assert len(result) == len(ids) == len(text.encode())
    assert result[2:4] == ["", "ï"]
    assert [p for p in result if p] == list(text)
    cut = pieces(ids[: 7 + 2], bytewise)  # two of the four bytes of 🙂
    assert cut[:7] == result[:7]
    assert cut[7] == ""
    assert cut[8].startswith("\ufffd")


def test_bytes_that_are_no_text_do_not_hold_up_what_follows(bytewise):
    stray = bytewise.encode("🙂")[1]  # a continuation byte
    result = pieces([*bytewise.encode("a"), stray, *bytewise.encode("bc")], bytewise)
    assert result[0] == "a"
    assert result[-1] == "c"
    assert "".join(result) == "a\ufffdbc"
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
