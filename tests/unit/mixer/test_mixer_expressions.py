"""The conformance table of the language, and what people get wrong in it."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshbus.cli.mixer import answers
from meshbus.mixer.attributes import STANDARD
from meshbus.mixer.functions import EvaluationError
from meshbus.mixer.program import Bag, compile_expression, references
from meshbus.mixer.syntax import MAX_DEPTH, MAX_LENGTH, CompileError, parse
from meshbus.mixer.values import (
    Duration,
    Timestamp,
    format_duration,
    format_timestamp,
    from_json,
    parse_duration,
    parse_timestamp,
    to_text,
)

DATA = json.loads((Path(__file__).parent / "mixer_expressions.json").read_text())
MANIFEST = DATA["manifests"]["defaultAttrs"]


@pytest.mark.parametrize("case", DATA["cases"], ids=lambda c: f"{c['line']}:{c['E']}")
def test_conformance(case):
    line = {
        "manifest": DATA["manifests"][case["manifest"]],
        "expr": case["E"],
        "attributes": case.get("I") or {},
    }
    (answer,) = answers([json.dumps(line).encode()])
    if "CompileErr" in case:
        assert answer.error.phase == "compile"
        assert case["CompileErr"] in answer.error.message
        return
    assert answer.type == case["Type"]
    if "Err" in case:
        assert answer.error.phase == "eval"
        assert case["Err"] in answer.error.message
    else:
        assert answer.error is None
        assert answer.value == case["R"]
    if "Referenced" in case:
        assert answer.referenced == case["Referenced"]


def value(text, **attributes):
    bag = Bag({n: from_json(v, MANIFEST.get(n)) for n, v in attributes.items()})
    return compile_expression(text, MANIFEST).evaluate(bag)


@pytest.mark.parametrize(
    ("text", "attributes", "expected"),
    [
        ("ai | 1 + 2", {"ai": 5}, 7),
        ("ai + 1 == 3 && ab || false", {"ai": 2, "ab": True}, True),
        ('(ar["k"] | "x").startsWith("x")', {"ar": {}}, True),
        ("`a\\n`", {}, "a\\n"),
        (r'"a\tb\u00e9\x41"', {}, "a\tbéA"),
        ("'x'", {}, "x"),
        ("TRUE", {}, True),
        ('"10ms"', {}, Duration(10_000_000)),
        ("1e3", {}, 1000.0),
        ('as == "a" // why', {"as": "a"}, True),
        ('toLower("ABC")', {}, "abc"),
        ('"^a.c$".matches("abc")', {}, True),
        ('size("é")', {}, 2),
        ('toLower("ΟΔΟΣ")', {}, "οδοσ"),
        ('ar["k"]', {"ar": {}}, ""),
        ("ar[as]", {"ar": {"b": "c"}, "as": "a"}, ""),
        ('ar["k"] | "x"', {"ar": {}}, "x"),
        ('ar["k"] | as', {"ar": {"k": ""}, "as": "x"}, ""),
        ('emptyStringMap()["k"] == ""', {}, True),
        ('match(ar["cookie"], "user=*") == false', {"ar": {}}, True),
        ('dnsName("my_service.ns")', {}, "my_service.ns"),
        ('dnsName("Straße.de.")', {}, "Straße.de."),
        ('dnsName("xn--bcher-kva.de")', {}, "bücher.de"),
        ("dnsName(as)", {"as": "a" * 70}, "a" * 70),
        ('email("a@my_host")', {}, "a@my_host"),
        ('uri("urn:a%zz")', {}, "urn:a%zz"),
        ('ip("010.0.00.1") == ip("10.0.0.1")', {}, True),
        ('timestamp("2015-01-02T5:04:05Z") == timestamp("2015-01-02T05:04:05Z")', {}, True),
        ("ai", {"ai": {"$duration": "2s"}}, 2_000_000_000),
        ('adur | "1s"', {"adur": 5}, Duration(5)),
        ("9223372036854775807 + 1", {}, -(1 << 63)),
        ('ip("::ffff:1.2.3.4") == ip("1.2.3.4")', {}, True),
        ('dnsName("a.b.") == dnsName("A.b")', {}, True),
        ('email("A@b.c") == email("a@b.c")', {}, False),
        ('uri("HTTP://a/x") == uri("http://A./x")', {}, True),
        ('uri("http://a:80/x") == uri("http://a/x")', {}, False),
        ('uri("http://a?") == uri("http://a")', {}, False),
        ('uri("http://a:/x?y#") == uri("HTTP://A/x?y")', {}, True),
        ('email(`"a"@b.c`) == email(`a@B.c`)', {}, True),
        ('email(`"a\\""@b.c`) == email(`"a"@b.c`)', {}, False),
        ("adns == bdns", {"adns": "", "bdns": ""}, True),
        ('timestamp("2015-01-02T15:04:05+01:00") == timestamp("2015-01-02T14:04:05Z")', {}, True),
        ("ar == ar | true", None, None),
    ],
)
def test_values(text, attributes, expected):
    if attributes is None:
        with pytest.raises(CompileError, match="not defined for STRING_MAP"):
            compile_expression("ar == ar", MANIFEST)
        return
    assert value(text, **attributes) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "a +", "(ai", "ai)", "as as", "!ab", "-ai", "0x10", "1i", 'ar["a"', "f(", "ai.",
        "as.type", '"open', "'ab'", 'ar["a"].startsWith("b")', "ip(as).foo", "as = bs", "a\n== b",
        "ai & bi", r'"\q"', "(startsWith)(as)", "as.startsWith()", 'startsWith(as, "x")',
        "as.ip()", "dur | 3", "adur == adur", "ab < bb", "ar + ar", "99999999999999999999", "@",
    ],
)  # fmt: skip
def test_refused_with_a_message(text):
    with pytest.raises(CompileError) as fault:
        compile_expression(text, MANIFEST)
    assert str(fault.value)


@pytest.mark.parametrize(
    ("text", "attributes", "message"),
    [
        ("as", {"as": 20}, "error converting value to string: '20'"),
        ("ab", {"ab": "yes"}, "error converting value to bool"),
        ("ad", {"ad": "1"}, "error converting value to double"),
        ("ai", {"ai": True}, "error converting value to integer or duration"),
        ("adur", {"adur": "5s"}, "error converting value to integer or duration"),
        ('ar["k"]', {}, "lookup failed: 'ar'"),
        ("ar[as]", {"ar": {}}, "lookup failed: 'as'"),
        ('dnsName("-a-.b")', {}, "to dns name: 'idna: invalid label \"-a-\"'"),
        ('dnsName("a..b")', {}, "to dns name: 'idna: invalid label \"a..b\"'"),
        ('dnsName("")', {}, "to dns name"),
        ('dnsName("ab--c.d")', {}, "to dns name"),
        ('dnsName("xn--99999999.d")', {}, "to dns name"),
        ('email("a@b.c.")', {}, "to e-mail"),
        ('email("a@b,c")', {}, "to e-mail"),
        ('email("a@-b")', {}, "to e-mail"),
        ('email("Joe <a@b.c>")', {}, "display names"),
        ('uri(":/")', {}, "string to uri ':/': 'parse :/: missing protocol scheme'"),
        ('uri("")', {}, "empty string"),
        ('uri("http://a b/")', {}, "host name"),
        (r'uri("http://a\\b/")', {}, "host name"),
        ('uri("http://u p@a/")', {}, "userinfo"),
        ('uri("http://a/#%zz")', {}, 'invalid URL escape "%zz"'),
        ('uri("urn:a#%z")', {}, "escape"),
        ("adns == bdns", {"adns": "a-", "bdns": "a"}, "not a dns name"),
        ("adns == bdns", {"adns": "a", "bdns": "a_b"}, "not a dns name"),
        ('uri("http://-a") == uri("http://a")', {}, "not a dns name"),
        ('"(".matches("x")', {}, "parsing regexp"),
        ('timestamp("2015-13-02T15:04:05Z")', {}, "could not convert"),
        ('ip("1.2.3")', {}, "could not convert"),
        ("ip(as) | ip(bs)", {"bs": "1.2.3.4"}, "lookup failed: 'as'"),
    ],
)
def test_no_value(text, attributes, message):
    with pytest.raises(EvaluationError, match=message):
        value(text, **attributes)


def test_limits_hold_before_the_stack_does():
    for text in ("(" * 5000 + "1" + ")" * 5000, "!" * 5000, "a" * (MAX_LENGTH + 1)):
        with pytest.raises(CompileError):
            parse(text)
    with pytest.raises(CompileError):
        parse("|".join(["as"] * 2000))
    deep = "(" * (MAX_DEPTH - 1) + "1" + ")" * (MAX_DEPTH - 1)
    assert value(deep) == 1
    assert value("|".join(["as"] * 200), **{"as": "x"}) == "x"


def test_references_are_what_a_request_must_carry():
    tree = parse('match(request.headers["cookie"], "u=*") && source.labels[request.id] == "x"')
    assert set(references(tree)) == {
        ("request.headers", "cookie"),
        ("source.labels", None),
        ("request.id", None),
    }


def test_standard_attributes_know_their_types():
    program = compile_expression('(destination.labels["app"] | "unknown")', STANDARD)
    bag = Bag({"destination.labels": {"app": "reviews"}})
    assert program.evaluate(bag) == "reviews"


def test_batch_lines_that_are_no_cases_are_answered_in_place():
    got = list(answers([b"{", b"", b'{"expr": "1"}', b'{"expr":"a","manifest":{"a":"NO"}}']))
    assert [a.error.phase if a.error else a.value for a in got] == ["input", 1, "input"]
    assert "line 4" in got[2].error.message


def test_text_of_values():
    assert to_text({"b": "2", "a": "1"}) == "a=1&b=2"
    assert to_text(True) == "true"
    assert to_text(Timestamp(1_500_000)) == "1970-01-01T00:00:00.001500Z"


@given(st.integers(-(10**18), 10**18))
def test_durations_and_times_read_what_they_print(nanos):
    assert parse_duration(format_duration(Duration(nanos))) == Duration(nanos)
    assert parse_timestamp(format_timestamp(Timestamp(nanos))) == Timestamp(nanos)


@given(st.text(max_size=60))
def test_any_text_compiles_or_is_refused(text):
    with contextlib.suppress(CompileError):
        compile_expression(text, MANIFEST)
