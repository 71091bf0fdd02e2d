"""Templates of people's own: the part of Go's template language that injection templates use.

Text with actions between `{{` and `}}`: fields, variables, `if`, `else`, `range`, `with`, `define`,
`template`, pipelines and the functions of `template_functions`. What it does not know is an error
with its line, never silence. Source: https://pkg.go.dev/text/template
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from meshbus.api.yaml_text import NotReadableError, read_yaml
from meshbus.inject.template_functions import FUNCTIONS, TemplateError, display, is_true

LARGEST_TEMPLATE = 256 * 1024
LARGEST_OUTPUT = 1024 * 1024
_MOST_STEPS = 200_000
_DEEPEST = 50

_ACTION = re.compile(r"(\s*)\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:\\.|[^"\\])*")
    | (?P<raw>`[^`]*`)
    | (?P<char>'(?:\\.|[^'\\])')
    | (?P<number>[-+]?\d+(?:\.\d+)?)
    | (?P<variable>\$\w*(?:\.\w+)*)
    | (?P<field>\.(?:\w+(?:\.\w+)*)?)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<sign>:=|[=|(),])
    )""",
    re.VERBOSE,
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}

Token = tuple[str, str]


class _Node(NamedTuple):
    kind: str
    line: int
    value: Any = None
    body: Sequence[Any] = ()
    other: Sequence[Any] = ()


class Template:
    """A template that has been read."""

    def __init__(self, nodes: Sequence[_Node], defined: Mapping[str, Sequence[_Node]]) -> None:
        self._nodes = nodes
        self._defined = defined

    def render(self, data: Any) -> str:
        """Its text for some data.

        Raises:
            TemplateError: A field, function or value is not what the template takes it for.
        """
        return _Run(self._defined, data).text(self._nodes, data, 0)

    def render_yaml(self, data: Any) -> Any:
        """Its text, which is YAML, as a value.

        Raises:
            TemplateError: The same, or the text is not YAML.
        """
        try:
            return read_yaml(self.render(data))
        except NotReadableError as error:
            raise TemplateError(f"gives no YAML: line {error.line}: {error.message}") from error


def parse_template(source: str) -> Template:
    """Read a template.

    Raises:
        TemplateError: It is not one.
    """
    if len(source) > LARGEST_TEMPLATE:
        raise TemplateError(f"is longer than {LARGEST_TEMPLATE} characters")
    defined: dict[str, Sequence[_Node]] = {}
    parts = _parts(source)
    nodes, end = _block(parts, defined, 0)
    if end is not None:
        raise TemplateError(f"line {end[1]}: unexpected {{{{{end[0]}}}}}")
    return Template(nodes, defined)


def _parts(source: str) -> Iterator[tuple[str, str, int]]:
    """(`text` or `action`, content, line) in order."""
    position, line = 0, 1
    trim = False
    for found in _ACTION.finditer(source):
        before = source[position : found.start()] + (found[1] if not found[2] else "")
        if trim:
            before = before.lstrip()
        if before:
            yield "text", before, line
        line += source.count("\n", position, found.start() + len(found[1]))
        position, trim = found.end(), bool(found[4])
        action = found[3].strip()
        if not (action.startswith("/*") and action.endswith("*/")):
            yield "action", action, line
        line += source.count("\n", found.start() + len(found[1]), found.end())
    rest = source[position:]
    if rest.count("{{"):
        raise TemplateError(f"line {line}: an action without }}}}")
    yield "text", rest.lstrip() if trim else rest, line


def _tokens(action: str, line: int) -> list[Token]:
    position = 0
    tokens: list[Token] = []
    text = action.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if not found or found.lastgroup is None:
            raise TemplateError(f"line {line}: cannot read {text[position:][:30]!r}")
        kind = found.lastgroup
        if kind == "field" and tokens[-1:] == [("sign", ")")] and found.start(kind) == position:
            kind = "access"
        tokens.append((kind, found[found.lastgroup]))
        position = found.end()
    return tokens


