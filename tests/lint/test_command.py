"""``gradguard check``: what it reads, what it tells, and its exit codes."""

import json
import subprocess
import sys

import pytest

from gradguard._findings.kinds import CHECK_NAMES

GUARD = "import torch\n\ntorch.no_grad()\n"
CLEAN = "import torch\n\nwith torch.no_grad():\n    pass\n"
YIELD = "import torch\n\ndef f():\n    with torch.no_grad():\n        yield 1\n"


def test_a_fault(project):
    """A fault is one line, `path:line:column: CODE message`, then a total; the exit code is 1."""
    project.write("pkg/a.py", GUARD)
    run = project.check("pkg")
    assert run.code == 1
    assert run.lines[0].startswith("pkg/a.py:3:1: GG107 `torch.no_grad()` has no effect")
    assert run.lines[1:] == ["gradguard: 1 fault in 1 file"]
    assert run.err == ""


def test_no_fault(project):
    """Without a fault the exit code is 0; notices are told and fail nothing."""
    project.write("a.py", CLEAN)
    assert project.check("a.py").out == "gradguard: nothing found in 1 file\n"
    project.write("b.py", YIELD)
    run = project.check("a.py", "b.py")
    assert run.code == 0
    assert "b.py:5:9: GG103" in run.out
    assert run.lines[-1] == "gradguard: 1 notice in 2 files"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "nothing to check: give a file or folder"),
        (("none.py",), "there is no file or folder 'none.py'"),
        ((".", "--select", "GG999"), "'GG999' is no code, prefix or name"),
        ((".", "--ignore", "unusd-guard"), "Did you mean 'unused-guard'?"),
        ((".", "--format", "xml"), "invalid choice: 'xml'"),
        ((".", "--nonsense"), "unrecognized arguments: --nonsense"),
        ((".", "--report", "none/x.json"), "cannot write the report 'none/x.json'"),
        (("--explain", "GG999"), "'GG999' is no code"),
    ],
)
def test_usage(project, arguments, part):
    """A wrong option, code or path is one line on stderr that says what to write, and a 2."""
    run = project.check(*arguments)
    assert run.code == 2
    assert part in run.err
    assert "Traceback" not in run.err


def test_wrong_configuration(project):
    """A key of the configuration that means nothing is an error, not ignored."""
    project.write("pyproject.toml", "[tool.gradguard]\nselct = []\n")
    run = project.check(".")
    assert (run.code, run.out) == (2, "")
    assert "no key 'selct', did you mean 'select'?" in run.err


def test_unreadable(project):
    """A file that cannot be opened is told, the others are checked, and the exit code is 2."""
    project.write("a.py", GUARD)
    path = project.write("b.py", CLEAN)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        run = project.check(".")
        assert run.code == 2
        assert "cannot read 'b.py'" in run.err
        assert "a.py:3:1: GG107" in run.out
    finally:
        path.chmod(0o600)


def test_what_is_read(project):
    """Folders give `.py` and `.pyi`, without hidden ones, environments and installed packages."""
    for name in ("a.py", "b.pyi", "sub/c.py", "x.py/d.py"):
        project.write(name, GUARD)
    for name in (
        ".hidden/e.py",
        "venv/f.py",
        "old/g.py",
        "lib/site-packages/h.py",
        "i.txt",
        ".j.py",
    ):
        project.write(name, GUARD)
    project.write("old/pyvenv.cfg", "")
    run = project.check(".")
    told = [line.split(":")[0] for line in run.lines[:-1]]
    assert told == ["a.py", "b.pyi", "sub/c.py", "x.py/d.py"]
    assert "i.txt:3:1: GG107" in project.check("i.txt").out


def test_each_file_once(project):
    """A file that is named twice, or by a link, is read once; a link to a folder above is no loop."""
    project.write("pkg/a.py", GUARD)
    try:
        (project.path / "pkg" / "loop").symlink_to(project.path, target_is_directory=True)
        (project.path / "pkg" / "self.py").symlink_to(project.path / "pkg" / "self.py")
    except OSError:
        pytest.skip("this system makes no links")
    run = project.check("pkg", "pkg/a.py", ".")
    assert run.lines[-1] == "gradguard: 1 fault in 1 file"


def test_excluding(project):
    """What the configuration or the command line excludes is left out, even if it is named."""
    project.write("pyproject.toml", '[tool.gradguard]\nexclude = ["vendor", "*_pb2.py"]\n')
    for name in ("a.py", "vendor/b.py", "x_pb2.py", "tests/c.py"):
        project.write(name, GUARD)
    assert project.check(".").lines[-1] == "gradguard: 2 faults in 2 files"
    assert project.check(".", "--exclude", "tests/**").lines[-1] == "gradguard: 1 fault in 1 file"
    assert project.check("x_pb2.py").code == 0


