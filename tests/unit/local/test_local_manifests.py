"""Manifest files."""

from pathlib import Path

import pytest

from meshbus.local.demo import sample_manifests
from meshbus.local.home import HomeError
from meshbus.local.manifests import read_manifests, split_runnable


def test_files_directories_lists_and_empty_documents(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("---\n---\nkind: Service\napiVersion: v1\n")
    (tmp_path / "b.json").write_text(
        '{"kind": "ServiceList", "items": [{"kind": "Service", "apiVersion": "v1"}]}'
    )
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert [document["kind"] for document in read_manifests([tmp_path])] == ["Service"] * 2


@pytest.mark.parametrize("text", ["a: [", "[]", "plain", "apiVersion: v1"])
def test_what_is_no_manifest_is_named_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(HomeError, match=r"bad\.yaml"):
        read_manifests([path])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(HomeError, match="no such file"):
        read_manifests([Path("/no/such.yaml")])


def test_containers_are_left_out_and_said_so() -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    taken, left = split_runnable([deployment, service])
    assert taken == [service]
    assert left[0].startswith("Deployment d is left out")


def test_the_sample_is_whole() -> None:
    kinds = [document["kind"] for document in sample_manifests()]
    assert kinds.count("Workload") == 7
    assert kinds.count("Service") == 5
    steps = ("reviews-v1", "reviews-90-10", "reviews-v3", "ratings-abort", "mtls-strict", "quota")
    assert all(sample_manifests(step) for step in steps)
