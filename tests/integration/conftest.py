"""Runs scripts by the front, as a user of these libraries would."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


class Ran:
    """A script that was run: its source, and what was reported."""

    def __init__(self, script: Path, run, report):
        self.lines = script.read_text().splitlines()
        self.script = script
        self.run = run
        self.findings = report["findings"]

    def at(self, mark):
        """Return the number of the line that has a mark."""
        (number,) = [at for at, line in enumerate(self.lines, 1) if line.endswith(f"# {mark}")]
        return number

    def kinds(self):
        """Return kind and line of each finding, which must be in the script."""
        assert {one["filename"] for one in self.findings} <= {self.script.name}
        return {(one["kind"], one["lineno"]) for one in self.findings}


@pytest.fixture
def run(tmp_path):
    """Run a script by the front; the words after it are its arguments."""

    def run(code, *arguments):
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(code))
        report = tmp_path / "report.json"
        command = [sys.executable, "-m", "gradguard", "run", "--report", str(report)]
        done = subprocess.run(
            [*command, str(script), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return Ran(script, done, json.loads(report.read_text()))

    return run
