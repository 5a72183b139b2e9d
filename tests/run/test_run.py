"""``python -m gradguard run``: a script behaves as under plain ``python``, and is reported on."""

import importlib.metadata
import json
import platform
import signal
import textwrap

import pytest

import gradguard

WITHOUT_TORCH = "gradguard: warning: nothing was watched: torch was not imported\n"


def same(project, *arguments):
    """Run both ways, expect the same, and return what the script wrote to stdout."""
    plain, run = project.plain(*arguments), project.run(*arguments)
    assert run.stdout == plain.stdout
    assert run.returncode == plain.returncode
    assert run.stderr == plain.stderr + WITHOUT_TORCH
    return plain.stdout


IDENTITY = """
    import json, pickle, sys
    class Own: pass
    pickled = pickle.loads(pickle.dumps(Own()))
    spec = None if __spec__ is None else __spec__.name
    print(json.dumps([
        sys.argv, sys.path, __name__, __file__, __package__, spec, __doc__, type(__loader__).__name__,
        sys.modules["__main__"].Own is Own, type(pickled) is Own, __cached__ is None,
        sorted(name for name in globals() if name.startswith("__")), type(__builtins__).__name__,
    ]))
"""


def test_identity(project):
    """argv, path and __main__ are as under python, whatever the script's options are."""
    project.write("here/script.py", IDENTITY)
    shown = same(project, "here/script.py", "--strict", "-m", "x", "--", "--help")
    assert json.loads(shown)[0] == ["here/script.py", "--strict", "-m", "x", "--", "--help"]


def test_identity_of_a_module(project):
    """So are those of a module, with relative imports."""
    project.write("package/__init__.py", "")
    project.write("package/other.py", "value = 3")
    code = textwrap.dedent(IDENTITY) + "from .other import value\nprint(value)"
    project.write("package/inner.py", code)
    project.write("package/__main__.py", code)
    assert same(project, "-m", "package.inner", "-x", "1").endswith("3\n")
    assert same(project, "-m", "package").endswith("3\n")


def test_directory_and_link(project):
    """A directory with a __main__.py runs, and a link imports from where it leads."""
    project.write(
        "app/__main__.py", "import sys, near; print(sys.argv, sys.path, __package__, __file__)"
    )
    project.write("app/near.py", "")
    same(project, "app", "1")
    project.write("real/near.py", "")
    link = project.path / "link.py"
    link.symlink_to(project.write("real/script.py", "import sys, near; print(sys.path, __file__)"))
    same(project, "link.py")


@pytest.mark.parametrize(
    "end",
    [
        "sys.exit()",
        "sys.exit(7)",
        "sys.exit(300)",
        "sys.exit(True)",
        "sys.exit('what is wrong')",
        "sys.exit(('a', 1))",
        "1 / 0",
        "exec('raise SystemExit(5)')",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e",
        "def f(): g()\ndef g(): import missing_module_of_nobody\nf()",
        "exec('x = (')",
        "sys.excepthook = lambda *error: print('hooked', error[0], file=sys.stderr); 1 / 0",
        "import threading; threading.Timer(0.1, print, ['late']).start()",
        "from concurrent.futures import ThreadPoolExecutor as P; P(1).submit(print, 'in a pool')",
    ],
)
def test_end(project, end):
    """Exit codes, what is printed, and tracebacks are as under python."""
    script = project.write("script.py", f"import sys\nprint('began', flush=True)\n{end}\n")
    plain, run = project.plain(str(script)), project.run(str(script))
    assert (run.stdout, run.returncode) == (plain.stdout, plain.returncode)
    assert run.stderr == plain.stderr + WITHOUT_TORCH


def test_interrupt(project):
    """After Ctrl-C the process ends by the signal, with the script's own traceback."""
    code = "import atexit; atexit.register(print, 'bye')\nraise KeyboardInterrupt\n"
    script = project.write("script.py", code)
    plain, run = project.plain(str(script)), project.run(str(script))
    assert run.returncode == plain.returncode == -signal.SIGINT
    assert run.stdout == plain.stdout == "bye\n"
    assert run.stderr == plain.stderr + WITHOUT_TORCH


