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
_RESERVED = frozenset(
    [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
        "var",
        "void",
        "while",
    ]
)
_WITH_A_NAME = {"all": (2,), "exists": (2,), "exists_one": (2,), "map": (2, 3), "filter": (2,)}
"""Macros whose first argument names what the others speak of, and numbers of arguments."""
_NAME, _SELECTION, _OTHER = "name", "selection", ""
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

    def expression(self, depth: int = 0) -> str:
        """Reads one; what it is: a plain name, a field of something, or other."""
        if depth > _DEEPEST:
            raise _SyntaxError("nested too deeply")
        found = self.binary(depth)
        if self.take("?"):
            self.binary(depth)
            self.need(":")
            self.expression(depth + 1)
            return _OTHER
        return found

    def binary(self, depth: int) -> str:
        found = self.unary(depth)
        while self.take("||", "&&", "+", "-", "*", "/", "%", *_RELATIONS):
            self.unary(depth)
            found = _OTHER
        return found

    def unary(self, depth: int) -> str:
        signed = False
        for sign in ("!", "-"):
            while not signed and self.take(sign):
                while self.take(sign):
                    pass
                signed = True
        found = self.member(depth)
        return _OTHER if signed else found

    def member(self, depth: int) -> str:
        found = self.primary(depth)
        while True:
            if self.take("."):
                name = self.identifier()
                found = _SELECTION
                if self.take("("):
                    self.macro(name, self.arguments(")", depth))
                    found = _OTHER
            elif self.take("["):
                self.expression(depth + 1)
                self.need("]")
                found = _OTHER
            elif self.take("{"):
                self.entries(depth)
                found = _OTHER
            else:
                return found

    def macro(self, name: str, arguments: list[str]) -> None:
        if len(arguments) in _WITH_A_NAME.get(name, ()) and arguments[0] != _NAME:
            raise _SyntaxError(f"the first argument of {name}() must be a plain name")

    def identifier(self) -> str:
        name = self.peek()
        if self.kind() != "name" or name in ("in", "true", "false", "null"):
            raise _SyntaxError(f"expected a name, found {name or 'the end'!r}")
        self.at += 1
        return name

    def primary(self, depth: int) -> str:
        if self.kind() in ("string", "number") or self.peek() in ("true", "false", "null"):
            self.at += 1
        elif self.take("("):
            found = self.expression(depth + 1)
            self.need(")")
            return found
        elif self.take("["):
            self.arguments("]", depth)
        elif self.take("{"):
            self.entries(depth)
        else:
            self.take(".")
            return self.named(depth)
        return _OTHER

    def named(self, depth: int) -> str:
        name = self.identifier()
        if name in _RESERVED:
            raise _SyntaxError(f"{name!r} is a reserved word")
        if not self.take("("):
            return _NAME
        arguments = self.arguments(")", depth)
        if name == "has" and len(arguments) == 1 and arguments[0] != _SELECTION:
            raise _SyntaxError("the argument of has() must be a field of something")
        return _OTHER

    def arguments(self, end: str, depth: int) -> list[str]:
        found: list[str] = []
        while not self.take(end):
            found.append(self.expression(depth + 1))
            if not self.take(","):
                self.need(end)
                break
        return found

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
    """Why it cannot be parsed, an empty one neither."""
    try:
        parser = _Parser(text)
        parser.expression()
        if parser.at < len(parser.tokens):
            raise _SyntaxError(f"did not expect {parser.peek()!r}")
    except _SyntaxError as error:
        return f"not a CEL expression: {error}"
    return None
