"""Every YAML block of the documentation that shows a policy or an intent loads."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from extproc.config.load import load_config
from tests.docs.fences import ROOT, Fence, all_fences

_TITLE = re.compile(r"(?P<part>part of )?intents/(?P<name>[a-z_]+\.yaml)")
# Keys that a part of policy.yaml may refer to, so that a part of an intent can stand alone.
_REFERRED: dict[str, Any] = {
    "judges": {"checker": {"url": "http://judge:8000", "model": "judge-8b"}},
    "human": {"queue": "review.jsonl"},
}
# The last item of a list of utterances that goes on.
_MORE = re.compile(r"  - \.\.\.( +#.*)?\n")
_COMMENT = re.compile(r"# (\S+\.yaml)\n")


def title_of(fence: Fence) -> str:
    """The file that a block shows: its title, or a comment in its first line."""
    comment = _COMMENT.match(fence.text)
    return fence.title or (comment[1] if comment is not None else "")


BLOCKS = [fence for fence in all_fences() if fence.language == "yaml" and _TITLE.fullmatch(title_of(fence))]


def completed(fence: Fence, original: Path, part: bool) -> str:
    """The block as a whole file: keys that a part leaves out come from the sample file of that name."""
    given = yaml.safe_load(fence.text)
    whole = yaml.safe_load(original.read_text()) if part and original.exists() else {}
    if original.name == "policy.yaml":
        whole = _REFERRED | whole
    rest = {key: value for key, value in whole.items() if key not in given}
    text = _MORE.sub("  - One more example\n  - And another example\n", fence.text)
    return text + (yaml.safe_dump(rest) if rest else "")


@pytest.mark.parametrize("fence", BLOCKS, ids=str)
def test_a_policy_or_intent_of_the_documentation_loads(fence: Fence, tmp_path: Path) -> None:
    """With the sample files beside it. A block titled "part of ..." is completed from the sample file."""
    title = _TITLE.fullmatch(title_of(fence))
    assert title is not None
    folder = tmp_path / "intents"
    shutil.copytree(ROOT / "intents", folder)
    policy = folder / "policy.yaml"
    policy.write_text(yaml.safe_dump(yaml.safe_load(policy.read_text()) | _REFERRED))
    original = ROOT / "intents" / title["name"]
    (folder / title["name"]).write_text(completed(fence, original, title["part"] is not None))
    load_config(folder)


def test_every_yaml_block_names_its_file() -> None:
    """A block without a file name would escape the check above."""
    untitled = [str(fence) for fence in all_fences() if fence.language == "yaml" and not title_of(fence)]
    assert untitled == []
    assert len(BLOCKS) > 10
