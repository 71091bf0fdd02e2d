"""Templates of one's own read as Go's do, as far as they go."""

from typing import Any

import pytest

from meshbus.inject.template_functions import TemplateError
from meshbus.inject.templates import parse_template

DATA: dict[str, Any] = {
    "ObjectMeta": {"Labels": {"app": "a"}, "Annotations": {"x.io/y": "1"}},
    "Spec": {"containers": [{"name": "one"}, {"name": "two"}]},
    "Values": {"global": {"tag": "v1", "list": ["b", "a"]}},
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("plain", "plain"),
        ("{{ .Values.global.tag }}", "v1"),
        ("{{ index .ObjectMeta.Labels `app` }}", "a"),
        ("{{ .Values.none.deeper | default `d` | quote }}", '"d"'),
        ("{{range $i, $c := .Spec.Containers}}{{if $i}},{{end}}{{$c.Name}}{{end}}", "one,two"),
        ("{{range .Spec.Containers}}[{{.Name}}]{{else}}none{{end}}", "[one][two]"),
        ("{{range .None}}x{{else}}none{{end}}", "none"),
        ("a\n  {{- if eq 1 2 }}\nx\n{{- else if true }}\ny\n{{- else }}z{{- end }}\n", "a\ny\n"),
        ("{{ $x := 1 }}{{ $x = 2 }}{{ $x }}", "2"),
        ("{{ with .Values.global }}{{ .tag }}{{ end }}", "v1"),
        ("{{ define `t` }}<{{ . }}>{{ end }}{{ template `t` .Values.global.tag }}", "<v1>"),
        ("{{ printf `%s-%d%%` .Values.global.tag 3 }}", "v1-3%"),
        ("{{ annotation .ObjectMeta `x.io/y` 5 }}{{ annotation .ObjectMeta `z` 5 }}", "15"),
        ("{{ if isset .ObjectMeta.Annotations `x.io/y` }}y{{ end }}", "y"),
        ("{{ or .None `b` }}{{ and 1 0 }}{{ not true }}", "b0false"),
        ("{{ list `a` `b` | join `,` }}", "a,b"),
        ("{{ (index .Spec.Containers 1).Name }}", "two"),
        ("{{/* a comment */}}x", "x"),
        ("{{ toJSON .ObjectMeta.Labels }}", '{"app":"a"}'),
        ("{{ len .Spec.Containers }}", "2"),
        ("{{ excludeInboundPort 15020 `4,5` }}", "4,5,15020"),
    ],
)
def test_language(source: str, expected: str) -> None:
    assert parse_template(source).render(DATA) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ if }}x",
        "{{ unknown .X }}",
        "{{ end }}",
        "{{ .Values.global.tag.deeper }}",
        "{{ $x }}",
        "{{ range 5 }}{{ template `t` }}{{ end }}",
        "{{ define `t` }}{{ template `t` }}{{ end }}{{ template `t` }}",
        "{{ range 100000 }}{{ range 100000 }}x{{ end }}{{ end }}",
        "{{",
        "{{ `a` `b` }}",
        "{{ fail `no` }}",
    ],
)
def test_what_it_does_not_know_is_an_error(source: str) -> None:
    with pytest.raises(TemplateError):
        parse_template(source).render(DATA)
