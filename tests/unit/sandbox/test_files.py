"""Files that a program in the sandbox must not touch: each way is tried, from inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eval.accuracy import sandbox
from tests.conftest import ROOT
from tests.unit.sandbox.programs import refused, run

WRITES = {
    "create": "open({folder!r} + '/new', 'w')",
    "overwrite": "open({file!r}, 'w')",
    "append": "open({file!r}, 'a')",
    "truncate by reading": "os.open({file!r}, os.O_RDONLY | os.O_TRUNC)",
    "truncate by path": "os.truncate({file!r}, 0)",
    "remove": "os.remove({file!r})",
    "rename": "os.rename({file!r}, {file!r} + '2')",
    "move in": "os.rename({file!r}, 'stolen')",
    "move out": "open('own', 'w').close(); os.rename('own', {folder!r} + '/own')",
    "link": "os.link({file!r}, 'linked')",
    "through a symbolic link": "os.symlink({file!r}, 'way'); open('way', 'w')",
    "mkdir": "os.mkdir({folder!r} + '/new')",
    "rmdir": "os.rmdir({folder!r} + '/empty')",
    "fifo": "os.mkfifo({folder!r} + '/fifo')",
    "chmod": "os.chmod({file!r}, 0o777)",
    "chown": "os.chown({file!r}, 1234, 1234)",
    "touch": "os.utime({file!r}, (0, 0))",
    "attributes": "os.setxattr({file!r}, 'user.x', b'1')",
    "temporary files of others": "open('/tmp/escaped-from-a-sandbox', 'w')",
    "shared memory": "open('/dev/shm/escaped-from-a-sandbox', 'w')",
}


@pytest.fixture(params=["this kernel", "Linux 5.13"])
def readable(request, tmp_path, tmp_path_factory, monkeypatch):
    """A folder that may be read, as Python's own may; with Landlock as it is here, and as it was first."""
    text, listed, version = sandbox.CONFINE.read_text(), '"/dev/zero"', "libc.syscall(CREATE_RULESET, None, 0, 1)"
    assert listed in text
    assert version in text
    text = text.replace(listed, f"{listed}, {str(tmp_path)!r}")
    if request.param != "this kernel":
        text = text.replace(version, "1")  # it did not know of truncation
    changed = tmp_path_factory.mktemp("changed") / "confine.py"
    changed.write_text(text)
    monkeypatch.setattr(sandbox, "CONFINE", changed)
    return tmp_path


@pytest.mark.parametrize("how", WRITES)
def test_nothing_outside_its_folder_is_written(readable, how):
    os.chmod(readable, 0o777)
    (readable / "empty").mkdir(mode=0o777)
    file = readable / "file"
    file.write_text("as it was")
    os.chmod(file, 0o666)

    def state():
        result = file.stat()
        return sorted(readable.iterdir()), result.st_mode, result.st_uid, result.st_mtime, result.st_nlink

    before = state()
    refused("import os\n" + WRITES[how].format(folder=str(readable), file=str(file)))
    assert state() == before
    assert file.read_text() == "as it was"


def test_what_may_be_read_is_read(readable):
    (readable / "file").write_text("as it was")
    assert run(f"print(open({str(readable / 'file')!r}).read())").stdout == "as it was\n"


def test_secrets_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-secret-token")
    (tmp_path / "secret").write_text("a-secret-file")
    os.chmod(tmp_path, 0o755)
    assert "a-secret" not in run("import os; print(dict(os.environ))").stdout
    refused(f"open({str(tmp_path / 'secret')!r})")
    refused(f"open('/proc/{os.getpid()}/environ', 'rb').read()")
    refused("open('/proc/self/environ', 'rb').read()")
    refused(f"import os; os.listdir({str(Path.home())!r})")
    refused(f"open({str(ROOT / 'pyproject.toml')!r})")


def test_its_folder_is_gone_afterwards_and_open_to_nobody_else():
    outcome = run("import os; open('x', 'w'); print(os.getcwd(), oct(os.stat('.').st_mode & 0o777))")
    folder, mode = outcome.stdout.split()
    assert not os.path.exists(folder)
    assert mode == "0o700"
