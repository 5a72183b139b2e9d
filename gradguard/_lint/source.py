"""Reading a file as Python does: its bytes, their encoding, its tree."""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from typing import NamedTuple


class UnparsableError(Exception):
    """A file is no Python that this Python can parse."""

    def __init__(self, message: str, lineno: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.lineno = lineno
        self.column = column


class Source(NamedTuple):
    """The text of a file and its tree."""

    text: str
    root: ast.Module


def decode(data: bytes) -> str:
    """Decode a source as Python does, by its byte order mark or its coding comment.

    Raises:
        UnparsableError: the bytes are none of that encoding, or the encoding is unknown.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return io.StringIO(data.decode(encoding), newline=None).read()
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        msg = f"This file cannot be decoded: {error}. Save it as UTF-8, or declare its encoding."
        raise UnparsableError(msg) from None


def parse(text: str) -> Source:
    """Parse a source.

    Raises:
        UnparsableError: it is no Python of this version, or nested more deeply than Python can.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes: not what is looked for
            return Source(text, ast.parse(text))
    except SyntaxError as error:
        msg = f"Python cannot parse this: {error.msg}. Nothing else is checked in this file."
        raise UnparsableError(msg, error.lineno or 1, max(error.offset or 1, 1)) from None
    except ValueError as error:  # null bytes, before Python 3.12; a surrogate
        msg = f"Python cannot parse this: {error}. Nothing else is checked in this file."
        raise UnparsableError(msg) from None
    except (RecursionError, MemoryError):
        msg = "Python cannot parse this: it is nested too deeply. Nothing is checked in this file."
        raise UnparsableError(msg) from None
