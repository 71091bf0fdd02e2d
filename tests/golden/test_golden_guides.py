"""Manifests of the guides are what they say: valid, to the last field."""

import re
from pathlib import Path

import pytest
import yaml

from meshbus.validate import validate_object

GUIDES = sorted((Path(__file__).parents[2] / "docs" / "guides").glob("*.md"))
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)


def manifests(guide: Path) -> list[dict]:
    blocks = [block for block in _BLOCK.findall(guide.read_text()) if "apiVersion:" in block]
    documents = [document for block in blocks for document in yaml.safe_load_all(block)]
    return [d for d in documents if isinstance(d, dict) and "kind" in d and "metadata" in d]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_manifests_of_a_guide_are_valid(guide):
    for document in manifests(guide):
        report = validate_object(document)
        named = f"{document['kind']} {document['metadata']['name']}"
        assert not report.errors, f"{named}: {[(e.path, e.message) for e in report.errors]}"


def test_there_are_guides_with_manifests():
    assert sum(len(manifests(guide)) for guide in GUIDES) > 30