def test_selecting(project):
    """Codes, prefixes and names choose; the command line stands before the configuration."""
    enter = "import torch\ntorch.no_grad().__enter__()\ntorch.no_grad()\n"
    project.write("a.py", enter)

    def codes(*arguments):
        run = project.check("a.py", "--format", "json", *arguments)
        return [one["code"] for one in json.loads(run.out)["findings"]]

    assert codes() == ["GG107"]
    assert codes("--select", "ALL") == ["GG109", "GG107"]
    assert codes("--select", "GG109") == codes("--select", "manual-enter") == ["GG109"]
    assert codes("--select", "GG10", "--ignore", "GG107") == ["GG109"]
    assert codes("--select", "GG109,GG107") == ["GG109", "GG107"]
    project.write("pyproject.toml", '[tool.gradguard]\nselect = ["GG109"]\n')
    assert codes() == ["GG109"]
    assert codes("--select", "unused-guard") == ["GG107"]
    project.write("pyproject.toml", '[tool.gradguard]\nper-file-ignores = { "a.py" = ["GG107"] }\n')
    assert codes() == []


def test_configuration_of_what_is_checked(project, tmp_path_factory, monkeypatch):
    """The configuration is that of the checked project, wherever one stands."""
    project.write("pyproject.toml", '[tool.gradguard]\nignore = ["GG107"]\nformat = "json"\n')
    path = project.write("src/a.py", GUARD)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    run = project.check(path)
    assert (run.code, json.loads(run.out)["counts"]["findings"]) == (0, 0)


def test_stdin(project):
    """`-` reads standard input; its name decides where findings stand and what is ignored."""
    assert "<stdin>:3:1: GG107" in project.check("-", stdin=GUARD).out
    run = project.check("-", "--stdin-filename", "src/a.py", stdin=GUARD)
    assert (run.code, run.lines[0][:15]) == (1, "src/a.py:3:1: G")
    project.write(
        "pyproject.toml", '[tool.gradguard]\nper-file-ignores = { "src/*" = ["GG107"] }\n'
    )
    assert project.check("-", "--stdin-filename", "src/a.py", stdin=GUARD).code == 0


def test_formats(project):
    """JSON, SARIF and GitHub annotations hold code, kind, place and severity of a finding."""
    project.write("pkg/a.py", GUARD)
    report = json.loads(project.check(".", "--format", "json").out)
    assert (report["schema"], report["command"], report["counts"]["files"]) == (1, "check", 1)
    (finding,) = report["findings"]
    assert finding["code"] == "GG107"
    assert finding["kind"] == "unused-guard"
    assert (finding["filename"], finding["lineno"], finding["column"]) == ("pkg/a.py", 3, 1)
    assert (finding["source"], finding["function"]) == ("torch.no_grad()", "<module>")
    (run,) = json.loads(project.check(".", "--format", "sarif").out)["runs"]
    (rule,) = run["tool"]["driver"]["rules"]
    assert (rule["id"], run["results"][0]["ruleId"]) == ("GG107", "GG107")
    assert rule["shortDescription"]["text"] == "A guard that is made and dropped has no effect."
    github = project.check(".", "--format", "github").out
    assert github.startswith("::error file=pkg/a.py,line=3,col=1,title=GG107 unused-guard::")


def test_report(project):
    """`--report` writes the findings to a file; the exit code says what was found."""
    project.write("a.py", GUARD)
    run = project.check(".", "--format", "json", "--report", "report.json")
    assert (run.code, run.out) == (1, "")
    assert json.loads((project.path / "report.json").read_text())["counts"]["faults"] == 1


def test_sorted(project):
    """Findings are sorted by file, line and column, and two runs give the same output."""
    for name in ("b.py", "a.py"):
        project.write(name, "import torch\nif 1: torch.no_grad(); torch.no_grad()\n" + GUARD)
    first, second = project.check("b.py", "a.py"), project.check("a.py", "b.py")
    assert first.out == second.out
    places = [tuple(line.split(": ")[0].split(":")) for line in first.lines[:-1]]
    keys = [(name, int(line), int(column)) for name, line, column in places]
    assert keys == sorted(keys)
    assert len(keys) == 6


@pytest.mark.parametrize("comment", ["# gradguard: ignore[GG107]", "# noqa: GG107", "# noqa"])
def test_silencing(project, comment):
    """A comment on the line silences its finding, and nothing is told of the comment."""
    project.write("a.py", f"import torch\ntorch.no_grad()  {comment}\n")
    assert project.check(".").out == "gradguard: nothing found in 1 file\n"


