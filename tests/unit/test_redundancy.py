"""Entropy of n-grams: sequences whose entropy is known exactly, what holds of all of them, and the files it reads."""

from __future__ import annotations

import base64
import csv
import json
import math
import zlib
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.redundancy import __main__ as command
from eval.redundancy import kept, texts
from eval.redundancy.entropy import distinct_share, entropy, most, ngrams, repeats, share
from eval.redundancy.measure import Measured, groups, measure, windows

SEQUENCES = st.lists(st.integers(0, 5), max_size=60)


def de_bruijn(symbols: int, n: int) -> list[int]:
    """A sequence in which every n-gram over `symbols` stands exactly once: symbols^n + n - 1 long (prefer-largest)."""
    found, seen = [0] * n, {(0,) * n}
    while True:
        tail = found[len(found) - n + 1 :]
        following = next((s for s in reversed(range(symbols)) if (*tail, s) not in seen), None)
        if following is None:
            return found
        seen.add((*tail, following))
        found.append(following)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_constant_sequence_has_no_entropy(n):
    assert entropy([7] * 50, n) == 0.0 and math.copysign(1, entropy([7] * 50, n)) == 1
    assert distinct_share([7] * 50, n) == 1 / (50 - n + 1)


def test_two_tokens_in_turn_have_one_bit_whatever_n():
    assert entropy([0, 1] * 32, 1) == 1.0
    assert entropy([0, 1] * 32 + [0], 2) == 1.0  # 32 of (0, 1), 32 of (1, 0)
    assert entropy([0, 1] * 32 + [0, 1], 3) == 1.0
    # One (0, 1) more than (1, 0): not quite.
    assert entropy([0, 1] * 2, 2) == pytest.approx(-(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3)))


@pytest.mark.parametrize("k", range(8))
def test_every_token_once_has_the_bits_of_their_number(k):
    for n in (1, 2, 3):
        tokens = list(range(2**k + n - 1))
        assert entropy(tokens, n) == k == most(len(tokens), n)
        assert distinct_share(tokens, n) == 1


@pytest.mark.parametrize(("symbols", "n"), [(2, 1), (2, 3), (4, 2), (4, 3), (8, 2)])
def test_a_de_bruijn_sequence_has_the_bits_of_all_its_n_grams(symbols, n):
    tokens = de_bruijn(symbols, n)
    assert sorted(ngrams(tokens, n)) == sorted(product(range(symbols), repeat=n))
    assert entropy(tokens, n) == n * math.log2(symbols)


def test_a_known_unequal_distribution():
    tokens = ["a"] * 8 + ["b"] * 4 + ["c"] * 2 + ["d"] * 2
    assert entropy(tokens, 1) == 1.75  # the textbook's 1/2, 1/4, 1/8, 1/8


@pytest.mark.parametrize("n", [1, 2, 3])
def test_shorter_than_n_is_nothing_to_measure(n):
    tokens = list(range(n - 1))
    assert ngrams(tokens, n) == [] and repeats(tokens, n) == [False] * (n - 1)
    assert math.isnan(entropy(tokens, n)) and math.isnan(distinct_share(tokens, n)) and math.isnan(most(n - 1, n))
    assert math.isnan(share([]))


@given(SEQUENCES, st.integers(1, 4))
def test_bounds(tokens, n):
    if len(tokens) >= n:
        assert 0 <= entropy(tokens, n) <= most(len(tokens), n) + 1e-9


@given(SEQUENCES, st.permutations(range(6)), st.integers(1, 3))
def test_names_of_tokens_do_not_matter(tokens, names, n):
    assert entropy([names[t] for t in tokens], n) == pytest.approx(entropy(tokens, n), nan_ok=True)


@given(SEQUENCES, st.integers(1, 3))
def test_an_n_gram_says_no_less_than_its_beginning(tokens, n):
    """What holds between orders: of the same places, longer n-grams have no less entropy, and no more than their parts
    have together. H_2 < H_1 of one sequence is possible, since the last token begins no bigram."""
    if len(tokens) >= n + 1:
        parts = [tokens[first : len(tokens) - n + first] for first in range(n + 1)]
        longer = entropy(tokens, n + 1)
        assert longer >= entropy(tokens[:-1], n) - 1e-9
        assert longer <= sum(entropy(part, 1) for part in parts) + 1e-9


