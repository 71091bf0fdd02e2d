"""Who gets a sidecar: every rule, and which of two counts."""

from typing import Any

import pytest

from meshbus.inject import InjectionError, Injector
from meshbus.inject.helm_set import set_values

NEVER = "sidecarInjectorWebhook.neverInjectSelector[0]"
ALWAYS = "sidecarInjectorWebhook.alwaysInjectSelector[0]"
OFF = "global.proxy.autoInject=disabled"


def injector(*flags: str) -> Injector:
    values: dict[str, Any] = {}
    for flag in flags:
        set_values(values, flag)
    return Injector(values)


def pod(
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    **spec: Any,
) -> dict[str, Any]:
    return {"metadata": {"labels": labels or {}, "annotations": annotations or {}}, "spec": spec}


def wish(value: str) -> dict[str, str]:
    return {"sidecar.istio.io/inject": value}


@pytest.mark.parametrize(
    ("flags", "written", "namespace", "expected"),
    [
        ((), pod(), "a", True),
        ((OFF,), pod(), "a", False),
        ((), pod(annotations=wish("false")), "a", False),
        ((OFF,), pod(annotations=wish("true")), "a", True),
        ((OFF,), pod(annotations=wish("Yes")), "a", True),
        ((), pod(annotations=wish("maybe")), "a", False),
        ((), pod(annotations=wish("")), "a", True),
        ((OFF,), pod(annotations=wish("")), "a", False),
        ((), pod(wish("false"), wish("true")), "a", False),
        ((OFF,), pod(wish("true"), wish("false")), "a", True),
        ((), pod(hostNetwork=True), "a", False),
        ((), pod(wish("true"), hostNetwork=True), "a", False),
        ((), pod(wish("true")), "kube-system", False),
        ((), pod(), "kube-public", False),
        ((f"{NEVER}.matchLabels.foo=bar",), pod({"foo": "bar"}), "a", False),
        ((f"{NEVER}.matchLabels.foo=bar",), pod({"foo": "baz"}), "a", True),
        ((f"{NEVER}.matchLabels.foo=bar",), pod({"foo": "bar", **wish("true")}), "a", True),
        ((OFF, f"{ALWAYS}.matchLabels.foo=bar"), pod({"foo": "bar"}), "a", True),
        ((OFF, f"{ALWAYS}.matchLabels.foo=bar"), pod({"foo": "bar", **wish("false")}), "a", False),
        (
            (f"{NEVER}.matchLabels.foo=bar", f"{ALWAYS}.matchLabels.foo=bar"),
            pod({"foo": "bar"}),
            "a",
            False,
        ),
        (
            (
                OFF,
                f"{ALWAYS}.matchExpressions[0].key=foo",
                f"{ALWAYS}.matchExpressions[0].operator=Exists",
            ),
            pod({"foo": ""}),
            "a",
            True,
        ),
        ((OFF, "sidecarInjectorWebhook.alwaysInjectSelector={}"), pod({"foo": ""}), "a", False),
    ],
)
def test_rules(
    flags: tuple[str, ...], written: dict[str, Any], namespace: str, expected: bool
) -> None:
    decision = injector(*flags).decide(written, namespace)
    assert decision.inject == expected
    assert bool(decision.reason) != expected


def test_an_empty_selector_chooses_nothing() -> None:
    webhook = {"alwaysInjectSelector": [{}], "neverInjectSelector": [{}]}
    held = Injector({"sidecarInjectorWebhook": webhook})
    assert held.decide(pod(), "a").inject


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        (("global.proxy.autoInject=on",), "global.proxy.autoInject"),
        ((f"{NEVER}.matchLabels=x",), f"{NEVER}.matchLabels"),
        ((f"{NEVER}.labels.a=b",), f"{NEVER}.labels"),
        (
            (f"{ALWAYS}.matchExpressions[0].key=a", f"{ALWAYS}.matchExpressions[0].operator=Is"),
            f"{ALWAYS}.matchExpressions[0].operator",
        ),
        (
            (f"{ALWAYS}.matchExpressions[0].key=a", f"{ALWAYS}.matchExpressions[0].operator=In"),
            f"{ALWAYS}.matchExpressions[0].values",
        ),
        (("global.proxy.includeIPRanges=nonsense",), "global.proxy.includeIPRanges"),
        (("meshConfig.defaultConfig.foo=1",), "meshConfig.defaultConfig.foo"),
    ],
)
def test_a_bad_value_is_refused_by_its_path(flags: tuple[str, ...], place: str) -> None:
    with pytest.raises(InjectionError) as error:
        injector(*flags)
    assert error.value.path == place
