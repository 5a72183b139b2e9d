"""``gradguard run`` follows what the program starts: forks, new interpreters, launchers, ranks."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gradguard

TRAINING = """
    import os
    import torch

    def train(leak, steps=3):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(steps):
            if leak and step == 1:
                torch.set_grad_enabled(False)  # HERE
            loss = model(torch.ones(4, 2)).sum()
            if loss.requires_grad:
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()

    def child(number, way):
        # Train; leak the mode in a file that has the name of the way, if this is child 1.
        train(leak=False, steps=1)
        if number == 1:
            torch.set_grad_enabled(True)
            space = {}
            source = "def leak(off):\\n    off(False)"
            exec(compile(source, os.path.abspath(f"leak in {way}.py"), "exec"), space)
            space["leak"](torch.set_grad_enabled)
        train(leak=False, steps=2)
        return number
"""
LINE = TRAINING.splitlines().index("                torch.set_grad_enabled(False)  # HERE") + 1
EVERY_WAY = """
    import multiprocessing, os, subprocess, sys
    import torch.multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from training import child

    def started_by(context):
        started = context.Process(target=child, args=(1, context.get_start_method()))
        started.start()
        started.join()
        print(started.exitcode)

    def forked():
        if os.fork() == 0:
            child(1, "os.fork")
            os._exit(5)
        print(os.waitstatus_to_exitcode(os.wait()[1]))

    if __name__ == "__main__":
        for method in multiprocessing.get_all_start_methods():
            started_by(multiprocessing.get_context(method))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            print(list(pool.map(child, range(2), ["pool"] * 2)))
        torch.multiprocessing.spawn(child, ("torch",), nprocs=2)
        command = "from training import child; print(child(1, 'subprocess'))"
        subprocess.run([sys.executable, "-c", command], check=True)
        if hasattr(os, "fork"):
            forked()
"""
WAYS = {*multiprocessing.get_all_start_methods(), "pool", "torch", "subprocess"}
if hasattr(os, "fork"):
    WAYS.add("os.fork")


@pytest.fixture
def training(project):
    project.write("training.py", TRAINING)
    return project


@pytest.fixture
def temporary(tmp_path_factory, monkeypatch):
    """Give the programs a folder for temporary files of their own: no other suite's lie in it."""
    folder = tmp_path_factory.mktemp("temporary")
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(folder))
    return folder


def left_behind(temporary):
    return [path.name for path in temporary.glob("gradguard-*")]


def test_however_a_child_is_started(training):
    """However a child is started, its leak is named with its line and process, and not its twin."""
    training.write("script.py", EVERY_WAY)
    run = training.run("--strict", "--report", "report.json", "script.py")
    exits = ["0"] * len(multiprocessing.get_all_start_methods())
    fork = ["5"] if hasattr(os, "fork") else []
    assert run.stdout.splitlines() == [*exits, "[0, 1]", "1", *fork]
    assert run.returncode == 1, run.stderr
    report = training.report()
    leaks = {one["filename"]: one for one in report["findings"]}
    assert {kind["kind"] for kind in leaks.values()} == {"mode-leak"}
    assert set(leaks) == {f"leak in {way}.py" for way in WAYS}
    counted = {one["pid"]: one["steps"] for one in report["processes"]}
    for filename, leak in leaks.items():
        (process,) = leak["processes"]
        assert counted[process] >= 3
        assert leak["lineno"] == 2
        assert run.stderr.count(f"gradguard: {filename}:2: mode-leak ") == 1
    twins = 2  # in the pool and of torch
    assert sum(counted.values()) == 3 * (len(WAYS) + twins)


def test_the_workers_of_joblib(training):
    """So are the processes of joblib's loky, which pickles by value and ends its workers itself."""
    pytest.importorskip("joblib")
    training.write(
        "script.py",
        """
        from joblib import Parallel, delayed
        from training import child
        print(Parallel(n_jobs=2)(delayed(child)(number, "loky") for number in range(2)))
        """,
    )
    run = training.run("--strict", "script.py")
    assert (run.stdout, run.returncode) == ("[0, 1]\n", 1)
    assert run.stderr.count("leak in loky.py:2: mode-leak") == 1
    assert "1. mode-leak" in run.stderr