def test_the_entropy_of_bigrams_may_be_below_that_of_tokens():
    assert entropy([0, 0, 1], 2) == 1.0 and entropy([0, 1], 2) == 0.0 < entropy([0, 1], 1)


@given(SEQUENCES, st.integers(1, 3))
def test_what_is_no_repeat_is_distinct(tokens, n):
    marks = repeats(tokens, n)
    assert len(marks) == len(tokens)
    assert len(ngrams(tokens, n)) - sum(marks) == len(set(ngrams(tokens, n)))


def test_repeats_are_marked_where_the_n_gram_ends():
    assert repeats("abcabd", 1) == [False, False, False, True, True, False]
    assert repeats("abcabd", 2) == [False, False, False, False, True, False]


def test_windows_are_whole_and_of_one_length():
    assert windows("abcdefg", 3, every=True) == ["abc", "def"]
    assert windows("abcdefg", 3, every=False) == ["abc"]
    assert windows("ab", 3, every=True) == windows("ab", 3, every=False) == []


def test_a_text_is_measured_by_its_windows_mean():
    first, _, third = measure(texts.Text("g", "t", "aaaaabab"), 4, every=True)
    assert (first.n, first.entropy, first.windows, first.length, first.tokens) == (1, 0.5, 2, 8, 4)
    assert third.entropy == 0.5 and third.distinct == (1 / 2 + 1) / 2 and third.most == 1
    assert [row.entropy for row in measure(texts.Text("g", "t", "aaaaabab"), 4, every=False)] == [0, 0, 0]


def test_a_group_is_the_mean_over_texts_with_its_standard_error():
    rows = [Measured("g", str(i), 1, value, value / 10, 9, 4, 1, 4) for i, value in enumerate((1.0, 2.0, 3.0))]
    (found,) = groups(rows)
    assert (found.texts, found.entropy, found.distinct) == (3, 2.0, pytest.approx(0.2))
    assert found.error == pytest.approx(1 / math.sqrt(3)) and found.distinct_error == pytest.approx(0.1 / math.sqrt(3))
    assert math.isnan(groups(rows[:1])[0].error)
    constant = [Measured("g", str(i), 1, 0.0, 0.0, 9, 4, 1, 4) for i in range(3)]
    assert groups(constant)[0].error == 0  # no share of right and wrong: that all are 0 is known


def sample(problem, thoughts, said):
    return json.dumps({"problem": problem, "sample": 0, "thoughts": thoughts, "said": said})


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "far.jsonl"
    rows = ['{"config": {"task": "t", "model": "m"}}', sample("p0", "a b a b", "c"), sample("p1", "a a a a", "a")]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_samples_give_a_text_each_of_the_part_asked_for(samples):
    def tokens(part):
        return [text.tokens for text in texts.read("g", samples, part, texts.WORDS)]

    assert tokens("generated") == [["a", "b", "a", "b", "c"], ["a"] * 5]
    assert tokens("thoughts") == [["a", "b", "a", "b"], ["a"] * 4] and tokens("said") == [["c"], ["a"]]


