"""Environments with a given torch, Python and pytest, for the matrix."""

import json
import subprocess
import sys
from pathlib import Path

import stand_ins

PROJECT = Path(__file__).parent.parent.parent
# What a torch needs to run on a CPU: all that its wheel asks for but the libraries of CUDA.
NEEDS = """
import importlib.metadata, re
from pip._vendor.packaging.requirements import Requirement
for line in importlib.metadata.requires("torch"):
    need = Requirement(line)
    marker = need.marker is None or need.marker.evaluate({"extra": ""})
    if marker and not re.match("nvidia|cuda|triton|pytorch-triton", need.name):
        print(need.name + str(need.specifier))
"""
# What the tests use, by name, so that pip takes of each what fits the pytest: the extra `dev`,
# without its own torch and pytest, and without what only checks and builds. Dynamo wants setuptools.
TOOLS = """
import importlib.metadata
from pip._vendor.packaging.requirements import Requirement
print("setuptools")
for line in importlib.metadata.requires("gradguard"):
    need = Requirement(line)
    of_dev = need.marker and need.marker.evaluate({"extra": "dev"})
    if of_dev and need.name not in ("torch", "pytest", "build", "mypy", "pyright", "ruff"):
        print(need.name)
"""
VERSIONS = """
import json, platform, pytest, torch, gradguard
print(json.dumps({"torch": torch.__version__.split("+")[0], "python": platform.python_version(),
                  "pytest": pytest.__version__}))
"""


class Environment:
    """One virtual environment, made where there is none yet."""

    def __init__(self, folder: Path) -> None:
        scripts = folder / ("Scripts" if sys.platform == "win32" else "bin")
        self.folder = folder
        self.python = scripts / "python"

    def exists(self) -> bool:
        return (self.folder / "made").exists()

    def make(self, python: str, torch: str, pytest: str | None, *, cuda: bool) -> None:
        """Install torch, the test tools and gradguard as it lies here.

        Without `cuda` the libraries of CUDA are left out and stand-ins made for them.
        """
        subprocess.run([python, "-m", "venv", "--clear", self.folder], check=True)
        if cuda:
            self.install(f"torch=={torch}")
        else:
            self.install("--no-deps", f"torch=={torch}")
            self.install(*self.output(NEEDS).split())
            path = self.output("import sysconfig; print(sysconfig.get_path('purelib'))").strip()
            stand_ins.make(Path(path, "torch"))
        self.install("--no-deps", "--editable", str(PROJECT))
        self.install(f"pytest=={pytest}" if pytest else "pytest", *self.output(TOOLS).split())
        (self.folder / "made").touch()

    def versions(self) -> dict[str, str]:
        """The versions that were installed, after importing each."""
        found: dict[str, str] = json.loads(self.output(VERSIONS))
        return found

    def install(self, *what: str) -> None:
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *what], check=True)

    def output(self, code: str) -> str:
        return subprocess.run(
            [self.python, "-c", code], stdout=subprocess.PIPE, text=True, check=True
        ).stdout
