"""What is stored of a run, and resumed."""

import pytest

from eval.accuracy.errors import EvalError
from eval.accuracy.store import Store, read
from tests.unit.accuracy.samples import row


def test_a_killed_run_goes_on_without_repeating_or_losing_a_sample(tmp_path):
    path = tmp_path / "deep" / "samples.jsonl"
    store = Store(path, {"seed": 1, "flags": ("a", "b")})
    store.add(row("a", 0))
    store.add(row("b", 0))
    store.close()
    with path.open("a") as file:  # killed in the middle of a line
        file.write('{"problem": "c", "sam')
    again = Store(path, {"seed": 1, "flags": ("a", "b")})
    assert again.done == {("a", 0), ("b", 0)}
    again.add(row("c", 0, answer="\u00e9"))
    again.close()
    config, rows = read(path)
    assert config == {"seed": 1, "flags": ["a", "b"]}
    assert [r["problem"] for r in rows] == ["a", "b", "c"]
    assert rows[-1]["answer"] == "\u00e9"
    with pytest.raises(ValueError, match="already"):
        Store(path, {"seed": 1, "flags": ("a", "b")}).add(row("b", 0))


def test_two_runs_do_not_write_one_file(tmp_path):
    first = Store(tmp_path / "s.jsonl", {})
    with pytest.raises(EvalError, match="being written by another run"):
        Store(tmp_path / "s.jsonl", {})
    first.close()
    Store(tmp_path / "s.jsonl", {}).close()


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_a_model_may_say_any_character(tmp_path, odd):
    store = Store(tmp_path / "s.jsonl", {})
    store.add(row("a", 0, said=f"one{odd}two"))
    store.close()
    assert read(tmp_path / "s.jsonl")[1][0]["said"] == f"one{odd}two"


def test_a_sample_that_is_there_twice_is_seen(tmp_path):
    store = Store(tmp_path / "s.jsonl", {})
    store.add(row("a", 0))
    store.close()
    text = (tmp_path / "s.jsonl").read_text()
    (tmp_path / "s.jsonl").write_text(text + text.splitlines()[1] + "\n")
    with pytest.raises(EvalError, match="a sample is in it twice"):
        Store(tmp_path / "s.jsonl", {})


def test_a_file_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"other": 1}')
    with pytest.raises(EvalError, match="not a file of samples"):
        Store(path, {})
    assert path.read_text() == '{"other": 1}'


def test_samples_of_another_configuration_are_refused(tmp_path):
    path = tmp_path / "s.jsonl"
    Store(path, {"temperature": 0.6}).close()
    with pytest.raises(EvalError, match=r"temperature was 0.6 and is 0.7 now; choose another --out"):
        Store(path, {"temperature": 0.7})
    path.write_text('["no", "samples"]\n')
    with pytest.raises(EvalError, match="not a file of samples"):
        Store(path, {})


def test_killed_before_the_first_line_was_whole(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"config": {"see')
    store = Store(path, {"seed": 2})
    store.close()
    assert read(path) == ({"seed": 2}, [])