def _block(
    parts: Iterator[tuple[str, str, int]], defined: dict[str, Sequence[_Node]], depth: int
) -> tuple[list[_Node], tuple[str, int, list[Token]] | None]:
    """Nodes up to `end` or `else`, and which it was."""
    if depth > _DEEPEST:
        raise TemplateError("is nested too deeply")
    nodes: list[_Node] = []
    for kind, content, line in parts:
        if kind == "text":
            nodes.append(_Node("text", line, content))
            continue
        tokens = _tokens(content, line)
        word = tokens[0][1] if tokens and tokens[0][0] == "word" else ""
        if word in ("end", "else"):
            return nodes, (word, line, tokens[1:])
        if word in ("if", "range", "with"):
            nodes.append(_control(word, tokens[1:], line, parts, defined, depth))
        elif word == "define":
            name = _literal(tokens[1])
            body, end = _block(parts, defined, depth + 1)
            if end is None or end[0] != "end":
                raise TemplateError(f"line {line}: define without end")
            defined[name] = body
        elif word == "template":
            pipeline = _pipeline(tokens[2:], line) if len(tokens) > 2 else None
            nodes.append(_Node("template", line, (_literal(tokens[1]), pipeline)))
        elif tokens:
            nodes.append(_Node("action", line, _declared(tokens, line)))
    return nodes, None


def _control(
    word: str,
    tokens: list[Token],
    line: int,
    parts: Iterator[tuple[str, str, int]],
    defined: dict[str, Sequence[_Node]],
    depth: int,
) -> _Node:
    body, end = _block(parts, defined, depth + 1)
    other: list[_Node] = []
    if end is not None and end[0] == "else":
        rest = end[2]
        if rest and rest[0][1] in ("if", "with"):
            other = [_control(rest[0][1], rest[1:], end[1], parts, defined, depth + 1)]
            return _Node(word, line, _declared(tokens, line), body, other)
        other, end = _block(parts, defined, depth + 1)
    if end is None or end[0] != "end":
        raise TemplateError(f"line {line}: {word} without end")
    return _Node(word, line, _declared(tokens, line), body, other)


def _declared(tokens: list[Token], line: int) -> tuple[list[str], str, Any]:
    """Variables that are set, how, and the pipeline."""
    for sign in (":=", "="):
        if ("sign", sign) in tokens:
            at = tokens.index(("sign", sign))
            names = [value for kind, value in tokens[:at] if kind == "variable"]
            if 1 <= len(names) <= 2 and all(k in ("variable", "sign") for k, _ in tokens[:at]):
                return names, sign, _pipeline(tokens[at + 1 :], line)
    return [], "", _pipeline(tokens, line)


def _pipeline(tokens: list[Token], line: int) -> list[list[Any]]:
    """Commands, each a list of operands: tokens, or ("pipe", pipeline, fields)."""
    commands: list[list[Any]] = [[]]
    position = 0
    while position < len(tokens):
        kind, value = tokens[position]
        if (kind, value) == ("sign", "|"):
            commands.append([])
        elif (kind, value) == ("sign", "("):
            depth, start = 1, position + 1
            while depth and position + 1 < len(tokens):
                position += 1
                depth += (tokens[position] == ("sign", "(")) - (tokens[position] == ("sign", ")"))
            if depth:
                raise TemplateError(f"line {line}: ( without )")
            commands[-1].append(("pipe", _pipeline(tokens[start:position], line)))
        elif kind == "access":
            commands[-1][-1] = ("access", (commands[-1][-1], value))
        elif kind == "sign":
            raise TemplateError(f"line {line}: unexpected {value!r}")
        else:
            commands[-1].append((kind, value))
        position += 1
    if any(not command for command in commands):
        raise TemplateError(f"line {line}: an empty command")
    return commands


def _literal(token: Token) -> str:
    kind, value = token
    if kind == "raw":
        return value[1:-1]
    if kind not in ("string", "char"):
        raise TemplateError(f"{value!r} is not text")
    return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), value[1:-1])


