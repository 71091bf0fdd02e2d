"""Quotas as Istio 1.4's samples write them: what is charged, in which cells, up to what."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from meshbus.mixer.program import Bag
from meshbus.mixer.quota import Charge, ChargeError, Limit, charges_of
from meshbus.mixer.quota_objects import load_quotas
from meshbus.mixer.windows import Cells
from meshbus.model.rows import ConfigObject

SECOND = 1_000_000_000
SPEC = ("istio-system", "request-count")

SAMPLE = """
kind: memquota
metadata: {name: handler}
spec:
  quotas:
  - name: requestcount.quota.istio-system
    maxAmount: 500
    validDuration: 1s
    overrides:
    - {dimensions: {destination: reviews}, maxAmount: 1, validDuration: 5s}
    - {dimensions: {destination: productpage, source: "10.28.11.20"}, maxAmount: 500,
       validDuration: 1s}
    - {dimensions: {destination: productpage}, maxAmount: 2, validDuration: 5s}
---
kind: quota
metadata: {name: requestcount}
spec:
  dimensions:
    source: request.headers["x-forwarded-for"] | "unknown"
    destination: destination.labels["app"] | destination.service.name | "unknown"
    destinationVersion: destination.labels["version"] | "unknown"
---
kind: QuotaSpec
metadata: {name: request-count}
spec: {rules: [{quotas: [{charge: 1, quota: requestcount}]}]}
---
kind: QuotaSpecBinding
metadata: {name: request-count}
spec:
  quotaSpecs: [{name: request-count, namespace: istio-system}]
  services: [{name: productpage, namespace: default}]
