"""Conditions on objects of a cluster: what is written, and what is not written again."""

from typing import Any

from meshbus_config.kubernetes.statuses import ACCEPTED, PROGRAMMED, next_status
from meshbus_config.object_status import EFFECTIVE, RESOLVED_REFS, Verdict, loss_verdict

from meshbus.model.status import ConfigLoss

GOOD = Verdict(True, "Good", "it is")


def conditions(status: dict[str, Any] | None) -> dict[str, str]:
    assert status is not None
    return {one["type"]: one["status"] for one in status["conditions"]}


def test_what_never_was_wrong_is_not_said() -> None:
    verdicts = dict.fromkeys((ACCEPTED, RESOLVED_REFS, EFFECTIVE, PROGRAMMED), GOOD)
    status = next_status({}, verdicts, 1, 0.0)
    assert conditions(status) == {ACCEPTED: "True", PROGRAMMED: "True"}
    assert status is not None
    assert next_status(status, verdicts, 1, 99.0) is None


def test_what_has_no_effect_is_said_and_taken_back() -> None:
    loss = ConfigLoss(
        object_key="cfg.virtualservices/n/v", path="spec.http[0]", message="no such subset",
        proxies=2, example="a.n", sequence=7,
    )  # fmt: skip
    lost = {ACCEPTED: GOOD, EFFECTIVE: loss_verdict([loss])}
    status = next_status({}, lost, 1, 0.0)
    assert conditions(status) == {ACCEPTED: "True", EFFECTIVE: "False"}
    assert status is not None
    said = next(one["message"] for one in status["conditions"] if one["type"] == EFFECTIVE)
    assert said == "spec.http[0]: no such subset (2 proxies, as a.n)"
    mended = next_status(status, {ACCEPTED: GOOD, EFFECTIVE: loss_verdict([])}, 1, 5.0)
    assert conditions(mended) == {ACCEPTED: "True", EFFECTIVE: "True"}


def test_conditions_of_others_and_the_count_of_when_it_came_true_stay() -> None:
    before = {"conditions": [{"type": "Theirs", "status": "True"}]}
    status = next_status(before, {PROGRAMMED: Verdict(True, "Programmed", "2 of 2")}, 1, 0.0)
    assert conditions(status) == {"Theirs": "True", PROGRAMMED: "True"}
    assert status is not None
    again = next_status(status, {PROGRAMMED: Verdict(True, "Programmed", "3 of 3")}, 1, 9.0)
    assert again is None