def test_children(project):
    """Children, spawned and forked, find the script's functions, and write no summary."""
    project.write(
        "script.py",
        """
        import multiprocessing, os, sys, warnings
        def double(number): return 2 * number
        if __name__ == "__main__":
            # Python from 3.12 on warns of a fork where the pool's threads are still ending.
            warnings.simplefilter("ignore", DeprecationWarning)
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    print(pool.map(double, [1, 2]), flush=True)
            if os.fork() == 0:
                sys.exit(3)
            print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
            if os.fork() == 0:
                os._exit(4)
            print(os.waitstatus_to_exitcode(os.wait()[1]))
        """,
    )
    assert same(project, "script.py") == "[2, 4]\n[2, 4]\n3\n4\n"


def test_leaving_at_once(project):
    """os._exit ends the script at once, and what was found is said before."""
    project.write("script.py", "import os; print('x', flush=True); os._exit(3)")
    run = project.run("--report", "report.json", "script.py")
    assert (run.returncode, run.stdout, run.stderr) == (3, "x\n", WITHOUT_TORCH)
    assert json.loads((project.path / "report.json").read_text())["exit_code"] == 3
    project.write("script.py", "import atexit, os; atexit.register(os._exit, 4)")
    run = project.run("script.py")
    assert (run.returncode, run.stderr) == (4, WITHOUT_TORCH)


