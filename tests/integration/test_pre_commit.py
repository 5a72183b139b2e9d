"""The hook of the README, under the real pre-commit."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pre_commit", reason="needs pre-commit: the extra 'integration'")
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")

README = Path(__file__).parents[2] / "README.md"
FAULT = "import torch\n\ntorch.no_grad()\n"


@pytest.fixture
def project(tmp_path):
    """A git repository with the README's configuration."""
    (block,) = re.findall(
        r"^```yaml\n(repos:\n.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    (tmp_path / ".pre-commit-config.yaml").write_text(block, encoding="utf-8")
    subprocess.run([shutil.which("git"), "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def run(project):
    subprocess.run([shutil.which("git"), "add", "-A"], cwd=project, check=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        cwd=project,
        env={**os.environ, "PATH": path, "PRE_COMMIT_HOME": str(project / ".home")},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_fault_stops_the_commit(project):
    """A file with a fault fails the hook at its line, and passes once it is mended."""
    (project / ".gitignore").write_text(".home\n", encoding="utf-8")
    file = project / "serve.py"
    file.write_text(FAULT, encoding="utf-8")
    done = run(project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "serve.py:3:1: GG107" in done.stdout
    file.write_text("import torch\n", encoding="utf-8")
    assert run(project).returncode == 0
