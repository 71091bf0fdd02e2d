"""`meshbus mixer eval --batch`."""

import json

from typer.testing import CliRunner

from meshbus.cli.mixer import app

LINES = [
    {
        "manifest": {"request.headers": "STRING_MAP"},
        "expr": 'request.headers["a"] | "none"',
        "attributes": {"request.headers": {"$strmap": {"b": "c"}}},
    },
    {"manifest": {"a": "INT64"}, "expr": "a == 1", "attributes": {}},
    {"manifest": {}, "expr": "a ==", "attributes": {}},
    {"manifest": {"t": "TIMESTAMP"}, "expr": "t", "attributes": {"t": {"$time": "x"}}},
]


def test_each_line_gets_its_answer(tmp_path):
    batch = tmp_path / "batch.jsonl"
    batch.write_text("\n".join(json.dumps(line) for line in LINES[:3]))
    done = CliRunner().invoke(app, ["eval", "--batch", str(batch)])
    assert done.exit_code == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0] == {
        "type": "STRING",
        "value": "none",
        "referenced": ["-request.headers[a]", "request.headers"],
        "error": None,
    }
    assert (answers[1]["error"]["phase"], answers[1]["referenced"]) == ("eval", ["-a"])
    assert answers[2]["error"]["phase"] == "compile"


def test_lines_that_are_no_cases_and_files_that_are_not_there(tmp_path):
    lines = "\n".join(json.dumps(line) for line in LINES)
    done = CliRunner().invoke(app, ["eval", "--batch", "-"], input=lines)
    assert done.exit_code == 2
    assert len(done.stdout.splitlines()) == 4
    missing = CliRunner().invoke(app, ["eval", "--batch", str(tmp_path / "no")])
    assert missing.exit_code == 2
    assert "No such file" in missing.output
