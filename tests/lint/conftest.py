"""Running `gradguard check` in a folder of its own."""

import io
import sys
from types import SimpleNamespace

import pytest

from gradguard.__main__ import main


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    """A folder to write files in and to check, as if from a shell there."""
    monkeypatch.chdir(tmp_path)

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(text, encoding="utf-8")
        return path

    def check(*arguments, stdin=None):
        if stdin is not None:
            stream = io.TextIOWrapper(io.BytesIO(stdin.encode()))
            monkeypatch.setattr(sys, "stdin", stream)
        capsys.readouterr()
        try:
            code = main(["check", *map(str, arguments)])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, lines=out.splitlines())

    return SimpleNamespace(path=tmp_path, write=write, check=check)