def test_children_that_do_not_train_leave_no_word(project):
    """DataLoader workers and helpers are neither counted nor told."""
    project.write(
        "script.py",
        """
        import torch
        from torch.utils.data import DataLoader
        if __name__ == "__main__":
            model = torch.nn.Linear(1, 1)
            with torch.no_grad():
                for batch in DataLoader(torch.ones(4, 1), num_workers=2):
                    model(batch)
        """,
    )
    run = project.run("--report", "report.json", "script.py")
    assert (run.stdout, run.returncode) == ("", 0)
    assert run.stderr == "gradguard: nothing found (0 optimizer steps, 1 model called)\n"
    assert len(project.report()["processes"]) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_many_children_at_once(training, temporary):
    """A hundred short children leave one valid report, no finding is lost, and no file stays."""
    training.write(
        "script.py",
        """
        import os
        from training import train
        import torch
        torch.set_num_threads(1)
        train(leak=False)  # what torch imports at a first step is not imported a hundred times
        for number in range(100):
            source = f"def leak():\\n" + "\\n" * number + "    import torch; torch.set_grad_enabled(False)"
            if os.fork() == 0:
                space = {}
                exec(compile(source, os.path.abspath(f"part{number}.py"), "exec"), space)
                train(leak=False, steps=1)
                space["leak"]()
                train(leak=False, steps=1)
                os._exit(0)
        for _ in range(100):
            assert os.wait()[1] == 0
        """,
    )
    run = training.run("--quiet", "--report", "report.json", "script.py")
    assert (run.stdout, run.stderr, run.returncode) == ("", "", 0)
    leaks = [one for one in training.report()["findings"] if one["kind"] == "mode-leak"]
    assert sorted(one["filename"] for one in leaks) == sorted(f"part{n}.py" for n in range(100))
    assert len(training.report()["processes"]) == 101
    assert left_behind(temporary) == []
    assert {path.name for path in training.path.iterdir()} <= {
        "training.py",
        "script.py",
        "report.json",
        "__pycache__",
    }


WAITS = """
    import sys
    from training import train
    train(leak=True)
    print("trained", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_what_was_known(training, number):
    """Ended by a signal, the program ends by it, and what was found stands in the report."""
    training.write("script.py", WAITS)
    started = training.start("--report", "report.json", "script.py")
    assert started.stdout.readline() == "trained\n"
    started.send_signal(number)
    _, said = started.communicate()
    assert started.returncode == -number
    assert "mode-leak" in {one["kind"] for one in training.report()["findings"]}
    assert ("gradguard: 1 finding" in said) is (number != signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_killed_child_leaves_what_it_knew(training):
    """A child that is killed is in the summary with what it had found."""
    training.write(
        "script.py",
        """
        import os, signal, subprocess, sys
        command = "from training import train; train(leak=True); print(1, flush=True); input()"
        child = subprocess.Popen([sys.executable, "-c", command], stdout=-1, stdin=-1)
        child.stdout.readline()
        child.kill()
        print(child.wait())
        """,
    )
    run = training.run("--strict", "script.py")
    assert (run.stdout, run.returncode) == (f"{-signal.SIGKILL}\n", 1)
    assert f"1. mode-leak (once): training.py:{LINE}" in run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_children_outlive_a_killed_program(training, temporary):
    """Where the program itself is killed, its child adds to the report and takes its part away."""
    training.write(
        "script.py",
        """
        import subprocess, sys
        from training import train
        train(leak=True)
        command = (
            "import sys; from training import train; train(leak=False, steps=1);"
            "print('ready', flush=True); sys.stdin.read(); train(leak=True)"
        )
        subprocess.run([sys.executable, "-c", command])
        """,
    )
    with training.start("--report", "report.json", "script.py") as started:
        assert started.stdout.readline() == "ready\n"
        started.kill()
        started.wait()
        started.stdin.close()
        started.stdout.read()  # until the child has gone, too
        started.stderr.read()
    report = training.report()
    assert len(report["processes"]) == 2
    assert {one["lineno"] for one in report["findings"] if one["kind"] == "mode-leak"} == {LINE}
    assert left_behind(temporary) == []


def test_os_exit_of_a_child(training):
    """A child that leaves by `os._exit` has its findings told, and its exit code stands."""
    training.write(
        "script.py",
        """
        import subprocess, sys
        command = "import os; from training import train; train(leak=True); os._exit(7)"
        print(subprocess.run([sys.executable, "-c", command]).returncode)
        """,
    )
    run = training.run("script.py")
    assert (run.stdout, run.returncode) == ("7\n", 0)
    assert "mode-leak" in run.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.exec… that replaces the process")
def test_exec(training):
    """A program that becomes another Python is watched in that one, too."""
    training.write("other.py", "from training import train; train(leak=True)")
    training.write(
        "script.py", "import os, sys; os.execl(sys.executable, sys.executable, 'other.py')"
    )
    run = training.run("--report", "report.json", "script.py")
    assert (run.stdout, run.returncode) == ("", 0)
    assert run.stderr.count("1. mode-leak") == 1
    assert training.report()["counts"]["findings"] == 1


def test_other_pythons_are_left_alone(project):
    """A Python without gradguard, `python -I`, an empty environment and a shell run as ever."""
    project.write("bare/sitecustomize.py", "print('the site of this place', flush=True)")
    project.write(
        "script.py",
        """
        import os, subprocess, sys
        show = "import sys; print([p for p in sys.path if 'gradguard' in p and 'startup' in p])"
        hide = "import sys; sys.modules['gradguard'] = None; " + show
        for command in ([sys.executable, "-c", show], [sys.executable, "-I", "-c", show]):
            subprocess.run(command, check=True)
        subprocess.run([sys.executable, "-c", show], env={}, check=True)
        subprocess.run([sys.executable, "-S", "-c", hide], check=True)
        path = os.pathsep.join([os.environ["PYTHONPATH"], "bare"])
        subprocess.run([sys.executable, "-c", show], env={**os.environ, "PYTHONPATH": path}, check=True)
        subprocess.run("echo shell", shell=True, check=True)
        """,
    )
    run = project.run("script.py")
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-3:] == ["the site of this place", "[]", "shell"]
    assert run.stdout.splitlines()[:3] == ["[]", "[]", "[]"]
    assert run.stderr == "gradguard: warning: nothing was watched: torch was not imported\n"


def test_a_python_without_gradguard(project, tmp_path):
    """The start-up hook does nothing, in silence, where gradguard cannot be imported."""
    startup = Path(gradguard.__file__).parent / "_run" / "startup"
    code = "import sys; print('gradguard' in sys.modules, 'sitecustomize' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(startup), "GRADGUARD_RUN": "{}"}
    project.write("empty/gradguard.py", "raise ImportError('not here')")
    environment["PYTHONPATH"] += f"{os.pathsep}{project.path / 'empty'}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == "False True\n"


def test_another_version_of_gradguard_is_left_alone(training):
    """An interpreter with another gradguard than the one that runs writes nothing."""
    training.write(
        "script.py",
        """
        import json, os, subprocess, sys
        settings = json.loads(os.environ["GRADGUARD_RUN"])
        environment = {**os.environ, "GRADGUARD_RUN": json.dumps({**settings, "version": "0.0.1"})}
        command = "from training import train; train(leak=True)"
        subprocess.run([sys.executable, "-c", command], env=environment, check=True)
        """,
    )
    run = training.run("script.py")
    assert run.stderr == "gradguard: warning: nothing was watched: torch was not imported\n"


RANKED = """
    import sys
    import torch.distributed as dist
    from training import train
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    train(leak="all" in sys.argv or rank == 1)
    dist.barrier()
    dist.destroy_process_group()
