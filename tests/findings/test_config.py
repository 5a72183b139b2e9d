"""What a project says in ``[tool.gradguard]``, and what is told because of it."""

import sys
from pathlib import Path

import pytest

from gradguard._findings import config as config_module
from gradguard._findings.config import Config, ConfigError, load_config
from gradguard._findings.kinds import CHECK_NAMES, RUN_KINDS, names_of, unknown
from gradguard._findings.paths import matches
from gradguard._findings.selection import selection

RUN = frozenset(RUN_KINDS)
CHECK = frozenset(CHECK_NAMES.values())


def configured(path: Path, text: str) -> Config:
    (path / "pyproject.toml").write_text(text)
    return load_config(path)


def test_every_key(tmp_path):
    """Each key is read; a single string is a list of one."""
    config = configured(
        tmp_path,
        """
        [tool.gradguard]
        select = ["GG10", "mode-leak"]
        ignore = "unused-guard"
        per-file-ignores = { "tests/**" = ["GG108"] }
        exclude = ["vendor"]
        strict = true
        format = "github"
        libraries = ["trl"]
        """,
    )
    assert config == Config(
        path=tmp_path / "pyproject.toml",
        root=tmp_path,
        select=("GG10", "mode-leak"),
        ignore=("unused-guard",),
        per_file_ignores={"tests/**": ("GG108",)},
        exclude=("vendor",),
        strict=True,
        format="github",
        libraries=("trl",),
    )


def test_the_nearest_with_a_table(tmp_path):
    """The nearest file that has the table counts: a package below may have a file without one."""
    inner = tmp_path / "packages" / "one"
    inner.mkdir(parents=True)
    configured(tmp_path, "[tool.gradguard]\nstrict = true\n")
    assert configured(inner, "[tool.other]\nx = 1\n").strict
    assert not configured(inner, "[tool.gradguard]\nstrict = false\n").strict


def test_none(tmp_path):
    """Without a configuration, the defaults hold."""
    config = load_config(tmp_path)
    assert (config.path, config.select, config.format) == (None, None, "text")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('selct = ["GG1"]', "no key 'selct', did you mean 'select'? the keys are select, ignore"),
        ("per_file_ignores = {}", "did you mean 'per-file-ignores'?"),
        ('select = ["GG999"]', "select: 'GG999' is no code, prefix or name"),
        ('ignore = ["mode-leek"]', "Did you mean 'mode-leak'?"),
        ("select = [1]", "select must be a list of strings, not [1]"),
        ("strict = 1", "strict must be true or false, not 1"),
        ('format = "xml"', "format must be one of text, json, github, sarif, not 'xml'"),
        ('per-file-ignores = ["a"]', "per-file-ignores must be a table"),
        ('per-file-ignores = {"a" = ["nonsense"]}', "per-file-ignores.a: 'nonsense' is no code"),
    ],
)
def test_wrong_values(tmp_path, line, part):
    """A key or value that means nothing is an error that names file, table and what to write."""
    with pytest.raises(ConfigError) as error:
        configured(tmp_path, f"[tool.gradguard]\n{line}\n")
    assert str(error.value).startswith(f"{tmp_path / 'pyproject.toml'}: [tool.gradguard]: ")
    assert part in str(error.value)
    assert error.value.__cause__ is None


def test_the_table_is_a_table(tmp_path):
    """A value in the place of the table is told as such."""
    with pytest.raises(ConfigError, match="must be a table, not 3"):
        configured(tmp_path, "[tool]\ngradguard = 3\n")


def test_broken_toml(tmp_path):
    """A file that mentions gradguard and is no TOML is an error; one that does not is left alone."""
    with pytest.raises(ConfigError, match="is not valid TOML"):
        configured(tmp_path, "[tool.gradguard\n")
    assert configured(tmp_path, "[tool.black\n").path is None
    (tmp_path / "pyproject.toml").write_bytes(b"\xff gradguard")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(tmp_path)


def test_without_a_toml_reader(tmp_path, monkeypatch):
    """Where Python cannot read TOML, only a file with the table is an error."""

    def none():
        raise ModuleNotFoundError

    monkeypatch.setattr(config_module, "_toml_reader", none)
    assert configured(tmp_path, '[project]\ndependencies = ["gradguard"]\n').path is None
    with pytest.raises(ConfigError, match="pip install tomli"):
        configured(tmp_path, "[tool.gradguard]\n")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is new in Python 3.11")
def test_reader_is_the_standard_library(tmp_path):
    """Python's own TOML reader is used where there is one."""
    import tomllib

    assert config_module._toml_reader() is tomllib.loads


def test_words():
    """A word is a code, a prefix of codes, a name, or ALL."""
    assert names_of("GG107") == names_of("unused-guard") == {"unused-guard"}
    assert names_of("GG") == CHECK
    assert names_of("GG12") == {"unregistered-layers", "loss-made-leaf"}
    assert names_of("ALL") == CHECK | RUN
    assert names_of("") == names_of("107") == names_of("GG9") == frozenset()
    assert "Did you mean 'GG107'?" in unknown("gg107")


def chosen(config, *, default=RUN, all_names=RUN, **words):
    return selection(config, all_names=all_names, default=default, **words).names


def test_selecting():
    """The command line's words stand before the configuration's, and those before the default."""
    config = Config(select=("mode-leak", "empty-step"), ignore=("empty-step",))
    assert chosen(Config()) == RUN
    assert chosen(config) == {"mode-leak"}
    assert chosen(config, ignore=["mode-leak"]) == frozenset()
    assert chosen(config, select=["empty-step"]) == {"empty-step"}
    assert chosen(Config(), select=["ALL"], ignore=["mode-leak"]) == RUN - {"mode-leak"}
    with pytest.raises(ValueError, match="'x' is no code"):
        chosen(Config(), select=["x"])


def test_words_of_the_other_command():
    """What is selected for `check` alone leaves `run` at its default, and the other way round."""
    config = Config(select=("GG109",))
    assert chosen(config) == RUN
    assert chosen(config, all_names=CHECK, default=frozenset()) == {"manual-enter"}


def test_per_file(tmp_path):
    """A name is not told in the files that a glob names, and told in others."""
    config = Config(root=tmp_path, per_file_ignores={"tests/**": ("GG108",), "*_pb2.py": ("ALL",)})
    chosen = selection(config, all_names=CHECK, default=CHECK)
    assert not chosen.tells("unscoped-set", str(tmp_path / "tests" / "deep" / "a.py"))
    assert chosen.tells("unused-guard", str(tmp_path / "tests" / "a.py"))
    assert chosen.tells("unscoped-set", str(tmp_path / "src" / "a.py"))
    assert chosen.names_for(str(tmp_path / "x_pb2.py")) == frozenset()
    assert chosen.tells("unscoped-set", None)


@pytest.mark.parametrize(
    ("glob", "path", "expected"),
    [
        ("vendor", "a/vendor/b.py", True),
        ("vendor/", "vendor/b.py", True),
        ("vendor", "vendored/b.py", False),
        ("a/vendor", "a/vendor/b.py", True),
        ("a/vendor", "vendor/b.py", False),
        ("./a", "a/b.py", True),
        ("*.py", "a/b.py", True),
        ("tests/**", "tests/a/b.py", True),
        ("**/b.py", "b.py", True),
        ("**/b.py", "a/c/b.py", True),
        ("a/**/b.py", "a/b.py", True),
        ("a/*.py", "b/a/c.py", False),
    ],
)
def test_globs(tmp_path, glob, path, expected):
    """Globs name files and folders as git's and ruff's do."""
    assert matches([glob], tmp_path / path, tmp_path) is expected