def test_the_command_writes_its_table(samples, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("w x y z\n")
    (tmp_path / "two.txt").write_text("w\n")
    out = tmp_path / "out"
    given_groups = ["--group", f"reasoner={samples}", "--group", f"prose={tmp_path}/*.txt"]
    assert command.main([*given_groups, "--tokens", "4", "--part", "thoughts", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "n-grams of 4 words (words)" in printed and "prose: 1 of 2 texts are shorter than 4" in printed
    rows = list(csv.DictReader((out / "texts.csv").open()))
    assert [(r["group"], r["n"], r["entropy"]) for r in rows if r["n"] == "1"] == [
        ("reasoner", "1", "1"),
        ("reasoner", "1", "0"),
        ("prose", "1", "2"),
    ]
    summary = list(csv.DictReader((out / "summary.csv").open()))
    assert [(r["group"], r["texts"], r["entropy"]) for r in summary if r["n"] == "1"] == [
        ("reasoner", "2", "0.5"),
        ("prose", "1", "2"),
    ]
    said = json.loads((out / "conditions.json").read_text())
    assert (said["tokens"], said["part"], said["tokenizer"]) == (4, "thoughts", "words")
    assert said["sources"]["reasoner"]["sha256"] == texts.sha256(samples) and "commit" in said
    assert (out / "entropy.png").stat().st_size > 1000 and "<svg" in (out / "entropy.svg").read_text()


def test_a_local_tokenizer_is_used_and_said(samples, tmp_path, capsys):
    (tmp_path / "long.txt").write_text("A0 3 A1 0 n55 a0 7\n")
    flags = ["--tokenizer", "eval/reasoner/model", "--tokens", "7", "--out", str(tmp_path / "out")]
    assert command.main(["--group", f"trace={tmp_path}/long.txt", *flags]) == 0
    assert "n-grams of 7 tokens (model/tokenizer.json, sha256 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--group", "nothing"], "--group must be NAME=FILE [FILE ...], got 'nothing'"),
        (["--group", "=x"], "--group must be NAME=FILE"),
        (["--group", "g=missing/*.txt"], "no file is at 'missing/*.txt'"),
        (["--group", "g={samples}", "--group", "g={samples}"], "--group g is there twice"),
        (["--group", "g={samples}"], "all 2 texts of group g are shorter than --tokens 2048: the longest has 5 words"),
        (["--group", "g={binary}"], "is no text in UTF-8"),
        (["--group", "g={other}"], "is no file of eval.accuracy's samples"),
        (["--group", "g={empty}"], "group g holds no text"),
        (["--group", "g={lacking}"], "lacks 'thoughts'"),
        (["--group", "g={samples}", "--tokenizer", "nowhere"], "--tokenizer must be a directory that holds"),
        (["--group", "g={samples}", "--tokenizer", "{directory}"], "--tokenizer must be a directory that holds"),
        (["--group", "g={samples}", "--tokenizer", "{other}"], "is no tokenizer that the library tokenizers can read"),
    ],
)
def test_bad_input_gets_one_sentence(samples, tmp_path, capsys, arguments, sentence):
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("other", "empty", "lacking")}
    paths["other"].write_text('{"text": "a"}\n')
    paths["empty"].write_text('{"config": {}}\n')
    paths["lacking"].write_text('{"config": {}}\n{"problem": "p", "sample": 0}\n')
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "directory").mkdir()
    known = dict(paths, samples=samples, binary=tmp_path / "binary", directory=tmp_path / "directory")
    flags = [argument.format(**known) for argument in arguments]
    assert command.main([*flags, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def trace(path, sets, *, output=(1, 2, 3, 1, 2, 1, 3, 5), behind=(9,), prompt=(7, 7, 7), start=0, window=2):
    """A request of one compression: of `output` from `start` to its window, each set keeps the positions named."""
    candidates, keep = len(output) - window - start, len(sets[0])
    masks = np.zeros((len(sets), candidates), bool)
    for mask, positions in zip(masks, sets, strict=True):
        mask[[position - start for position in positions]] = True
    packed = base64.b64encode(zlib.compress(np.packbits(masks, axis=1, bitorder="little").tobytes())).decode()
    held = len(output) + len(behind) - candidates + keep
    header = {"kind": "request", "format": 1, "rid": "r", "layers": len(sets), "heads": 1, "prompt": prompt}
    lines = [
        {**header, "options": {}, "config": {}, "model": "m"},
        {
            **{"kind": "compression", "event": 1, "prompt_length": len(prompt), "generated": len(output)},
            **{"begin": len(prompt) + start, "end": len(prompt) + len(output), "keep": keep, "window": window},
            **{"late": False, "early": False, "think": None, "output": output, "kept": packed},
        },
        {
            **{"kind": "end", "finish": {}, "think": None, "output": behind},
            "receipt": {
                **{"compressions": 1, "generated": len(output) + len(behind), "held": held},
                "evicted": candidates - keep,
            },
        },
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_was_kept_stands_beside_what_could_have_been(tmp_path):
    """In 1 2 3 1 2 1 the last three repeat a token, the fifth a bigram too; a layer kept one 1 2, one the other."""
    found = {(r.choice, r.n): r for r in kept.choices(trace(tmp_path / "r.jsonl", [(0, 1), (3, 4)]))}
    assert {choice: found[choice, 1].tokens for choice in kept.CHOICES} == dict(all=6, kept=2, newest=2, random=2)
    repeated = {choice: [found[choice, n].repeated for n in (1, 2, 3)] for choice in ("all", "kept", "newest")}
    assert repeated == {"all": [1 / 2, 1 / 6, 0], "kept": [1 / 2, 1 / 4, 0], "newest": [1, 1 / 2, 0]}
    assert found["kept", 1].entropy == found["newest", 1].entropy == 1 and found["kept", 2].entropy == 0
    assert found["all", 1].entropy == entropy([1, 2, 3, 1, 2, 1], 1) and found["kept", 1].sets == 2


def test_what_stands_before_the_thoughts_is_no_choice(tmp_path):
    """The first two tokens are kept whatever happens; but what comes after may repeat them."""
    found = {(r.choice, r.n): r for r in kept.choices(trace(tmp_path / "r.jsonl", [(2, 3), (2, 3)], start=2))}
    assert {choice: found[choice, 1].tokens for choice in kept.CHOICES} == dict(all=4, kept=2, newest=2, random=2)
    assert [found[choice, 1].repeated for choice in ("all", "kept", "newest")] == [3 / 4, 1 / 2, 1]


def test_lots_are_drawn_from_the_same_tokens_and_are_the_same_again(tmp_path):
    output = [0, 1] * 500 + [8, 8]
    path = trace(tmp_path / "r.jsonl", [range(400)], output=output)
    (first,) = [r for r in kept.choices(path) if (r.choice, r.n) == ("random", 1)]
    # Of 1000 tokens all but the first two are repeats; of 400 drawn, most draws lack at least one of the two.
    assert first.tokens == 400 and 398 / 400 < first.repeated < 1
    assert first in kept.choices(path) and first not in kept.choices(path, seed=1)


def test_the_command_compares_request_by_request(tmp_path, capsys):
    trace(tmp_path / "a.jsonl", [(0, 1), (3, 4)])
    trace(tmp_path / "b.jsonl", [(0, 2), (0, 2)])
    assert command.main(["--traces", f"{tmp_path}/*.jsonl", "--out", str(tmp_path / "out")]) == 0
    assert "2 requests; tokens before the last compression's window" in capsys.readouterr().out
    rows = {(r["choice"], r["n"]): r for r in csv.DictReader((tmp_path / "out" / "kept_summary.csv").open())}
    assert float(rows["kept", "1"]["repeated"]) == 0.25 and float(rows["all", "1"]["repeated"]) == 0.5
    random = float(rows["random", "1"]["repeated"])
    assert float(rows["kept", "1"]["repeated_to_random"]) == pytest.approx(0.25 - random, abs=1e-5)
    assert float(rows["kept", "1"]["repeated_error"]) == 0.25  # of 0.5 and 0
    assert len(list(csv.DictReader((tmp_path / "out" / "kept.csv").open()))) == 2 * 4 * 3
    said = json.loads((tmp_path / "out" / "conditions.json").read_text())["sources"]["traces"]
    assert said["files"] == 2 and said["said"] == [{"model": "m"}]
    assert (tmp_path / "out" / "kept.png").exists() and (tmp_path / "out" / "kept.svg").exists()


def test_a_trace_that_does_not_say_what_was_kept_is_refused(tmp_path, samples, capsys):
    path = trace(tmp_path / "r.jsonl", [(0, 1)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["kept"] = None  # the writer fell behind
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for given_path, sentence in ((path, "does not say what was kept last"), (samples, "is no trace")):
        assert command.main(["--traces", str(given_path), "--out", str(tmp_path / "out")]) == 1
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
