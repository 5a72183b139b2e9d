"""What the tests of `gradguard run` share: a folder of scripts, run plainly and by the front."""

import json
import subprocess
import sys
import textwrap

import pytest


class Project:
    """A directory in which scripts are written and run, plainly and by the front."""

    def __init__(self, path):
        self.path = path

    def write(self, name, code):
        file = self.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(code), encoding="utf-8")
        return file

    def plain(self, *arguments, **options):
        return self._start(*arguments, **options)

    def run(self, *arguments, **options):
        return self._start("-m", "gradguard", "run", *arguments, **options)

    def _start(self, *arguments, **options):
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, cwd=self.path, capture_output=True, text=True, check=False, **options
        )

    def start(self, *arguments):
        """Start the front without waiting for its end."""
        command = [sys.executable, "-m", "gradguard", "run", *map(str, arguments)]
        return subprocess.Popen(
            command,
            cwd=self.path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def report(self, name="report.json"):
        return json.loads((self.path / name).read_text(encoding="utf-8"))


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)
