"""How names and values that may hold anything are shown in a message."""

MOST_CHARACTERS = 160  # a line that wraps over half a screen hides the rest


def one_line(text: str) -> str:
    """Keep a name or repr to one line of sensible length."""
    line = "\\n".join(text.splitlines())
    if len(line) <= MOST_CHARACTERS:
        return line
    half = MOST_CHARACTERS // 2
    return f"{line[:half]}…{line[-half:]}"
