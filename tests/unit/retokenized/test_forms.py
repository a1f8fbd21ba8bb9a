"""Where the ids of a text that comes back part from those that were generated."""

from __future__ import annotations

import pytest

from eval.retokenized import forms, summary
from eval.retokenized.forms import Row
from eval.retokenized.samples import Sample


class Pairs:
    """Two equal letters are one token, U+00E9's two bytes are two; `<e>` is special."""

    PIECES = ("<e>", "aa", "bb", "a", "b", ".", " ", "\n", "Q", *"Wait,checkthsgn")

    def ids(self, text):
        ids = []
        while text:
            if text[0] == "\u00e9":
                ids += [100, 101]
                text = text[1:]
                continue
            number = next(number for number, piece in enumerate(self.PIECES) if text.startswith(piece))
            ids.append(number)
            text = text[len(self.PIECES[number]) :]
        return ids

    def text(self, ids):
        text = "".join({100: "\udcc3", 101: "\udca9"}.get(i, self.PIECES[i % 100] if i else "") for i in ids)
        text = text.replace("\udcc3\udca9", "\u00e9")
        return text.replace("\udcc3", "\ufffd").replace("\udca9", "\ufffd")

    def chat(self, messages, answer):
        return "".join(f"Q{message['content'].strip()}" for message in messages) + "Q" * answer


AA, BB, A, B, DOT, BLANK, END = 1, 2, 3, 4, 5, 6, 0


def rows(output, question="a"):
    tokenizer = Pairs()
    prompt = tokenizer.chat([{"content": question}], True)
    sample = Sample("000", 0.6, question, prompt, tokenizer.ids(prompt), tokenizer.text(output), output)
    return list(forms.of_sample(sample, tokenizer, "pairs"))


def same(output, form):
    return {row.tokens: row.same for row in rows(output) if row.form == form}


def test_the_tokenizers_own_ids_come_back():
    assert same([AA, B] * 20, "text") == {16: 16, 32: 32}


def test_ids_part_where_the_model_wrote_another_segmentation():
    assert same([AA, B] * 9 + [A, A] + [B] * 20, "text") == {16: 16, 32: 18}


def test_the_token_that_ended_it_does_not_come_back():
    assert same([AA, B] * 8 + [END], "text") == {16: 16}


def test_a_template_may_strip_the_end():
    output = [AA, B] * 7 + [AA, BLANK]
    assert same(output, "more") == {16: 16}
    assert same(output, "chat") == {16: 15}


def test_a_stop_string_is_trimmed_where_it_began():
    output = [AA, B] * 40 + [DOT, BLANK, AA, B]
    assert [(row.tokens, row.same) for row in rows(output) if row.form == "stop"] == [(80, 80)]


def test_a_cut_inside_of_a_character_loses_its_bytes():
    text = "ab" * 7 + "a" + "\u00e9" * 4
    found = list(forms.of_text(text, Pairs(), "pairs", "one", 100))
    assert [(row.form, row.tokens, row.same) for row in found] == [
        ("cut_inside", 16, 15),
        ("cut", 23, 23),
        ("cut_more", 23, 23),
    ]


def test_a_summary_counts_texts_and_where_they_part():
    made = [
        Row("m", "0", "text", "a", 16, 16),
        Row("m", "0", "text", "b", 16, 15),
        Row("m", "0", "text", "c", 16, 4),
        Row("m", "0", "text", "d", 16, 16),
    ]
    (line,) = summary.summary(made)
    assert (line["texts"], line["other"], line["share"], line["inside"]) == (4, 2, 0.5, 0.25)
    assert (line["first"], line["first_from_end"]) == (9.5, 6.5)
    assert line["lost"] == pytest.approx((1 / 16 + 12 / 16) / 4, abs=1e-4)
    assert line["error"] == 0.25


def test_a_summary_keeps_forms_and_lengths_apart(tmp_path):
    made = [Row("m", "0", "stop", "a", 70, 70), Row("m", "0", "text", "a", 32, 3), Row("m", "0", "text", "a", 16, 3)]
    assert [(line["form"], line["tokens"]) for line in summary.summary(made)] == [
        ("text", "16"),
        ("text", "32"),
        ("stop", "any"),
    ]
    summary.write_rows(made, tmp_path / "texts.csv")
    assert summary.read_rows(tmp_path / "texts.csv") == made
