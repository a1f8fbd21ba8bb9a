"""Machines where a program cannot be confined: it is not run."""

from __future__ import annotations

import pytest

from eval.accuracy import sandbox
from eval.accuracy.errors import EvalError
from tests.unit.sandbox.programs import run


@pytest.mark.parametrize(
    ("line", "broken", "named"),
    [
        ("CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444", "CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 1023", "Landlock"),
        ('"libseccomp.so.2"', '"libnothing.so.2"', "libseccomp2"),
        ("def main(", "import os; os._exit(9)\ndef main(", "ended with 9"),
    ],
)
def test_code_is_not_run_where_it_cannot_be_confined(tmp_path, monkeypatch, line, broken, named):
    text = sandbox.CONFINE.read_text()
    assert line in text
    (tmp_path / "confine.py").write_text(text.replace(line, broken))
    monkeypatch.setattr(sandbox, "CONFINE", tmp_path / "confine.py")
    with pytest.raises(EvalError, match=f"cannot be run safely here, so it is not run: .*{named}") as caught:
        run(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_program_cannot_say_that_it_was_not_confined():
    outcome = run(
        "import os, sys\nfor fd in range(3, 64):\n    try: os.write(fd, b'-')\n    except OSError: pass\nsys.exit(1)"
    )
    assert (outcome.ended, outcome.code) == ("exit", 1)
