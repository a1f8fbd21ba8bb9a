"""The ids of a text that begins as a known one, under tokenizers of three kinds."""

from __future__ import annotations

import random
from array import array

import pytest

from sglang_rpc.hooks.texts import Texts
from sglang_rpc.runtime.known_ids import before_hidden, ids_of, with_output
from sglang_rpc.runtime.known_texts import Known, Mark, common
from tests import small_tokenizers

KINDS = (small_tokenizers.plain, small_tokenizers.byte_level, small_tokenizers.with_blank_in_front)
PROMPT, THOUGHT = "Derive the licence's terms.\n", "first the Work, then derivative Works of it, and so on."


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def codec(request):
    return Texts(request.param(), 1e6)


def letters(codec, text):
    """Ids of a text, a character each: what a model may generate, and the tokenizer never does."""
    tokenizer = codec._tokenizer
    if tokenizer is small_tokenizers.byte_level():
        return codec.encode(text) if not text.isascii() else [i for c in text for i in codec.encode(c)]
    return [tokenizer.convert_tokens_to_ids("▁" if c == " " and codec._put_first else c) for c in text]


def known(codec, output_ids=None, prompt=PROMPT, thought=THOUGHT, compressed=True) -> Known:
    ids = array("q", codec._tokenizer.encode(prompt))
    output = letters(codec, thought) if output_ids is None else output_ids
    made = with_output(prompt, ids, (Mark(len(prompt), len(ids)),), thought, output, True, codec, compressed)
    assert made is not None
    return made


def taken(codec, text, of: Known):
    found = ids_of(text, of, common(of.text, text), codec)
    return None if found is None else (list(found[0]), found[1][-1].ids)


def same_text(codec, ids, text):
    return codec.say(ids, text) or codec.decode(ids) == codec.decode(codec._tokenizer.encode(text))


@pytest.mark.parametrize("more", ["", " Wait, is it so?", "\n\nNo.", "s", "</s>\nAnd now?"])
def test_a_known_text_gives_its_ids_whatever_follows(codec, more):
    of, text = known(codec), PROMPT + THOUGHT + more
    assert list(of.ids) != codec._tokenizer.encode(of.text)
    ids, reused = taken(codec, text, of)
    assert ids[:reused] == list(of.ids)
    assert same_text(codec, ids, text)


def test_a_part_gives_the_ids_up_to_where_the_tokenizer_parts_too(codec):
    of = known(codec)
    at = of.text.index(", and")
    ids, reused = taken(codec, of.text[:at] + " or not.", of)
    assert of.text.startswith(codec.decode(ids[:reused]).removeprefix("<s>").strip(), 0)
    assert reused == len(of.ids) - len(", and so on.")
    assert same_text(codec, ids, of.text[:at] + " or not.")


def test_a_word_that_only_begins_alike_is_not_torn_apart(codec):
    """`Worse` was generated letter by letter; `Work`, one token, is the user's."""
    of = known(codec, thought="first the Worse")
    text = PROMPT + "first the Work"
    ids, reused = taken(codec, text, of)
    assert same_text(codec, ids, text)
    assert codec.decode(ids[:reused]).endswith("first the")
    assert ids[reused:] == codec._tokenizer.encode(text)[-1:]


def test_what_was_not_compressed_tears_no_word_apart_though_it_comes_back_whole(codec):
    """A few tokens, ` Wo`, which go on as `Work`: one token of the user's."""
    of, text = known(codec, thought="first the Wo", compressed=False), PROMPT + "first the Work"
    ids, reused = taken(codec, text, of)
    assert same_text(codec, ids, text)
    assert codec.decode(ids[:reused]).endswith("first the")
    assert ids[reused:] == codec._tokenizer.encode(text)[-1:]
    assert taken(codec, of.text, of) == (list(of.ids), len(of.ids))
    assert taken(codec, text, known(codec, thought="first the Wo"))[1] == len(of.ids)


def test_nothing_is_taken_over_of_a_prompt_alone(codec):
    of = known(codec)
    assert taken(codec, PROMPT + "Quite another answer.", of) is None
    assert taken(codec, PROMPT[:9] + "?", of) is None
    assert taken(codec, PROMPT, of) is None


def test_every_beginning_of_a_known_text_is_said_by_the_ids(codec):
    draw, of = random.Random(5), known(codec)
    for chars in range(len(PROMPT) + 2, len(of.text)):
        text = of.text[:chars] + draw.choice(["", "e", " e", "\n", "1", "."])
        found = taken(codec, text, of)
        if found is not None:
            ids, reused = found
            assert ids[:reused] == list(of.ids[:reused])
            assert same_text(codec, ids, text), text


def test_a_cut_is_never_inside_of_a_character():
    codec = Texts(small_tokenizers.byte_level(), 1e6)
    thought = "a \u20ac and a \u00fc, \u20ac\u20ac \u4f60\u597d."
    of = known(codec, thought=thought)
    for chars in range(len(PROMPT) + 1, len(of.text) + 1):
        text = of.text[:chars] + "\u00e4!"
        found = taken(codec, text, of)
        assert found is None or codec.decode(found[0]) == text
        if chars > len(PROMPT) + 3:
            assert found is not None


def test_a_turn_after_a_turn_goes_on_from_its_end_though_a_longer_text_is_known(codec):
    first = known(codec)
    text = first.text + " Angle one"
    ids, marks = ids_of(text, first, len(first.text), codec)
    marks = (*marks, Mark(len(text), len(ids)))
    second = with_output(text, ids, marks, ": none at all.", letters(codec, ": none at all."), True, codec, True)
    assert first.begins(second)
    for more in (" Bngle two", "s", "\n"):
        found, reused = taken(codec, first.text + more, second)
        assert found[:reused] == list(first.ids)
    assert not second.begins(first)


def test_an_output_that_was_trimmed_is_known_up_to_the_last_token_that_shows(codec):
    """The text ends within a token, or before several."""
    ids = array("q", codec._tokenizer.encode(PROMPT))
    marks = (Mark(len(PROMPT), len(ids)),)
    for hidden in ("", "STOP here"):
        output = letters(codec, THOUGHT + hidden)
        made = with_output(PROMPT, ids, marks, THOUGHT, output, False, codec)
        assert (made.text, list(made.ids)) == (PROMPT + THOUGHT, [*ids, *letters(codec, THOUGHT)])
    output = codec.encode(THOUGHT + " licence")[:-1]
    shown = THOUGHT + " l"
    made = with_output(PROMPT, ids, marks, shown, codec.encode(THOUGHT)[:8] + letters(codec, "xyz"), False, codec)
    assert made is None or made.text == (PROMPT + THOUGHT)[: len(made.text)]
    assert made is None or len(made.ids) <= len(ids) + 8


def test_what_generated_nothing_that_shows_is_not_known(codec):
    ids = array("q", codec._tokenizer.encode(PROMPT))
    assert with_output(PROMPT, ids, (Mark(len(PROMPT), len(ids)),), "", [], True, codec) is None
    assert with_output(PROMPT, ids, (Mark(len(PROMPT), len(ids)),), "", letters(codec, "abc"), False, codec) is None


def test_ids_end_before_the_first_that_is_hidden():
    assert before_hidden([5, 6, 1, 7], frozenset({0, 1})) == [5, 6]
    assert before_hidden([5, 6], frozenset({0, 1})) == [5, 6]
