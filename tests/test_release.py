"""Every file that repeats the version agrees with `extproc.__version__`."""

import re
from pathlib import Path

from extproc import __version__

ROOT = Path(__file__).parent.parent


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