def test_killed(project):
    """Of a process that is killed the report says that it has no exit code."""
    project.write("script.py", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert project.run("--report", "report.json", "script.py").returncode == -signal.SIGKILL
    assert json.loads((project.path / "report.json").read_text())["exit_code"] is None


def refused(run):
    """Return the one line with which the front refuses to run."""
    assert run.returncode == 2
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("gradguard run: error: ")
    return line


def test_refused(project):
    """What cannot be run is said in one line, with exit code 2."""
    project.write("package/__init__.py", "")
    project.write("script.py", "print('ran')")
    assert "give a SCRIPT or -m MODULE" in refused(project.run())
    assert "no script 'none.py'" in refused(project.run("none.py"))
    assert "no module 'none.at.all'" in refused(project.run("-m", "none.at.all"))
    assert "no module 'package.__main__'" in refused(project.run("-m", "package"))
    assert "'package' has no __main__.py" in refused(project.run("package"))
    line = refused(project.run("--report", "none/report.json", "script.py"))
    assert "cannot write the report 'none/report.json'" in line


def test_unreadable(project, monkeypatch, capsys):
    """A script that may not be read is said so in one line."""
    from gradguard import __main__ as _cli
    from gradguard._run import command as _run
    from gradguard._run import program as _run_script

    def unreadable(self, path):
        raise PermissionError(13, "Permission denied")

    script = project.write("script.py", "")
    assert _run
    monkeypatch.setattr(_run_script.SourceFileLoader, "get_data", unreadable)
    assert _cli.main(["run", str(script)]) == 2
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert "(Permission denied)" in written


def test_syntax_error(project):
    """A syntax error is shown as Python shows it, and the exit code is the front's 2."""
    project.write("script.py", "x = (\n")
    run = project.run("script.py")
    assert run.returncode == 2
    assert run.stderr == project.plain("script.py").stderr
    project.write("script.py", "a\0b\n")
    run = project.run("script.py")
    assert run.returncode == 2
    assert "Error: source code" in run.stderr  # a ValueError before Python 3.11.4
    assert "null bytes" in run.stderr


def test_failing_package(project):
    """A package that fails when it is imported for one of its modules is a crash of its own."""
    project.write("package/__init__.py", "1 / 0")
    project.write("package/inner.py", "")
    run = project.run("-m", "package.inner")
    assert run.returncode == 1
    assert run.stderr.splitlines()[1].endswith('__init__.py", line 1, in <module>')
    project.write("package/__init__.py", "import missing_module_of_nobody")
    assert "No module named 'missing_module_of_nobody'" in project.run("-m", "package.inner").stderr


FAULTY = """
    import os, sys, torch, warnings
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "Implicitly cleaning up")  # torch 2.6, when it imports Dynamo
    warnings.filterwarnings("ignore", "Guards may run slower")  # torch, on Python 3.13.0
    from torch import nn
    from torch.utils.data import DataLoader
    from torch._dynamo.utils import counters

    def work(model, optimizer, loader):
        for given in loader:
            optimizer.zero_grad()
            model(given).sum().backward()
            optimizer.step()

    if __name__ == "__main__":
        assert os.environ["OMP_NUM_THREADS"] == "1"
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters())
        data = [torch.randn(4) for _ in range(8)]
        for method in ("fork", "spawn"):
            work(model, optimizer, DataLoader(data, 4, num_workers=1, multiprocessing_context=method))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        for size in (4, 2):
            work(compiled, optimizer, DataLoader(data, size))
        for _ in range(2):
            model(data[0].expand(2, 4)).sum().backward()
            optimizer.zero_grad()
            optimizer.step()  # empty
        print(sorted(counters["stats"].items()), dict(counters["graph_break"]))
        torch.set_grad_enabled(False)  # left
        loss = model(data[0].expand(2, 4)).sum()
        try:
            loss.backward()
        except RuntimeError:
            pass
        if "crash" in sys.argv:
            1 / 0
"""


def line(script, text):
    lines = script.read_text().splitlines()
    return next(number for number, code in enumerate(lines, 1) if text in code)


def without_torch_s_own(stderr):
    """The lines but for what torch logs where it comes without triton, as on a CPU."""
    return [line for line in stderr.splitlines() if "triton not found" not in line]


def test_report(project, monkeypatch):
    """A faulty script with workers and compiled models: same output, summary and report.

    Its warnings are errors, it compiles no more and with no more graph breaks than plainly, and
    --strict makes an exit code of 0 a 1.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = project.write("script.py", FAULTY)
    plain = project.plain("script.py")
    assert without_torch_s_own(plain.stderr) == []
    run = project.run("--strict", "--report", "report.json", "script.py", "given")
    assert run.stdout == plain.stdout
    assert run.returncode == 1
    report = json.loads((project.path / "report.json").read_text())
    leak, empty = report.pop("findings")
    counts = report.pop("counts")
    assert (counts["findings"], counts["faults"], counts["models"]) == (2, 2, 2)
    ((process,),) = (report.pop("processes"),)
    assert process["steps"] == counts["steps"] == 12
    assert report == {
        "schema": 1,
        "command": "run",
        "script": "script.py",
        "arguments": ["given"],
        "exit_code": 1,
        "versions": {
            "gradguard": gradguard.__version__,
            "torch": importlib.metadata.version("torch"),
            "python": platform.python_version(),
        },
    }
    assert (leak["kind"], leak["lineno"]) == ("mode-leak", line(script, "# left"))
    assert (empty["kind"], empty["lineno"]) == ("empty-step", line(script, "# empty"))
    assert leak["filename"] == "script.py"
    lines = without_torch_s_own(run.stderr)
    assert lines[0].startswith(f"gradguard: script.py:{line(script, '# empty')}: empty-step ")
    assert lines[1].startswith(f"gradguard: script.py:{line(script, '# left')}: mode-leak ")
    assert lines[2] == "gradguard: 2 findings, the worst first"
    assert f"1. mode-leak (once): script.py:{line(script, '# left')}" in lines
    assert "     torch.set_grad_enabled(False) # left" in lines


def test_report_of_a_crash(project, monkeypatch):
    """After a crash the summary follows the script's traceback, and its exit code stands."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code = textwrap.dedent(FAULTY).replace(
        "compiled = torch.compile(", "compiled = (lambda m, **_: m)("
    )
    project.write("script.py", code)
    run = project.run("--strict", "script.py", "crash")
    assert run.returncode == 1
    head, summary = run.stderr.split("gradguard: 2 findings")
    told = [text for text in head.splitlines() if not text.startswith("gradguard: script.py:")]
    assert told[0] == "Traceback (most recent call last):"
    assert told[-1] == "ZeroDivisionError: division by zero"
    assert not any("gradguard" in text for text in told)
    assert "mode-leak" in summary


def test_healthy(project):
    """One line when there is nothing, and --strict leaves the exit code."""
    project.write("script.py", "import torch; m = torch.nn.Linear(1, 1); m(torch.ones(1, 1))")
    run = project.run("--strict", "script.py")
    assert (run.returncode, run.stdout) == (0, "")
    assert run.stderr == "gradguard: nothing found (0 optimizer steps, 1 model called)\n"


def test_nothing_watched(project):
    """Where neither a model was called nor a step made, a warning says so, not "nothing found"."""
    project.write("script.py", "import torch; torch.ones(1)")
    run = project.run("script.py")
    assert (run.returncode, run.stdout) == (0, "")
    assert run.stderr.startswith(
        "gradguard: warning: nothing was watched: 0 models were called, 0 "
    )
