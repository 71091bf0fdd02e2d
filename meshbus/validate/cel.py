"""Syntax of CEL expressions, without types: whether one can be parsed.

Source: https://github.com/google/cel-spec/blob/master/doc/langdef.md#syntax
"""

import re

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>[rRbB]{0,2}(?:'''(?:\\.|.)*?'''|\"\"\"(?:\\.|.)*?\"\"\"
    |'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"))
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:\d+\.\d+|\.\d+|\d+)(?:[eE][+-]?\d+)?[uU]?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]{}]))""",
    re.VERBOSE | re.DOTALL,
)
_RELATIONS = frozenset({"<", "<=", ">", ">=", "==", "!=", "in"})
_DEEPEST = 100


class _SyntaxError(Exception):
    """What is wrong, for the caller's message."""


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self, *marks: str) -> bool:
        if self.kind() in ("mark", "name") and self.peek() in marks:
            self.at += 1
            return True
        return False

    def need(self, mark: str) -> None:
        if not self.take(mark):
            raise _SyntaxError(f"expected {mark!r}, found {self.peek() or 'the end'!r}")

    def expression(self, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise _SyntaxError("nested too deeply")
        self.binary(depth)
        if self.take("?"):
            self.binary(depth)
            self.need(":")
            self.expression(depth + 1)

    def binary(self, depth: int) -> None:
        self.unary(depth)
        while self.take("||", "&&", "+", "-", "*", "/", "%", *_RELATIONS):
            self.unary(depth)

    def unary(self, depth: int) -> None:
        if self.take("!"):
            while self.take("!"):
                pass
        elif self.take("-"):
            while self.take("-"):
                pass
        self.member(depth)

    def member(self, depth: int) -> None:
        self.primary(depth)
        while True:
            if self.take("."):
                self.identifier()
                if self.take("("):
                    self.arguments(")", depth)
            elif self.take("["):
                self.expression(depth + 1)
                self.need("]")
            elif self.take("{"):
                self.entries(depth)
            else:
                return

    def identifier(self) -> None:
        if self.kind() != "name":
            raise _SyntaxError(f"expected a name, found {self.peek() or 'the end'!r}")
        self.at += 1

    def primary(self, depth: int) -> None:
        if self.kind() in ("string", "number"):
            self.at += 1
        elif self.take("("):
            self.expression(depth + 1)
            self.need(")")
        elif self.take("["):
            self.arguments("]", depth)
        elif self.take("{"):
            self.entries(depth)
        else:
            self.take(".")
            self.identifier()
            if self.take("("):
                self.arguments(")", depth)

    def arguments(self, end: str, depth: int) -> None:
        while not self.take(end):
            self.expression(depth + 1)
            if not self.take(","):
                self.need(end)
                return

    def entries(self, depth: int) -> None:
        while not self.take("}"):
            self.binary(depth + 1)
            self.need(":")
            self.expression(depth + 1)
            if not self.take(","):
                self.need("}")
                return


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        token = _TOKEN.match(text, position)
        if token is None or token.lastgroup is None:
            raise _SyntaxError(f"cannot read {text[position : position + 20]!r}")
        found.append((token.lastgroup, token[token.lastgroup]))
        position = token.end()
    return found


def cel_problem(text: str) -> str | None:
    """Why it cannot be parsed; an empty expression is none."""
    if not text.strip():
        return None
    try:
        parser = _Parser(text)
        parser.expression()
        if parser.at < len(parser.tokens):
            raise _SyntaxError(f"did not expect {parser.peek()!r}")
    except _SyntaxError as error:
        return f"not a CEL expression: {error}"
    return None
