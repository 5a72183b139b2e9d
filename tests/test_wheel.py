"""What is built and installed: files, metadata, entry points, and the names that pickle."""

import json
import pickle
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import gradguard

ROOT = Path(gradguard.__file__).parents[1]
CHECKOUT = (ROOT / "pyproject.toml").exists() and (ROOT / "LICENSE").exists()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that this checkout builds, without a network."""
    if not CHECKOUT:
        pytest.skip("there is nothing to build: the tests run against an installed package")
    pytest.importorskip("hatchling", reason="the build backend is not installed")
    out = tmp_path_factory.mktemp("wheel")
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(out / done.stdout.split()[-1]) as built:
        yield built


def read(wheel, ending):
    (name,) = (one for one in wheel.namelist() if one.endswith(ending))
    return wheel.read(name).decode()


def test_contents(wheel):
    """Every file of the package, the marker for type checkers among them, and nothing beside it."""
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "gradguard").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    built = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert built == package
    assert "gradguard/py.typed" in built
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_metadata(wheel):
    """Name, version, licence, Pythons, what it needs at run time, and where its source is."""
    metadata = Parser().parsestr(read(wheel, ".dist-info/METADATA"))
    assert metadata["Name"] == "gradguard"
    assert metadata["Version"] == gradguard.__version__
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.10"
    needs = metadata.get_all("Requires-Dist")
    always = {one.split(">")[0].split("<")[0] for one in needs if "extra ==" not in one}
    assert always == {"torch", "typing-extensions"}
    classifiers = metadata.get_all("Classifier")
    assert "Framework :: Pytest" in classifiers
    assert "Typing :: Typed" in classifiers
    rows = json.loads((ROOT / "tests" / "matrix" / "rows.json").read_text(encoding="utf-8"))
    whole = {row["python"].rpartition(".")[0] for row in rows}  # nothing else is claimed
    claimed = {one.rpartition(" ")[2] for one in classifiers if one.count(":: 3.")}
    assert claimed == whole
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "# gradguard" in metadata.get_payload()


def test_entry_points(wheel):
    """The command, the pytest plugin and the flake8 plugin, and each can be loaded."""
    text = read(wheel, ".dist-info/entry_points.txt")
    groups = [part.split("]\n") for part in text.split("[") if part]
    found = {
        name: dict(line.split(" = ") for line in rest.split("\n") if line) for name, rest in groups
    }
    assert found == {
        "console_scripts": {"gradguard": "gradguard.__main__:main"},
        "flake8.extension": {"GG": "gradguard._lint.flake8:Plugin"},
        "pytest11": {"gradguard": "gradguard._pytest.plugin"},
    }


@pytest.mark.parametrize("name", gradguard.__all__)
def test_a_public_name_pickles_by_that_name(name):
    """It says that it is gradguard's, and pickle and cloudpickle send it by name."""
    value = getattr(gradguard, name)
    assert value.__module__ == "gradguard"
    assert getattr(value, "__qualname__", getattr(value, "__name__", name)) == name
    written = pickle.dumps(value)
    assert pickle.loads(written) is value  # noqa: S301 (written above)
    assert b"gradguard" in written
    assert b"gradguard." not in written
    cloudpickle = pytest.importorskip("cloudpickle")
    assert pickle.loads(cloudpickle.dumps(value)) is value  # noqa: S301 (as above)


def test_the_changelog_names_every_public_name():
    """Whoever upgrades finds each of them."""
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("the changelog is not beside the package")
    text = changelog.read_text(encoding="utf-8")
    assert [name for name in gradguard.__all__ if f"`{name}" not in text] == []
