"""Every file that repeats the version agrees with `extproc.__version__`. The release workflow runs targets."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc import __version__

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github/workflows/release.yml"
# Programs other than `make` that a step may run. They are on GitHub's machines, or in the repository.
PROGRAMS = {".ci/run", "docker", "echo", "gh"}


def test_the_image_has_the_tag_of_the_version() -> None:
    """The Dockerfile's comment and the manifests name the image."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    images = (ROOT / "deploy/k8s/images/kustomization.yaml").read_text()
    assert set(re.findall(r"-t extproc:(\S+)", dockerfile)) == {__version__}
    assert re.findall(r"newName: \S+/extproc\n +newTag: (\S+)", images) == [__version__]


def test_the_changelog_has_a_section_for_the_version() -> None:
    """The latest released section is that of the version."""
    released = re.findall(r"(?m)^## (\d\S*) - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text())
    assert released[0] == __version__


def workflow() -> dict[Any, Any]:
    return dict(yaml.safe_load(WORKFLOW.read_text()))


def steps() -> list[dict[str, Any]]:
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


def test_every_command_of_the_workflow_exists() -> None:
    """A target of the Makefile, a program of the repository, or one of GitHub's machines. Paths exist, too."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z-]+):(?!=)", makefile))
    made = []
    for command in (command for step in steps() if "run" in step for command in step["run"].splitlines()):
        for part in command.split(" | "):
            program, *words = shlex.split(part)
            if program == "make":
                made += [word for word in words if "=" not in word]
            else:
                assert program in PROGRAMS, part
                assert "/" not in program or (ROOT / program).exists()
    assert made == ["release-check", "release", "publish"]
    assert set(made) <= targets


def test_the_workflow_may_do_no_more_than_it_needs() -> None:
    """Actions are pinned by commit, the token has no rights by default, and nothing is published untested."""
    assert workflow()["permissions"] == {}
    jobs = workflow()["jobs"]
    assert jobs["test"]["permissions"] == {"contents": "read"} and jobs["publish"]["needs"] == "test"
    uses = [step["uses"] for step in steps() if "uses" in step]
    assert all(re.fullmatch(r"actions/checkout@[0-9a-f]{40}", used) for used in uses)
    # PyYAML reads the key `on` as true.
    assert workflow()[True] == {"push": {"tags": ["v*"]}}


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), (__version__, 2), ("v9.9.9", 2), ("", 2)])
def test_a_tag_that_is_not_the_version_is_refused(tag: str, code: int) -> None:
    """Before anything is built."""
    done = subprocess.run(
        ["make", "--no-print-directory", "release-check", f"TAG={tag}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert (f"expected v{__version__}" in done.stdout) == (code != 0)
