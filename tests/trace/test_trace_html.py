"""A trace in a notebook."""

import torch

from gradguard import trace


def test_html_has_a_row_for_each_switch():
    """With its line, escaped, and what was never switched back in bold, as the text marks it."""
    with trace() as switches:
        exec(compile("with torch.no_grad(): pass", "<b>.py", "exec"), {"torch": torch})  # noqa: S102
        torch.set_grad_enabled(False)
        left = switches._repr_html_()
        torch.set_grad_enabled(True)
    assert left.count("<tr>") == 1 + 3
    assert "&lt;b&gt;.py" in left
    assert "<b>" not in left
    assert left.count("font-weight: bold") == 5
    assert "bold: never switched back: 1." in left
    assert "font-weight" not in switches._repr_html_()
