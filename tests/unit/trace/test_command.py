"""The command that writes a trace's page."""

from eval.trace_view import __main__ as command
from tests.unit.trace.pages import embedded, traced


def test_the_command_writes_a_page(tmp_path, capsys, bytewise):
    traced(tmp_path / "traces")
    (file,) = (tmp_path / "traces").iterdir()
    assert command.main([str(file)]) == 0
    said = capsys.readouterr().out
    assert "90 tokens, 5 compressions" in said
    assert "of token ids" in said
    assert said.count("\n") == 1
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
        assert sentence in said
        assert said.count("\n") == 1
        assert said.startswith("eval.trace_view: ")
    assert file.read_bytes() == before