"""
LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def told(stderr):
    """Return the lines of gradguard's; launchers and gloo write others."""
    return [line for line in stderr.splitlines() if re.match(r"gradguard:|\d+\. ", line)]


@pytest.mark.parametrize(("leaks", "ranks"), [((), [1])])
def test_a_launcher_under_run(training, leaks, ranks):
    """Of `run -m torch.distributed.run`, one summary names the ranks; equal findings are one."""
    training.write("script.py", RANKED)
    run = training.run("--strict", "--report", "report.json", *LAUNCH, "script.py", *leaks)
    assert run.returncode == 1, run.stderr
    report = training.report()
    (leak,) = [one for one in report["findings"] if one["kind"] == "mode-leak"]
    assert (leak["lineno"], leak["ranks"]) == (LINE, ranks)
    assert {one["rank"] for one in report["processes"] if one["models"]} == {0, 1}
    which = "rank 1" if ranks == [1] else "ranks 0-1"
    lines = told(run.stderr)
    (summary,) = [line for line in lines if line.startswith("1. ")]
    assert re.match(rf"1\. mode-leak \(.*{which}\): training.py:{LINE} ", summary)
    assert sum(f"training.py:{LINE}: mode-leak" in line for line in lines) == 1


@pytest.mark.parametrize(("leaks", "ranks"), [(("all",), [0, 1])])
def test_run_under_a_launcher(training, leaks, ranks):
    """Under a launcher each rank writes its own report, and rank 0 tells for all."""
    training.write("script.py", RANKED)
    inner = ("-m", "gradguard", "run", "--report", "report.json", "script.py", *leaks)
    done = training.plain(*LAUNCH, *inner)
    assert done.returncode == 0, done.stderr
    lines = told(done.stderr)
    assert sum(f"training.py:{LINE}: mode-leak" in line for line in lines) == 1
    (summary,) = [line for line in lines if line.startswith("1. ")]
    assert ("rank 1" if ranks == [1] else "ranks 0-1") in summary
    for rank in range(2):
        report = training.report(f"report.rank{rank}.json")
        own = [one for one in report["findings"] if rank in one["ranks"]]
        assert bool(own) is (rank in ranks)
        assert rank in {one["rank"] for one in report["processes"]}


def test_reports_are_replaced_whole(training):
    """Who reads the report while the program runs never sees half of one."""
    training.write("script.py", WAITS)
    started = training.start("--report", "report.json", "script.py")
    started.stdout.readline()
    assert json.loads((training.path / "report.json").read_text(encoding="utf-8"))["schema"] == 1
    started.communicate()
    assert not list(training.path.glob(".report*"))
