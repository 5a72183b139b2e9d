"""``[tool.gradguard]`` in the nearest ``pyproject.toml`` that has such a table."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from gradguard._findings.kinds import names_of, unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FORMATS = ("text", "json", "github", "sarif")
_FILE = "pyproject.toml"
_TABLE = "[tool.gradguard]"


class ConfigError(ValueError):
    """The configuration is wrong; the message says where and what to write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a project says about gradguard.

    Attributes:
        path: the file that says it; None where none does.
        root: the folder of that file, to which globs are relative.
        select: the kinds to tell, instead of those told by default.
        ignore: kinds not to tell.
        per_file_ignores: for a glob, the kinds not to tell in the files that it names.
        exclude: globs of files and folders that `check` leaves out.
        strict: whether `run` makes an exit code of 0 a 1 where there are faults.
        format: how findings are written.
        libraries: packages whose code counts as a library's in `run`.
    """

    path: Path | None = None
    root: Path = field(default_factory=Path.cwd)
    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )
    exclude: tuple[str, ...] = ()
    strict: bool = False
    format: str = "text"
    libraries: tuple[str, ...] = ()


def load_config(start: Path) -> Config:
    """Read the nearest ``pyproject.toml`` with a ``[tool.gradguard]``, from `start` upwards.

    Raises:
        ConfigError: the file cannot be read, or the table has a key or value that means nothing.
    """
    start = start.absolute()
    for folder in (start, *start.parents):
        path = folder / _FILE
        if path.is_file():
            table = _table(path)
            if table is not None:
                return _Reader(path, table).config()
    return Config()


def _table(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {path} ({error}): check its permissions and that it is UTF-8."
        raise ConfigError(msg) from None
    if "gradguard" not in text:  # most files: they need no TOML reader, and no valid TOML
        return None
    try:
        loads = _toml_reader()
    except ModuleNotFoundError:
        if "tool.gradguard" not in text:
            return None
        msg = (
            f"{path} has {_TABLE}, and Python 3.10 cannot read TOML by itself: "
            "`pip install tomli`, or use Python 3.11 or newer."
        )
        raise ConfigError(msg) from None
    try:
        tool = loads(text).get("tool", {})
    except ValueError as error:
        msg = f"{path} is not valid TOML: {error}."
        raise ConfigError(msg) from None
    return cast("dict[str, Any] | None", tool.get("gradguard") if isinstance(tool, dict) else None)


def _toml_reader() -> Callable[[str], dict[str, Any]]:
    """Return ``tomllib.loads``; Python 3.10 has none, and many environments have its twin."""
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads
    return cast("Callable[[str], dict[str, Any]]", import_module("tomli").loads)


class _Reader:
    """Checks the table and turns it into a `Config`."""

    def __init__(self, path: Path, table: dict[str, Any]) -> None:
        self._path = path
        if not isinstance(table, dict):  # pyright: ignore[reportUnnecessaryIsInstance] (a user's)
            self._refuse(f"tool.gradguard must be a table, not {table!r}")
        self._values: dict[str, Any] = table

    def config(self) -> Config:
        for key in self._values:
            if key not in _KEYS:
                self._refuse(_no_key(key))
        given = {key.replace("-", "_"): _KEYS[key](self, key) for key in self._values}
        return Config(path=self._path, root=self._path.parent, **given)

    def strings(self, key: str) -> tuple[str, ...]:
        return self._strings(key, self._values[key])

    def kinds(self, key: str) -> tuple[str, ...]:
        return self._kinds(key, self._values[key])

    def kinds_by_glob(self, key: str) -> dict[str, tuple[str, ...]]:
        value: Any = self._values[key]
        if not isinstance(value, dict):
            wanted = 'a table such as {"tests/**" = ["GG108"]}'
            self._refuse(f"{key} must be {wanted}, not {value!r}")
        table = cast("dict[str, Any]", value)
        return {glob: self._kinds(f"{key}.{glob}", words) for glob, words in table.items()}

    def boolean(self, key: str) -> bool:
        value = self._values[key]
        if not isinstance(value, bool):
            self._refuse(f"{key} must be true or false, not {value!r}")
        return value

    def format(self, key: str) -> str:
        value = self._values[key]
        if value not in FORMATS:
            self._refuse(f"{key} must be one of {', '.join(FORMATS)}, not {value!r}")
        return cast("str", value)

    def _kinds(self, key: str, value: object) -> tuple[str, ...]:
        words = self._strings(key, value)
        for word in words:
            if not names_of(word):
                self._refuse(f"{key}: {unknown(word)}")
        return words

    def _strings(self, key: str, value: object) -> tuple[str, ...]:
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list):
            words = cast("list[object]", value)
            if all(isinstance(word, str) for word in words):
                return tuple(cast("list[str]", words))
        self._refuse(f"{key} must be a list of strings, not {value!r}")
        return None

    def _refuse(self, what: str) -> NoReturn:
        msg = f"{self._path}: {_TABLE}: {what}"
        raise ConfigError(msg)


_KEYS: dict[str, Callable[[_Reader, str], Any]] = {
    "select": _Reader.kinds,
    "ignore": _Reader.kinds,
    "per-file-ignores": _Reader.kinds_by_glob,
    "exclude": _Reader.strings,
    "strict": _Reader.boolean,
    "format": _Reader.format,
    "libraries": _Reader.strings,
}


def _no_key(key: str) -> str:
    close = get_close_matches(key.replace("_", "-"), _KEYS, 1)
    hint = f", did you mean {close[0]!r}?" if close else ";"
    return f"there is no key {key!r}{hint} the keys are {', '.join(_KEYS)}"