---
kind: rule
metadata: {name: quota}
spec: {actions: [{handler: handler.memquota, instances: [requestcount.quota]}]}
"""
NEWER_FORM = (
    SAMPLE.replace("kind: memquota", "kind: handler")
    .replace("spec:\n  quotas:", "spec:\n  compiledAdapter: memquota\n  params:\n   quotas:")
    .replace("  - name: requestcount.quota", "   - name: requestcount.instance")
    .replace("\n    maxAmount", "\n     maxAmount")
    .replace("\n    validDuration", "\n     validDuration")
    .replace("\n    overrides", "\n     overrides")
    .replace("\n    - {dimensions", "\n     - {dimensions")
    .replace("kind: quota\n", "kind: instance\n")
    .replace("spec:\n  dimensions:", "spec:\n  compiledTemplate: quota\n  params:\n   dimensions:")
    .replace("\n    source:", "\n     source:")
    .replace("\n    destination", "\n     destination")
    .replace("handler.memquota", "handler")
    .replace("[requestcount.quota]", "[requestcount]")
)
PLURALS = {
    "memquota": "memquotas", "quota": "quotas", "handler": "handlers", "instance": "instances",
    "rule": "rules", "QuotaSpec": "quotaspecs", "QuotaSpecBinding": "quotaspecbindings",
    "attributemanifest": "attributemanifests", "redisquota": "redisquotas",
}  # fmt: skip


def rows_of(text):
    rows = {}
    for document in yaml.safe_load_all(text):
        meta = document["metadata"]
        row = ConfigObject(
            "config.istio.io/v1alpha2",
            document["kind"],
            meta.get("namespace", "istio-system"),
            meta["name"],
            "",
            1,
            0.0,
            spec=document["spec"],
        )
        rows.setdefault(PLURALS[row.kind], []).append(row)
    return rows


def config_of(text):
    return load_quotas(rows_of(text), "istio-system")


def bag(app="productpage", forwarded=None, **more):
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    return Bag({"request.headers": headers, "destination.labels": {"app": app}, **more})


@pytest.mark.parametrize("text", [SAMPLE, NEWER_FORM], ids=["kinds", "handlers"])
def test_first_matching_override_is_the_limit(text):
    config = config_of(text)
    assert config.problems == ()
    limits = {
        (app, source): charges_of(config, SPEC, "default", bag(app, source))[0].limit
        for app, source in (
            ("productpage", None),
            ("productpage", "10.28.11.20"),
            ("reviews", "10.28.11.20"),
            ("details", None),
        )
    }
    assert limits == {
        ("productpage", None): Limit(2, 5 * SECOND),
        ("productpage", "10.28.11.20"): Limit(500, SECOND),
        ("reviews", "10.28.11.20"): Limit(1, 5 * SECOND),
        ("details", None): Limit(500, SECOND),
    }


def test_only_the_bound_service_is_counted():
    config = config_of(SAMPLE)
    bound = config.specs_for("productpage.default.svc.cluster.local", "productpage", "default")
    assert bound == [SPEC]
    assert config.specs_for("productpage.other.svc.cluster.local", "productpage", "other") == []


@pytest.mark.parametrize(
    ("services", "name", "namespace", "bound"),
    [
        ("[{service: '*'}]", "reviews", "x", True),
        ("[{service: reviews.x.svc.cluster.local}]", "reviews", "x", True),
        ("[{name: reviews}]", "reviews", "anywhere", True),
        ("[{name: reviews, namespace: x, domain: svc.cluster.local}]", "reviews", "x", True),
        ("[{name: reviews, namespace: x}]", "reviews", "y", False),
    ],
)
def test_forms_of_bindings(services, name, namespace, bound):
    text = SAMPLE.replace("[{name: productpage, namespace: default}]", services)
    host = f"{name}.{namespace}.svc.cluster.local"
    assert bool(config_of(text).specs_for(host, name, namespace)) is bound


def test_a_rule_that_does_not_match_grants():
    text = SAMPLE.replace(
        "spec: {actions:",
        'spec: {match: \'match(request.headers["cookie"], "user=*") == false\', actions:',
    )
    config = config_of(text)
    logged_in = Bag({"request.headers": {"cookie": "user=jason"}})
    anonymous = Bag({"request.headers": {"cookie": "x=y"}})
    without = Bag({"request.headers": {}})
    assert charges_of(config, SPEC, "default", logged_in) == []
    assert len(charges_of(config, SPEC, "default", anonymous)) == 1
    assert len(charges_of(config, SPEC, "default", without)) == 1  # what is not there is empty
    assert charges_of(config, SPEC, "default", Bag({})) == []  # no headers: the match has no value


def test_clauses_and_charges():
    rules = (
        "rules: [{match: [{clause: {request.path: {prefix: /product}, request.method: "
        "{exact: GET}}}, {clause: {request.path: {regex: '/log.*'}}}], "
        "quotas: [{charge: 3, quota: RequestCount}]}]"
    )
    config = config_of(
        SAMPLE.replace("rules: [{quotas: [{charge: 1, quota: requestcount}]}]", rules)
    )

    def charged(path, method="GET"):
        found = bag(**{"request.path": path, "request.method": method})
        return [c.amount for c in charges_of(config, SPEC, "default", found)]

    assert charged("/productpage") == [3]
    assert charged("/productpage", "POST") == []
    assert charged("/login", "POST") == [3]
    assert charged("/a/login") == []
    assert config.references_of(SPEC, "default") >= {
        ("request.path", None),
        ("request.method", None),
    }


def test_a_rule_of_another_namespace_does_not_count():
    config = config_of(
        SAMPLE.replace(
            "kind: rule\nmetadata: {name: quota}",
            "kind: rule\nmetadata: {name: quota, namespace: other}",
        )
        .replace("handler: handler.memquota", "handler: handler.memquota.istio-system")
        .replace("[requestcount.quota]", "[requestcount.quota.istio-system]")
    )
    assert charges_of(config, SPEC, "default", bag()) == []
    assert len(charges_of(config, SPEC, "other", bag())) == 1


def test_a_dimension_without_value_refuses_the_request():
    config = config_of(SAMPLE.replace('["x-forwarded-for"] | "unknown"', "[request.id]"))
    with pytest.raises(ChargeError, match="dimension source"):
        charges_of(config, SPEC, "default", bag())


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ('| destination.service.name |', '| nothing.known |', "spec.dimensions.destination",
         "unknown attribute nothing.known"),
        ("maxAmount: 500\n", "maxAmount: lots\n", "spec.quotas[0]", "maxAmount is a number"),
        ("validDuration: 1s\n", "validDuration: soon\n", "spec.quotas[0]", "duration"),
        ("name: requestcount.quota.istio-system", "name: other", "spec.quotas", "no limit"),
        ("handler: handler.memquota", "handler: nobody", "spec.actions[0].handler", "no handler"),
        ("[requestcount.quota]", "[nothing.quota]", "spec.actions[0].instances[0]", "no instance"),
        ("{actions:", "{match: 'a ==', actions:", "spec.match", "unable to parse"),
        ("{actions:", "{match: '1', actions:", "spec.match", "BOOL is needed"),
        ("count, namespace: istio-system", "gone", "spec.quotaSpecs[0]", "request-gone"),
        ("charge: 1", "charge: much", "spec.rules[0].quotas[0].charge", "number"),
        ("kind: memquota", "kind: redisquota", "spec.actions[0].handler", "no handler"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_the_rest_stands(old, new, path, message):
    config = config_of(SAMPLE.replace(old, new))
    assert [(p.path, message in p.message) for p in config.problems] == [(path, True)]


def test_values_that_look_like_separators_do_not_share_a_cell():
    config = config_of(SAMPLE)
    cells = {
        charges_of(config, SPEC, "default", bag("a", forwarded))[0].cell
        for forwarded in ("x", "x;source=y", "x;10.1:source=y")
    }
    assert len(cells) == 3


TWO_IN_FIVE_SECONDS = Limit(2, 5 * SECOND)


def charge(amount=1, limit=TWO_IN_FIVE_SECONDS, cell="c"):
    return Charge("q", cell, limit, amount)


def test_the_window_rolls():
    cells = Cells()
    at = [0, 1, 2, 4.9, 5, 5.05, 6, 6.1]
    taken = [cells.take([charge()], int(t * SECOND)) is None for t in at]
    assert taken == [True, True, False, False, True, False, True, False]


def test_all_or_nothing_and_allocation():
    cells = Cells()
    assert cells.take([charge(3)], 0) is not None
    assert cells.take([charge(2)], 0) is None
    forever = charge(1, Limit(1, 0), "f")
    assert cells.take([forever], 0) is None
    assert cells.take([forever], 10**18) == forever


def test_a_new_limit_counts_anew_and_old_cells_go_first():
    cells = Cells(capacity=2)
    assert cells.take([charge(2, cell="a")], 0) is None
    assert cells.take([charge(2, cell="b")], 0) is None
    assert cells.take([charge(1, Limit(1, SECOND), "b")], 0) is None
    assert cells.take([charge(1, cell="d")], 0) is None
    assert (len(cells), cells.evicted) == (2, 1)
    assert cells.take([charge(1, cell="a")], 0) is None


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3)), max_size=60), st.integers(1, 8))
def test_no_window_ever_holds_more_than_its_limit(steps, most):
    cells, now, granted = Cells(), 0, []
    limit = Limit(most, 2 * SECOND)
    for pause, amount in steps:
        now += pause
        if cells.take([charge(amount, limit)], now * SECOND // 10) is None:
            granted.append((now, amount))
    for tick, _ in granted:
        assert sum(a for t, a in granted if tick <= t < tick + 20) <= most


def test_configs_compare_by_content():
    assert config_of(SAMPLE) == config_of(SAMPLE)
    assert config_of(SAMPLE) != config_of(SAMPLE.replace("maxAmount: 2,", "maxAmount: 3,"))
