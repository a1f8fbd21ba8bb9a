"""A reasoning segment that the prompt opens, or leaves open."""

import time

import pytest

from sglang_rpc.runtime.segment import SegmentTracker, TextMarker, ThinkMarkers, TokenMarker
from tests.unit.segment.tokens import END, START, TEXT, TOKEN, TOKENIZER, WORD, MergingTokenizer, encode


def test_the_tokenizer_merges_across_the_markers():
    pieces = [TOKENIZER.pieces[i].decode() for i in encode("ab<think>ab\n</think>\n\na")]
    assert pieces == ["ab", "<", "think", ">", "ab", "\n<", "/", "think", ">\n\n", "a"]
    assert TOKENIZER.decode(encode("ab◁think▷")) == "ab◁think▷"


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ([], False),
        ([WORD], False),
        ([START], True),
        ([WORD, START, WORD], True),
        ([START, END], False),
        ([START, END, WORD, START, WORD], True),  # a second turn
        ([START, START, END], False),  # nested: the first end closes
        ([START, WORD, END, END], False),
        ([END], False),
        ([END, START], True),
    ],
)
def test_token_prompts(prompt, is_open):
    assert TOKEN.open_in_prompt(prompt) is is_open
    assert SegmentTracker(TOKEN, prompt).start == (0 if is_open else None)
    assert SegmentTracker(ThinkMarkers(None, TokenMarker(END)), prompt).start == 0  # no start known


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ("", False),
        ("ab", False),
        ("ab<think>", True),
        ("ab<think>\n", True),
        ("ab<think>\n\n</think>\n\n", False),
        ("<think>a</think>b<think>\n", True),
        ("<think><think></think>", False),
        ("<think></think>", False),
        ("</think>", False),
        ("</think><think>", True),
        ("<thin", False),
        ("< think>", False),
    ],
)
def test_text_prompts(prompt, is_open):
    assert TEXT.open_in_prompt(encode(prompt)) is is_open


@pytest.mark.parametrize("text_is", ["start", "end"])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_prompt_with_one_marker_of_each_kind(text_is, is_open):
    # The position of one is counted in tokens, of the other in characters: they must still be compared rightly.
    tokenizer = MergingTokenizer()
    single = len(tokenizer.pieces)
    tokenizer.pieces.append(b"<!>")
    text, token = TextMarker("</think>", tokenizer.decode), TokenMarker(single)
    markers = ThinkMarkers(text, token) if text_is == "start" else ThinkMarkers(token, text)
    marks = {"text": encode("</think>"), "token": [single]}
    first, last = ("text", "token") if (text_is == "start") != is_open else ("token", "text")
    for before, between in ((0, 0), (0, 30), (30, 0), (30, 30)):
        prompt = encode("think") * before + marks[first] + encode("think") * between + marks[last]
        assert markers.open_in_prompt(prompt) is is_open, (before, between)


@pytest.mark.parametrize("markers", [TOKEN, TEXT], ids=["token", "text"])
@pytest.mark.parametrize(
    "filler", [[WORD], [WORD, START, END], [START], [END]], ids=["none", "pairs", "starts", "ends"]
)
def test_a_long_prompt_is_read_fast(markers, filler):
    prompt = (filler * 100_000)[:100_000]
    if markers is TEXT:
        tokens = {WORD: encode("a"), START: encode("<think>"), END: encode("</think>")}
        prompt = [i for word in prompt[: 100_000 // 3] for i in tokens[word]]
    begin = time.perf_counter()
    SegmentTracker(markers, prompt)
    assert time.perf_counter() - begin < 1.0
