"""What was found, and how it is told: text, JSON, GitHub annotations, SARIF.

Beside it what decides which of it is told: ``[tool.gradguard]`` in a ``pyproject.toml``, the kinds
that are selected, and the comments that silence a line.
"""
