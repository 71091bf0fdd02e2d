"""`meshbus mixer`: try expressions of the attribute language."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from meshbus.mixer.functions import EvaluationError
from meshbus.mixer.program import Bag, compile_expression
from meshbus.mixer.syntax import CompileError
from meshbus.mixer.values import TYPES, from_json, to_json

app = typer.Typer(no_args_is_help=True, help="Attribute expressions of Mixer.")

MAX_LINE_BYTES = 1 << 20


class Case(msgspec.Struct):
    """One line of a batch."""

    expr: str
    manifest: dict[str, str] = {}
    attributes: dict[str, Any] = {}


class Fault(msgspec.Struct):
    """Why there is no value: `phase` is `input`, `compile` or `eval`."""

    phase: str
    message: str


class Answer(msgspec.Struct):
    """One line of output; `referenced` has `-` before what was looked up and absent."""

    type: str | None
    value: Any
    referenced: list[str]
    error: Fault | None


@app.callback()
def mixer() -> None:
    """Attribute expressions of Mixer."""


@app.command("eval")
def evaluate(
    batch: Annotated[
        Path,
        typer.Option(
            help='JSON lines {"manifest": {attribute: TYPE}, "expr", "attributes"}; - reads stdin.'
        ),
    ],
) -> None:
    """Answer each line of a batch with a JSON line. Exit 2: a line is not a case."""
    try:
        lines = sys.stdin.buffer if str(batch) == "-" else batch.open("rb")
    except OSError as error:
        typer.echo(f"{batch}: {error.strerror}", err=True)
        raise typer.Exit(2) from error
    wrong = False
    with lines:
        for answer in answers(lines):
            wrong = wrong or (answer.error is not None and answer.error.phase == "input")
            typer.echo(msgspec.json.encode(answer))
    if wrong:
        raise typer.Exit(2)


def answers(lines: Iterable[bytes]) -> Iterator[Answer]:
    """The answer to each line; empty lines are passed over."""
    decoder = msgspec.json.Decoder(Case)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
            case = decoder.decode(line)
            for name, kind in case.manifest.items():
                if kind not in TYPES:
                    raise ValueError(f"manifest: {name} has unknown type {kind}")
            attributes = {
                name: from_json(value, case.manifest.get(name))
                for name, value in case.attributes.items()
                if value is not None
            }
        except ValueError as error:
            yield Answer(None, None, [], Fault("input", f"line {number}: {error}"))
            continue
        yield _answer(case, Bag(attributes))


def _answer(case: Case, bag: Bag) -> Answer:
    try:
        program = compile_expression(case.expr, case.manifest)
    except CompileError as error:
        return Answer(None, None, [], Fault("compile", str(error)))
    try:
        value = to_json(program.evaluate(bag))
    except EvaluationError as error:
        return Answer(program.kind, None, bag.referenced(), Fault("eval", str(error)))
    return Answer(program.kind, value, bag.referenced(), None)
