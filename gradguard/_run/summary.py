"""What stands on standard error at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradguard._findings import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gradguard._findings.report import Report

_NOT_FOLLOWED = (
    "If the program starts its training in a process with an environment of its own, under "
    "`python -I` or `-E`, or on another machine, put `gradguard run` in that command."
)


def summary(report: Report, *, torch: bool, unused_comments: Sequence[str]) -> str:
    """Return what was found; where nothing was watched, that.

    Args:
        report: what all processes found and did.
        torch: whether any of them has imported torch.
        unused_comments: a line for each silencing comment that silences nothing.
    """
    told = [f"gradguard: {line}\n" for line in unused_comments]
    return "".join([_found(report, torch=torch), *told])


def _found(report: Report, *, torch: bool) -> str:
    if report.entries:
        return text.run_summary(report)
    if not torch:
        return "gradguard: warning: nothing was watched: torch was not imported\n"
    if not report.models and not report.steps:
        return (
            "gradguard: warning: nothing was watched: 0 models were called, 0 optimizer steps "
            f"made. {_NOT_FOLLOWED}\n"
        )
    done = [
        text.counted(report.steps, "optimizer step"),
        f"{text.counted(report.models, 'model')} called",
    ]
    if len(report.processes) > 1:
        done.append(f"in {len(report.processes)} processes")
    return f"gradguard: nothing found ({', '.join(done)})\n"
