"""Whose a frame is, which line is the user's, and how it is written."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import gradguard
from gradguard._core import frames
from gradguard._core.frames import Line, is_library, set_libraries, user_line
from gradguard._core.places import file_shown, place, written


@pytest.fixture
def libraries():
    """Take back what a test has declared to be libraries."""
    yield set_libraries
    set_libraries(())


def test_the_users_line_is_outside_installed_libraries(some_trainer):
    """Where an installed library calls back, the line is that which called the library."""
    line = some_trainer.main(lambda: user_line(sys._getframe(1)))
    here = line.lineno
    assert (line.filename, line.function) == (__file__, sys._getframe().f_code.co_name)
    assert line.library == Line(some_trainer.__file__, 6, "run")
    assert (
        Path(__file__).read_text().splitlines()[here - 1].strip().startswith("line = some_trainer")
    )


def test_a_line_within_no_library_has_none():
    """The library's line is told only where one is running."""
    assert user_line().library is None


def test_a_callback_of_the_users_is_the_users(some_trainer):
    """The user's own function that a library calls is the line, and no library is in it."""

    def callback():
        return user_line()

    line = some_trainer.main(callback)
    assert (line.function, line.library) == ("callback", None)


def test_a_library_where_there_is_no_user():
    """Where nobody but libraries is running, the first of them is taken."""
    source = "def inner(): return look(sys._getframe())\ninner()"
    program = textwrap.dedent(
        f"""
        import sys, threading
        from gradguard._core.frames import user_frame
        code = compile({source!r}, "/x/site-packages/some/a.py", "exec")
        names = {{"__name__": "some", "sys": sys}}
        names["look"] = lambda frame: print(user_frame(frame).f_code.co_name)
        thread = threading.Thread(target=exec, args=(code, names))
        thread.start()
        thread.join()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "inner\n"


def test_the_program_itself_is_the_users(some_trainer, monkeypatch):
    """With ``python -m package`` the lines of that package are the user's, installed or not."""
    program = type(sys)("__main__")
    program.__file__ = str(Path(some_trainer.__file__).parent / "__main__.py")
    monkeypatch.setitem(sys.modules, "__main__", program)
    line = some_trainer.main(lambda: user_line(sys._getframe(1)))
    assert (line.filename, line.function, line.library) == (some_trainer.__file__, "run", None)


def test_the_package_of_a_console_script_is_the_users(some_trainer, monkeypatch):
    """An installed command's own package is the program: its script has one line."""
    program = type(sys)("__main__")
    (scripts, *_) = frames._folders_of_console_scripts()
    program.__file__ = str(scripts / "some-train")
    program.main = some_trainer.main
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert some_trainer.main(lambda: user_line(sys._getframe(1))).function == "run"


def test_a_script_elsewhere_is_not_its_imports(some_trainer, monkeypatch):
    """What a user's own script imports by name from a library stays a library's."""
    program = type(sys)("__main__")
    program.__file__ = "/home/me/train"
    program.main = some_trainer.main
    monkeypatch.setitem(sys.modules, "__main__", program)
    assert some_trainer.main(lambda: user_line(sys._getframe(1))).function != "run"


def test_a_library_may_be_named(libraries):
    """A package named as a library is one wherever it lies, with what is in it."""
    scope = {"__name__": "in_house.loops", "user_line": user_line, "sys": sys}
    exec("def run(): return user_line(sys._getframe())", scope)  # noqa: S102 (a module of any name)
    assert scope["run"]().function == "run"
    libraries(["in_house"])
    assert scope["run"]().function == sys._getframe().f_code.co_name
    assert scope["run"]().library.function == "run"
    libraries([])
    assert scope["run"]().function == "run"


def test_files_that_are_installed():
    """What lies in site-packages or dist-packages is installed, the standard library is not."""
    assert is_library("/usr/lib/python3/dist-packages/timm/models/x.py")
    assert is_library("C:\\venv\\Lib\\site-packages\\lightning\\x.py")
    assert not is_library(os.__file__)
    assert not is_library("/home/me/site-packages.py")
    assert not is_library(gradguard.__file__)


def test_a_path_is_written_from_here(tmp_path, monkeypatch):
    """A file below the working directory is written from there, another as it is."""
    monkeypatch.chdir(tmp_path)
    below = tmp_path / "pkg" / "train.py"
    assert place(str(below), 3) == f"{Path('pkg', 'train.py')}:3"
    assert place(str(tmp_path.parent / "x.py"), 3) == f"{tmp_path.parent / 'x.py'}:3"
    assert place("<string>", 3) == "<string>:3"


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete a directory in use")
def test_a_path_where_the_working_directory_is_gone(tmp_path, monkeypatch):
    """A path is written whole where there is no working directory any more."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert file_shown("/a/b.py") == "/a/b.py"


def test_a_line_is_written_with_its_source(some_trainer):
    """Place, function and source; the library's line stands second."""
    line = some_trainer.main(lambda: user_line(sys._getframe(1)))
    source = "line = some_trainer.main(lambda: user_line(sys._getframe(1)))"
    function = sys._getframe().f_code.co_name
    user = f"{file_shown(__file__)}:{line.lineno} in {function}: {source}"
    assert written(line._replace(library=None)) == user
    assert written(line) == f"{user} (inside it: {some_trainer.__file__}:6 in run)"
    assert written(Line("<nowhere>", 1, "f")) == "<nowhere>:1 in f: (source not available)"


def test_a_notebook_cell_is_written_as_ipython_does():
    """A cell is named ``Cell In[8]``, as its tracebacks name it."""
    pytest.importorskip("IPython")
    program = textwrap.dedent(
        """
        from IPython.core.interactiveshell import InteractiveShell
        shell = InteractiveShell.instance()
        for cell in (
            "1",
            "import gradguard, torch\\n"
            "from gradguard._core.frames import user_line\\n"
            "from gradguard._core.places import written\\n"
            "print(written(user_line()))",
        ):
            shell.run_cell(cell, store_history=True)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Cell In[2], line 4 in <module>: print(written(user_line()))" in done.stdout