def test_silencing_nothing(project):
    """A comment that silences nothing is a notice at its place."""
    project.write("a.py", "import torch\nx = 1  # gradguard: ignore[GG107]\n")
    run = project.check(".")
    assert run.code == 0
    assert run.lines[0].startswith("a.py:2:8: GG002 This comment silences nothing: no GG107 here.")
    assert project.check(".", "--ignore", "GG002").lines[0] == "gradguard: nothing found in 1 file"
    # A rule that was not asked for may have something to say there.
    assert project.check(".", "--ignore", "GG107").lines[0] == "gradguard: nothing found in 1 file"


OFF = "import torch\ntorch.set_grad_enabled(False)\n"
TRAINS = (
    "import torch\n{}\n\ndef fit(loss, optimizer):\n    loss.backward()\n    optimizer.step()\n"
)


def test_imported_modules(project):
    """Grad mode switched at module level is told where another checked file imports it."""
    project.write("pkg/__init__.py", "")
    project.write("pkg/script.py", OFF)
    assert project.check(".").out == "gradguard: nothing found in 2 files\n"
    for text in ("import pkg.script", "from pkg import script", "from pkg.script import x"):
        project.write("main.py", text + "\n")
        assert "pkg/script.py:2:1: GG108" in project.check(".").out
    project.write("main.py", "")
    project.write("pkg/other.py", "def f():\n    from . import script\n")
    assert "pkg/script.py:2:1: GG108" in project.check(".").out
    project.write("pkg/other.py", "import script_of_another_package\nfrom .. import script\n")
    assert "GG108" not in project.check(".").out


@pytest.mark.parametrize(
    "text",
    ["import pkg.script", "from pkg import script", "def f():\n    from pkg.script import x"],
)
@pytest.mark.parametrize("name", ["script", "__init__"])
def test_imported_by_what_trains(project, text, name):
    """It is a notice, and a fault where the importing file trains: there nothing is recorded."""
    project.write("pkg/__init__.py", "")
    project.write("pkg/script.py", "")
    project.write(f"pkg/{name}.py", OFF)
    project.write("main.py", text + "\n")
    assert project.check(".").lines[-1] == "gradguard: 1 notice in 3 files"
    project.write("main.py", TRAINS.format(text))
    run = project.check(".")
    assert run.code == 1
    assert "`main.py` trains in the same process" in run.lines[0]


@pytest.mark.parametrize(
    "text",
    [
        "import pkg.script, torch\ntorch.set_grad_enabled(True)",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pkg.script",
        "import pkg.other",
    ],
)
def test_imported_and_switched_back(project, text):
    """What turns grad on for itself, or imports it for its types alone, is not said to suffer."""
    project.write("pkg/script.py", OFF)
    project.write("main.py", TRAINS.format(text))
    assert project.check(".").code == 0


@pytest.mark.parametrize("name", ["pkg/__init__.py", "test_a.py", "a_test.py", "conftest.py"])
def test_modules_that_are_imported_by_others(project, name):
    """A package, a test file and a conftest are imported by whoever uses them."""
    project.write(name, OFF)
    run = project.check(".")
    assert "GG108" in run.out
    assert run.code == 0


@pytest.mark.parametrize("name", ["test_a.py", "conftest.py"])
def test_test_files_that_train_in_the_mode_of_another(project, name):
    """pytest imports all test files into one process: one that trains goes on in the mode."""
    project.write(f"tests/{name}", OFF)
    project.write("tests/unit/test_z.py", TRAINS.format("import torch"))
    assert project.check(".").code == 1
    assert "`test_z.py` trains" in project.check(".").out
    project.write(f"tests/{name}", "")
    project.write(f"tests/other/{name}", OFF)
    assert project.check(".").code == 0


def test_listing(project):
    """`--list` names every rule, and marks those that are off."""
    lines = project.check("--list").lines
    for code, name in CHECK_NAMES.items():
        if code >= "GG101":
            (line,) = [each for each in lines if each.startswith(code)]
            assert name in line
    assert "GG109* manual-enter" in "\n".join(lines)


def test_explain(project):
    """`--explain` takes a code or a name, and shows why, a bad and a good example."""
    run = project.check("--explain", "GG101")
    assert run.code == 0
    assert run.out == project.check("--explain", "guard-on-async").out
    for part in ("GG101 guard-on-async", "Bad:", "Good:", "    @torch.no_grad()"):
        assert part in run.out


def test_without_torch(project):
    """Nothing of torch is needed: the command works where importing it fails."""
    project.write("a.py", GUARD)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from gradguard.__main__ import main\n"
        "sys.exit(main(['check', 'a.py']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (1, "")
    assert "a.py:3:1: GG107" in run.stdout


def test_nothing_is_run(project):
    """What is checked is never imported or run."""
    project.write("a.py", "import torch\nopen('ran', 'w')\nraise SystemExit\n" + GUARD)
    assert project.check(".").code == 1
    assert not (project.path / "ran").exists()
