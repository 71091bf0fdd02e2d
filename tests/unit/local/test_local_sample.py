"""The sample that the demo runs."""

from meshbus.local.demo import sample_manifests


def test_the_sample_is_whole() -> None:
    kinds = [document["kind"] for document in sample_manifests()]
    assert kinds.count("Workload") == 7
    assert kinds.count("Service") == 5
    steps = ("reviews-v1", "reviews-90-10", "reviews-v3", "ratings-abort", "mtls-strict", "quota")
    assert all(sample_manifests(step) for step in steps)
