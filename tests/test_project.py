"""What the repository says of itself is so: links, commands, options, snippets, bounds and workflows."""

import ast
import functools
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from misfm import __version__

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
WORKFLOWS = sorted(ROOT.glob(".github/workflows/*.yml"))
FORMS = sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*.yml"))

FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A path that is said to be of an older commit need not be there any more.
CODE_PATH = re.compile(
    r"`((?:src|tests|benchmarks|docs|examples|\.ci|\.github)/[\w./-]*)`(?! at [0-9a-f]{7})"
)
VERB = re.compile(r"`misfm ([a-z][\w-]*)([^`]*)`")

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def snippets(path, *languages):
    return [code for language, code in FENCE.findall(path.read_text()) if language in languages]


def anchors(path):
    """The anchors that headings get."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", path.read_text()), re.M)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in kept}


@page
def test_links_and_paths_lead_to_files(page):
    prose = FENCE.sub("", page.read_text())
    links = [link for link in LINK.findall(prose) if not re.match(r"[a-z]+:", link)]
    wrong = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    wrong += [path for path in CODE_PATH.findall(prose) if not (ROOT / path).exists()]
    assert not wrong


# the command line


@functools.cache
def command_line():
    """Options of each verb, by its name; as typer builds them for ``--help``."""
    import typer.main

    from misfm.cli import app

    def walk(command, name):
        if hasattr(command, "commands"):
            for verb, child in command.commands.items():
                yield from walk(child, [*name, verb])
        else:
            options = {
                flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)
            }
            yield " ".join(name), {*options, "--help"}

    return dict(walk(typer.main.get_command(app), []))


def invocations(code):
    """The words of each call of misfm in shell code."""
    for line in code.replace("\\\n", " ").splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # a quotation goes on in the next line
            words = line.split()
        for place, word in enumerate(words):
            if word == "misfm" and (
                place == 0 or words[place - 1] in ("&&", "||", ";", "|", "time", "srun", "-m")
            ):
                end = next(
                    (i for i in range(place, len(words)) if words[i] in ("&&", "||", ";", "|", ">")), None
                )
                yield words[place + 1 : end]


def unknown(words):
    """What of a call the command line does not know."""
    if not words or words[0].startswith("-"):
        return []
    verb = max(
        (name for name in command_line() if words[: len(name.split())] == name.split()), key=len, default=None
    )
    if verb is None:
        return [words[0]]
    flags = [word.partition("=")[0] for word in words if word.startswith("--") and len(word) > 2]
    return [f"{verb} {flag}" for flag in flags if flag not in command_line()[verb]]


@page
def test_commands_have_the_verbs_and_options_that_pages_show(page):
    wrong = [
        word
        for code in snippets(page, "bash", "sh", "shell", "console")
        for words in invocations(re.sub(r"^\$ ", "", code, flags=re.M))
        for word in unknown(words)
    ]
    for verb, rest in VERB.findall(FENCE.sub("", page.read_text())):
        flags = re.findall(r"--[a-z][\w-]*", rest)
        wrong += unknown([verb, *flags])
    assert not wrong


def test_the_check_of_commands_finds_what_is_wrong():
    code = "misfm pretrain --stepz 3 \\\n  --out b  # --comment\nmisfm pretend && misfm info x --json\n"
    assert [word for words in invocations(code) for word in unknown(words)] == ["pretrain --stepz", "pretend"]


@page
def test_python_snippets_compile(page):
    for code in snippets(page, "python", "py"):
        ast.parse(code)


@pytest.mark.parametrize(
    "script", [entry.name for entry in importlib.metadata.distribution("misfm").entry_points]
)
def test_console_scripts_explain_themselves(script):
    done = subprocess.run([Path(sys.executable).with_name(script), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "Usage" in done.stdout


# dependencies


@functools.cache
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(name):
    lines = (line.partition("#")[0].strip() for line in (ROOT / ".ci" / name).read_text().splitlines())
    return {Requirement(line).name: Requirement(line) for line in lines if line}


def test_the_lowest_versions_are_the_lower_bounds():
    bounds = {}
    for requirement in map(Requirement, project()["dependencies"]):
        (bound,) = requirement.specifier  # one lower bound and no upper one
        assert bound.operator == ">="
        bounds[requirement.name] = Version(bound.version)
    pinned = {
        name: Version(next(iter(requirement.specifier)).version)
        for name, requirement in requirements("lowest.txt").items()
    }
    assert pinned == bounds


def test_constraints_lie_within_what_the_project_allows():
    allowed = {
        requirement.name: requirement.specifier for requirement in map(Requirement, project()["dependencies"])
    }
    for name, requirement in requirements("constraints.txt").items():
        assert str(allowed[name]) in str(requirement.specifier)


def test_the_page_of_licences_has_every_dependency_and_none_is_under_the_gpl():
    page = (ROOT / "docs" / "licences.md").read_text()
    rows = dict(re.findall(r"^\| (\S+) \| ([^|]+) \|", page, re.MULTILINE))
    licences = {re.sub("[-_.]+", "-", name).lower(): licence for name, licence in rows.items()}
    needed = {re.sub("[-_.]+", "-", Requirement(text).name).lower() for text in project()["dependencies"]}
    assert not needed - licences.keys()
    assert not [name for name in licences if re.search(r"\bA?GPL|not stated", licences[name])]


# what others read: citation, issue forms, workflows, hooks


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert {"title", "message", "authors", "license"} <= citation.keys()
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert "doi" in reference or "url" in reference
    assert f"## {__version__} - {citation['date-released']}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_issue_forms_are_forms(form):
    content = yaml.safe_load(form.read_text())
    if form.name != "config.yml":
        assert {"name", "description", "body"} <= content.keys()
        assert all("label" in part["attributes"] for part in content["body"] if part["type"] != "markdown")
        ids = [part["id"] for part in content["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids))


def exists(command):
    """Whether the repository can run this line of a workflow or hook."""
    words = [word for word in shlex.split(command) if "=" not in word or word.startswith("-")]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.M)
        return all(target in targets for target in words[1:] if not target.startswith("-"))
    if words[0] == "bash":
        return (ROOT / words[1]).is_file()
    if words[0].endswith("/python"):
        return (ROOT / words[1]).is_file()
    tools = {Requirement(tool).name for tool in project()["optional-dependencies"]["dev"]}
    return Path(words[0]).name in tools


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_commands_that_exist(workflow):
    content = yaml.safe_load(workflow.read_text())
    assert True in content  # YAML 1.1 reads the key `on` so
    commands = [step["run"] for job in content["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands
    assert all(exists(line) for command in commands for line in command.strip().splitlines())
    files = re.findall(r"=(\.ci/\S+)", workflow.read_text())
    assert all((ROOT / file).is_file() for file in files)


def test_hooks_are_local_and_exist():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        assert hook["language"] == "system"
        assert exists(hook["entry"])


# large files


@functools.cache
def size_guard():
    import runpy

    return runpy.run_path(str(ROOT / ".ci" / "size_guard.py"))


def test_large_files_are_refused_unless_listed(monkeypatch, capsys):
    (tmp := ROOT / ".large.tmp").write_bytes(bytes(size_guard()["LIMIT"] + 1))
    try:
        assert size_guard()["main"]([tmp.name]) == 1
    finally:
        tmp.unlink()
    assert capsys.readouterr().err.startswith(".large.tmp has 500,001 bytes")


def test_large_files_that_are_listed_are_there():
    allowed = size_guard()["ALLOWED"]
    assert not [name for name in allowed if not (ROOT / name).is_file()]
    assert size_guard()["main"](list(allowed)) == 0
    assert all(reason for _, reason in allowed.values())
