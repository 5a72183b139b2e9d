"""A path as a reader would type it from where they stand, and globs that choose among paths."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

_directory: Path | None = None  # None: the working directory


def stand_in(directory: str) -> None:
    """Show paths relative to this directory from now on, wherever the program goes."""
    global _directory  # noqa: PLW0603 (one for the process)
    _directory = Path(directory)


def shown(filename: str) -> str:
    """Return the path relative to the working directory if it lies below it, else as it is.

    The working directory is the one that `stand_in` was told, if it was.

    What is no file (``<string>``, ``Cell In[8]``) stays what it is.
    """
    if not Path(filename).is_absolute():
        return filename
    try:
        below = Path(filename).relative_to(_directory or Path.cwd())
    except (ValueError, OSError):  # not below it; or the working directory is gone
        return filename
    return str(below)


def matches(globs: Iterable[str], path: Path, root: Path) -> bool:
    """Tell whether a glob names the path, or a folder that it lies in.

    A glob with a slash is compared with the path from `root`, one without with each of its parts,
    as ruff and git do.
    """
    try:
        relative = path.relative_to(root)
    except ValueError:
        relative = path
    parts = relative.parts
    whole = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    return any(_matches(glob, whole, parts) for glob in globs)


def _matches(glob: str, whole: list[str], parts: tuple[str, ...]) -> bool:
    glob = glob.replace("\\", "/").removeprefix("./").rstrip("/")
    if "/" not in glob:
        return any(fnmatchcase(part, glob) for part in parts)
    wanted = {glob, glob.removeprefix("**/"), glob.replace("/**/", "/")}
    return any(fnmatchcase(one, want) for one in whole for want in wanted)