class _Run:
    """One rendering: variables, and limits on what it may cost."""

    def __init__(self, defined: Mapping[str, Sequence[_Node]], data: Any) -> None:
        self._defined = defined
        self._scopes: list[dict[str, Any]] = [{"$": data}]
        self._left = _MOST_STEPS
        self._size = 0

    def text(self, nodes: Sequence[_Node], dot: Any, depth: int) -> str:
        if depth > _DEEPEST:
            raise TemplateError("calls itself too deeply")
        return "".join(self._node(node, dot, depth) for node in nodes)

    def _node(self, node: _Node, dot: Any, depth: int) -> str:
        self._left -= 1
        if self._left < 0:
            raise TemplateError("takes too many steps")
        try:
            text = self._written(node, dot, depth)
        except TemplateError as error:
            if str(error).startswith("line "):
                raise
            raise TemplateError(f"line {node.line}: {error}") from error
        if node.kind in ("text", "action"):
            self._size += len(text)
        if self._size > LARGEST_OUTPUT:
            raise TemplateError(f"gives more than {LARGEST_OUTPUT} characters")
        return text

    def _written(self, node: _Node, dot: Any, depth: int) -> str:
        if node.kind == "text":
            return str(node.value)
        if node.kind == "template":
            name, pipeline = node.value
            if name not in self._defined:
                raise TemplateError(f"template {name!r} is not defined")
            data = None if pipeline is None else self._evaluate(pipeline, dot)
            held, self._scopes = self._scopes, [{"$": data}]
            try:
                return self.text(self._defined[name], data, depth + 1)
            finally:
                self._scopes = held
        names, sign, pipeline = node.value
        value = self._evaluate(pipeline, dot)
        if node.kind == "action":
            if names:
                self._assign(names[0], value, declare=sign == ":=")
                return ""
            return display(value)
        self._scopes.append({})
        try:
            if node.kind == "range":
                return self._range(node, names, value, dot, depth)
            if names:
                self._assign(names[0], value, declare=True)
            if is_true(value):
                return self.text(node.body, value if node.kind == "with" else dot, depth + 1)
            return self.text(node.other, dot, depth + 1)
        finally:
            self._scopes.pop()

    def _range(self, node: _Node, names: list[str], value: Any, dot: Any, depth: int) -> str:
        if isinstance(value, Mapping):
            items = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list | tuple):
            items = list(enumerate(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            items = [(n, n) for n in range(min(value, _MOST_STEPS))]
        elif value is None:
            items = []
        else:
            raise TemplateError(f"range over {display(value)!r}")
        if not items:
            return self.text(node.other, dot, depth + 1)
        out = []
        for key, item in items:
            given = (key, item) if len(names) == 2 else (item,)
            self._scopes[-1].update(zip(names, given, strict=False))
            out.append(self.text(node.body, item, depth + 1))
        return "".join(out)

    def _assign(self, name: str, value: Any, *, declare: bool) -> None:
        if not declare:
            for scope in reversed(self._scopes):
                if name in scope:
                    scope[name] = value
                    return
            raise TemplateError(f"{name} is not declared")
        self._scopes[-1][name] = value

    def _evaluate(self, pipeline: list[list[Any]], dot: Any) -> Any:
        value: Any = None
        for number, command in enumerate(pipeline):
            piped = [value] if number else []
            value = self._command(command, dot, piped)
        return value

    def _command(self, command: list[Any], dot: Any, piped: list[Any]) -> Any:
        first = command[0]
        if first[0] == "word" and first[1] not in ("true", "false", "nil"):
            function = FUNCTIONS.get(first[1])
            if function is None:
                raise TemplateError(f"function {first[1]!r} is not known")
            operands = [self._operand(item, dot) for item in command[1:]]
            try:
                return function(*operands, *piped)
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                if isinstance(error, TemplateError):
                    raise
                raise TemplateError(f"{first[1]}: {error}") from error
        if len(command) > 1 or piped:
            raise TemplateError(f"{first[1]!r} is not a function")
        return self._operand(first, dot)

    def _operand(self, operand: Any, dot: Any) -> Any:
        kind, value = operand
        match kind:
            case "pipe":
                return self._evaluate(value, dot)
            case "access":
                return _fields(self._operand(value[0], dot), value[1][1:])
            case "string" | "raw" | "char":
                return _literal((kind, value))
            case "number":
                return float(value) if "." in value else int(value)
            case "field":
                return _fields(dot, value[1:])
            case "variable":
                name, _, rest = value.partition(".")
                for scope in reversed(self._scopes):
                    if name in scope:
                        return _fields(scope[name], rest)
                raise TemplateError(f"{name} is not declared")
            case _:
                if value in ("true", "false"):
                    return value == "true"
                return None if value == "nil" else self._command([operand], dot, [])


def _fields(value: Any, path: str) -> Any:
    """A field by the name Go has for it: as written, or with its first letter small."""
    for name in filter(None, path.split(".")):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise TemplateError(f"{display(value)[:40]!r} has no field {name!r}")
        if name in value:
            value = value[name]
            continue
        same = [key for key in value if isinstance(key, str) and key.lower() == name.lower()]
        value = value[same[0]] if same else None
    return value
