"""What has no effect at proxies, on the status of the object."""

from meshbus_config.object_status import loss_verdict, losses_by_object, refusal_verdict

from meshbus.model.keys import Key
from meshbus.model.status import ConfigLoss, GatewayReport, ProxyProblem

CLUSTER = "c"
KEY = Key(CLUSTER, "cfg", "virtualservices", "default", "reviews")


def loss(path: str, proxies: int, example: str, sequence: int = 7) -> ConfigLoss:
    text = "cfg.virtualservices/default/reviews"
    return ConfigLoss(text, path, "matches nothing", proxies, example, sequence)


def report(pod: str, *losses: ConfigLoss) -> GatewayReport:
    return GatewayReport(pod, 9, 5, 9, losses=list(losses))


def test_the_proxies_of_all_gateways_count_and_each_part_is_told_once() -> None:
    found = losses_by_object(
        [
            report("g-0", loss("spec.http[1]", 2, "b.default"), loss("spec.http[0]", 1, "a.other")),
            report("g-1", loss("spec.http[1]", 3, "a.default", sequence=5)),
        ],
        CLUSTER,
    )
    assert set(found) == {KEY}
    verdict = loss_verdict(found[KEY])
    assert (verdict.good, verdict.reason) == (False, "PartlyWithoutEffect")
    assert verdict.message == (
        "spec.http[0]: matches nothing (a.other); "
        "spec.http[1]: matches nothing (5 proxies, as a.default)"
    )
    assert {one.sequence for one in found[KEY]} == {5, 7}


def test_without_losses_all_has_effect() -> None:
    assert losses_by_object([report("g-0")], CLUSTER) == {}
    assert loss_verdict([]).good


def test_a_long_list_is_cut() -> None:
    verdict = loss_verdict([loss(f"spec.http[{n}]", 1, "a") for n in range(9)])
    assert verdict.message.endswith("and 6 more")


def test_an_object_that_is_left_out_where_it_is_refused_says_so() -> None:
    def problem(proxy: str, left_out: bool) -> ProxyProblem:
        return ProxyProblem(proxy, "lds", ["0.0.0.0_80"], [], [], "no such filter", 7, left_out)

    left = refusal_verdict([problem("b.default", True), problem("a.default", True)])
    assert (left.good, left.reason) == (False, "Quarantined")
    assert left.message == (
        "left out where it is refused: a.default refuses 0.0.0.0_80: no such filter; "
        "b.default refuses 0.0.0.0_80: no such filter"
    )
    both = refusal_verdict([problem("b.default", True), problem("a.default", False)])
    assert (both.good, both.reason) == (False, "ProxyRejected"), "it holds something up"
