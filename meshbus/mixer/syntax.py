"""Text of an expression to its tree.

The syntax is that of Go's expressions as far as Mixer takes them: literals, dotted names (one flat
attribute each), index, calls, methods, binary operators of Go's precedence. Operators become calls:
`a == b | c` is `EQ(a, OR(b, c))`.

Source: Go specification, "Expressions"; Mixer 1.4, expression language reference.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from meshbus.mixer.values import BOOL, DOUBLE, DURATION, INT64, STRING, Value, parse_duration

MAX_LENGTH = 16_384
"""Characters of one expression."""
MAX_DEPTH = 64
"""How deep parentheses, calls and unary operators may nest."""
MAX_NODES = 256
"""Operators and calls of one expression: a chain of them is as deep a tree."""


class CompileError(Exception):
    """An expression that cannot be used: its syntax, a name, a type. The message says which."""


@dataclass(frozen=True, slots=True)
class Const:
    """A literal. A string that reads as a Go duration is one: `"5s"`."""

    text: str
    kind: str
    value: Value

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Var:
    """An attribute."""

    name: str

    def __str__(self) -> str:
        return f"${self.name}"


@dataclass(frozen=True, slots=True)
class Call:
    """A function or operator; `target` is what a method is called on."""

    name: str
    args: tuple["Node", ...]
    target: "Node | None" = None

    def __str__(self) -> str:
        head = "" if self.target is None else f"{self.target}:"
        return f"{head}{self.name}({', '.join(str(arg) for arg in self.args)})"


Node = Const | Var | Call


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


_TOKENS = re.compile(
    r"""
    (?P<space>[ \t\r]+ | /\*.*?\*/)
  | (?P<newline>(?://[^\n]*)?\n | //[^\n]*\Z)
  | (?P<imaginary>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?i\b)
  | (?P<hex>0[xXbBoO][0-9a-fA-F_]*)
  | (?P<float>(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?|\d+[eE][+-]?\d+)
  | (?P<int>\d+)
  | (?P<name>[^\W\d]\w*)
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<raw>`[^`]*`)
  | (?P<char>'(?:[^'\\\n]|\\[^\n]+?)')
  | (?P<op>&&=?|\|\|=?|==|!=|<=|>=|<<=?|>>=?|&\^=?|:=|\+\+|--|<-|\.\.\.|[-+*/%&|^=<>!~.,;:(){}\[\]])
    """,
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset(
    {
        "break", "case", "chan", "const", "continue", "default", "defer", "else", "fallthrough",
        "for", "func", "go", "goto", "if", "import", "interface", "map", "package", "range",
        "return", "select", "struct", "switch", "type", "var",
    }
)  # fmt: skip
_OPERATORS = {
    "||": ("LOR", 1),
    "&&": ("LAND", 2),
    "==": ("EQ", 3),
    "!=": ("NEQ", 3),
    "<": ("LT", 3),
    "<=": ("LEQ", 3),
    ">": ("GT", 3),
    ">=": ("GEQ", 3),
    "+": ("ADD", 4),
    "-": ("SUB", 4),
    "|": ("OR", 4),
    "^": ("XOR", 4),
    "*": ("MUL", 5),
    "/": ("QUO", 5),
    "%": ("REM", 5),
    "<<": ("SHL", 5),
    ">>": ("SHR", 5),
    "&": ("AND", 5),
    "&^": ("AND_NOT", 5),
}
_UNARY = {"!": "NOT", "-": "SUB", "+": "ADD", "^": "XOR", "&": "AND"}
_ENDS_OPERAND = frozenset({"name", "int", "float", "hex", "imaginary", "string", "raw", "char"})
_ESCAPE = re.compile(
    r"\\(?:([abfnrtv\\'\"])|([0-7]{3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))"
)
_SIMPLE = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", "'": "'", '"': '"',
}  # fmt: skip


def parse(text: str) -> Node:
    """The tree of an expression.

    Raises:
        CompileError: It is not an expression of the language.
    """
    if len(text) > MAX_LENGTH:
        raise CompileError(f"expression of {len(text)} characters; at most {MAX_LENGTH} are taken")
    parser = _Parser(text)
    node = parser.binary(1)
    parser.end()
    return node.node


class _Operand(NamedTuple):
    """A tree and what it was written as, which decides whether it can have methods."""

    node: Node
    form: str


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._scan()
        self.position = 0
        self.depth = 0
        self.nodes = 0

    def _fail(self, message: str, at: int) -> CompileError:
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        return CompileError(f"unable to parse expression '{self.text}': {line}:{column}: {message}")

    def _scan(self) -> list[_Token]:
        tokens: list[_Token] = []
        position = 0
        while position < len(self.text):
            found = _TOKENS.match(self.text, position)
            if found is None:
                raise self._fail(f"unexpected {self.text[position]!r}", position)
            kind = found.lastgroup or ""
            if kind == "newline":
                # Go ends a statement at a line's end after an operand.
                last = tokens[-1] if tokens else None
                if last and (last.kind in _ENDS_OPERAND or last.text in {")", "]", "}"}):
                    tokens.append(_Token("newline", "newline", position))
            elif kind != "space":
                tokens.append(_Token(kind, found[0], position))
            position = found.end()
        while tokens and tokens[-1].kind == "newline":
            tokens.pop()
        tokens.append(_Token("end", "", len(self.text)))
        return tokens

    def _peek(self) -> _Token:
        return self.tokens[self.position]

    def _next(self) -> _Token:
        token = self.tokens[self.position]
        self.position += 1
        return token

    def _expect(self, text: str) -> None:
        token = self._next()
        if token.kind != "op" or token.text != text:
            raise self._fail(f"expected '{text}', found '{token.text or 'EOF'}'", token.at)

    def _call(self, name: str, args: tuple[Node, ...], target: Node | None = None) -> Call:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise CompileError(f"expression of more than {MAX_NODES} operators and calls")
        return Call(name, args, target)

    def end(self) -> None:
        token = self._peek()
        if token.kind == "end":
            return
        expected = "'=='" if token.text == "=" else "end of expression"
        raise self._fail(f"expected {expected}, found '{token.text}'", token.at)

    def binary(self, least: int) -> _Operand:
        left = self._unary()
        while True:
            token = self._peek()
            name, precedence = _OPERATORS.get(token.text if token.kind == "op" else "", ("", 0))
            if precedence < least:
                return left
            self._next()
            right = self.binary(precedence + 1)
            left = _Operand(self._call(name, (left.node, right.node)), "binary")

    def _unary(self) -> _Operand:
        token = self._peek()
        if token.kind == "op" and token.text in _UNARY:
            self._next()
            self._deeper(token.at)
            operand = self._unary()
            self.depth -= 1
            return _Operand(self._call(_UNARY[token.text], (operand.node,)), "unary")
        return self._primary()

    def _deeper(self, at: int) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._fail(f"nested deeper than {MAX_DEPTH}", at)

    def _primary(self) -> _Operand:
        operand = self._atom()
        while True:
            token = self._peek()
            if token.kind != "op" or token.text not in {".", "[", "("}:
                return operand
            self._next()
            self._deeper(token.at)
            if token.text == ".":
                operand = self._selector(operand, token)
            elif token.text == "[":
                index = self.binary(1)
                self._expect("]")
                operand = _Operand(self._call("INDEX", (operand.node, index.node)), "index")
            else:
                if operand.form != "name":
                    raise self._fail("only a name can be called", token.at)
                assert isinstance(operand.node, Var)
                operand = _Operand(self._call(operand.node.name, self._arguments()), "call")
            self.depth -= 1

    def _selector(self, operand: _Operand, dot: _Token) -> _Operand:
        token = self._next()
        if token.kind != "name" or token.text in _KEYWORDS:
            raise self._fail(f"expected a name, found '{token.text or 'EOF'}'", token.at)
        following = self._peek()
        called = following.kind == "op" and following.text == "("
        if called:
            if operand.form not in {"name", "attribute", "call", "literal", "paren"}:
                raise self._fail(f"'{operand.node}' cannot have methods", dot.at)
            self._next()
            return _Operand(self._call(token.text, self._arguments(), operand.node), "call")
        if operand.form in {"name", "attribute"} and isinstance(operand.node, Var):
            return _Operand(Var(f"{operand.node.name}.{token.text}"), "attribute")
        raise self._fail(f"'{operand.node}' has no members", dot.at)

    def _arguments(self) -> tuple[Node, ...]:
        out: list[Node] = []
        while not (self._peek().kind == "op" and self._peek().text == ")"):
            out.append(self.binary(1).node)
            token = self._peek()
            if token.kind == "op" and token.text == ",":
                self._next()
            elif not (token.kind == "op" and token.text == ")"):
                raise self._fail(f"expected ')', found '{token.text or 'EOF'}'", token.at)
        self._next()
        return tuple(out)

    def _atom(self) -> _Operand:
        token = self._next()
        match token.kind:
            case "name" if token.text not in _KEYWORDS:
                lower = token.text.lower()
                if lower in {"true", "false"}:
                    return _Operand(Const(lower, BOOL, lower == "true"), "boolean")
                return _Operand(Var(token.text), "name")
            case "int":
                value = int(token.text)
                if value >= 1 << 63:
                    raise self._fail(f"{token.text} does not fit 64 bits", token.at)
                return _Operand(Const(token.text, INT64, value), "literal")
            case "float":
                return _Operand(Const(token.text, DOUBLE, float(token.text)), "literal")
            case "string" | "raw" | "char":
                return _Operand(self._string(token), "literal")
            case "hex" | "imaginary":
                raise self._fail(f"numbers are decimal, not '{token.text}'", token.at)
            case "op" if token.text == "(":
                self._deeper(token.at)
                inner = self.binary(1)
                self._expect(")")
                self.depth -= 1
                return _Operand(inner.node, "paren")
        raise self._fail(f"expected operand, found '{token.text or 'EOF'}'", token.at)

    def _string(self, token: _Token) -> Const:
        body = token.text[1:-1]
        if token.kind == "raw":
            value = body.replace("\r", "")
        else:
            value = self._unescape(body, token)
            if token.kind == "char" and len(value) != 1:
                raise self._fail(f"{token.text} is not one character", token.at)
        duration = parse_duration(value)
        if duration is not None:
            return Const(token.text, DURATION, duration)
        return Const(token.text, STRING, value)

    def _unescape(self, body: str, token: _Token) -> str:
        if "\\" not in body:
            return body
        out = bytearray()
        position = 0
        while position < len(body):
            if body[position] != "\\":
                out += body[position].encode()
                position += 1
                continue
            found = _ESCAPE.match(body, position)
            if found is None:
                raise self._fail(f"unknown escape in {token.text}", token.at)
            if found[1]:
                out += _SIMPLE[found[1]].encode()
            elif found[2] or found[3]:
                number = int(found[2], 8) if found[2] else int(found[3], 16)
                if number > 255:
                    raise self._fail(f"escape out of range in {token.text}", token.at)
                out.append(number)
            else:
                number = int(found[4] or found[5], 16)
                if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                    raise self._fail(f"escape out of range in {token.text}", token.at)
                out += chr(number).encode()
            position = found.end()
        return out.decode(errors="replace")
