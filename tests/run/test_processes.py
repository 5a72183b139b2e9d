"""``gradguard run`` follows what the program starts: forks, new interpreters, launchers, ranks."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import gradguard

TRAINING = """
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

    def child(number):
        train(leak=number == 1)
        return number
"""
LINE = TRAINING.splitlines().index("                torch.set_grad_enabled(False)  # HERE") + 1
WAYS = {
    "fork": """
        context = multiprocessing.get_context("fork")
        both = [context.Process(target=child, args=(number,)) for number in range(2)]
        for one in both: one.start()
        for one in both: one.join()
        print([one.exitcode for one in both])
    """,
    "spawn": """
        context = multiprocessing.get_context("spawn")
        both = [context.Process(target=child, args=(number,)) for number in range(2)]
        for one in both: one.start()
        for one in both: one.join()
        print([one.exitcode for one in both])
    """,
    "forkserver": """
        context = multiprocessing.get_context("forkserver")
        both = [context.Process(target=child, args=(number,)) for number in range(2)]
        for one in both: one.start()
        for one in both: one.join()
        print([one.exitcode for one in both])
    """,
    "a pool of processes": """
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(1) as pool: print(list(pool.map(child, range(2))))
    """,
    "torch.multiprocessing": """
        import torch.multiprocessing
        torch.multiprocessing.spawn(child, nprocs=2)
    """,
    "subprocess": """
        import subprocess, sys
        for number in range(2):
            command = f"from training import child; print(child({number}))"
            subprocess.run([sys.executable, "-c", command], check=True)
    """,
    "os.fork": """
        import os
        for number in range(2):
            if os.fork() == 0:
                child(number)
                break
        else:
            print([os.wait()[1] for _ in range(2)])
    """,
    "loky": """
        from joblib import Parallel, delayed
        print(Parallel(n_jobs=2)(delayed(child)(number) for number in range(2)))
    """,
}
if sys.platform == "win32":
    for unknown in ("fork", "forkserver", "os.fork"):
        del WAYS[unknown]


@pytest.fixture
def training(project):
    project.write("training.py", TRAINING)
    return project


def program(way):
    """Return a script that trains in two children, of which the second leaks its mode."""
    body = "\n".join(f"    {line.strip(' ') and line[4:]}" for line in way.splitlines())
    return f"import multiprocessing\nfrom training import child\nif __name__ == '__main__':\n{body}"


def left_behind():
    return set(Path(tempfile.gettempdir()).glob("gradguard-*"))


@pytest.mark.parametrize("way", WAYS)
def test_a_leak_in_a_child_is_named(training, way):
    """However a child is started, its leak is named with its line and process, once."""
    if way == "loky":
        pytest.importorskip("joblib")
    training.write("script.py", program(WAYS[way]))
    plain = training.plain("script.py")
    run = training.run("--strict", "--report", "report.json", "script.py")
    assert run.stdout == plain.stdout
    assert (plain.returncode, run.returncode) == (0, 1), run.stderr
    assert run.stderr.count(f"training.py:{LINE}: mode-leak") == 1
    report = training.report()
    (leak,) = [one for one in report["findings"] if one["kind"] == "mode-leak"]
    assert (leak["filename"], leak["lineno"]) == ("training.py", LINE)
    (process,) = leak["processes"]
    assert process in {one["pid"] for one in report["processes"]}
    assert report["counts"]["steps"] == 6


@pytest.mark.parametrize("way", ["fork", "spawn", "subprocess"])
def test_healthy_children_are_counted_and_no_more(training, way):
    """Where nothing is wrong nothing is told but what was watched."""
    if way not in WAYS:
        pytest.skip("no fork here")
    training.write("script.py", program(WAYS[way].replace("range(2)", "(0, 2)")))
    plain, run = training.plain("script.py"), training.run("script.py")
    assert (run.stdout, run.returncode) == (plain.stdout, 0)
    assert run.stderr == (
        plain.stderr
        + "gradguard: nothing found (6 optimizer steps, 2 models called, in 3 processes)\n"
    )


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
def test_many_children_at_once(training):
    """A hundred short children leave one valid report, no finding is lost, and no file stays."""
    before = left_behind()
    training.write(
        "script.py",
        """
        import os
        from training import train
        import torch
        for number in range(100):
            source = f"def leak():\\n" + "\\n" * number + "    import torch; torch.set_grad_enabled(False)"
            if os.fork() == 0:
                torch.set_num_threads(1)
                space = {}
                exec(compile(source, f"part{number}.py", "exec"), space)
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
    assert left_behind() == before
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
    assert [one["kind"] for one in training.report()["findings"]][0] == "mode-leak"
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
def test_children_outlive_a_killed_program(training):
    """Where the program itself is killed, its child adds to the report and takes its part away."""
    before = left_behind()
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
    started = training.start("--report", "report.json", "script.py")
    assert started.stdout.readline() == "ready\n"
    started.kill()
    started.wait()
    started.stdin.close()
    started.stdout.read()  # until the child has gone, too
    started.stderr.read()
    report = training.report()
    assert len(report["processes"]) == 2
    assert {one["lineno"] for one in report["findings"] if one["kind"] == "mode-leak"} == {LINE}
    assert left_behind() == before


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
    training.write("script.py", "import os, sys; os.execl(sys.executable, sys.executable, 'other.py')")
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


@pytest.mark.parametrize(("leaks", "ranks"), [((), [1]), (("all",), [0, 1])])
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
    assert sum(f"1. mode-leak ({len(ranks)} times" in line or "1. mode-leak (once" in line for line in lines) == 1
    assert any(which in line for line in lines if line.startswith("1. "))
    assert sum(f"training.py:{LINE}: mode-leak" in line for line in lines) == 1


@pytest.mark.parametrize(("leaks", "ranks"), [((), [1]), (("all",), [0, 1])])
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
