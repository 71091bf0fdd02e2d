"""Syntax of CEL expressions, without types: whether one can be parsed.

Source: https://github.com/google/cel-spec/blob/master/doc/langdef.md#syntax
"""

import re
from math import isfinite

_BYTE_ESCAPE = r"""\\(?:[abfnrtv"'\\?`]|[xX][0-9a-fA-F]{2}|[0-3][0-7]{2})"""
_SURROGATE = "[dD][89a-fA-F]"
_ESCAPE = (
    rf"(?:{_BYTE_ESCAPE}|\\u(?!{_SURROGATE})[0-9a-fA-F]{{4}}"
    rf"|\\U(?!0000{_SURROGATE})(?:0010|000[0-9a-fA-F])[0-9a-fA-F]{{4}})"
)


def _quoted(escape: str) -> str:
    """Strings with these escapes."""
    return (
        rf"""'\'\'(?:{escape}|[^\\])*?'\'\'|\"\"\"(?:{escape}|[^\\])*?\"\"\""""
        rf"""|'(?:{escape}|[^\\'\r\n])*'|"(?:{escape}|[^\\"\r\n])*\""""
    )


_RAW = r"""[rR](?:\'\'\'.*?\'\'\'|\"\"\".*?\"\"\"|'[^'\r\n]*'|"[^"\r\n]*")"""
_EXPONENT = "[eE][+-]?[0-9]+"
_BLANK = re.compile(r"(?:[ \t\r\n\f]|//[^\n]*)*")
_TOKEN = re.compile(
    rf"""(?P<string>[bB]?{_RAW}|{_quoted(_ESCAPE)}|[bB](?:{_quoted(_BYTE_ESCAPE)}))
    |(?P<float>[0-9]*\.[0-9]+(?:{_EXPONENT})?|[0-9]+{_EXPONENT})
    |(?P<number>(?:0x[0-9a-fA-F]+|[0-9]+)[uU]?)
    |(?P<escaped>`[-A-Za-z0-9_./\ ]+`)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<mark>&&|\|\||==|!=|<=|>=|[-+*/%<>!?:.,()\[\]{{}}])""",
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
_LARGEST, _LARGEST_UNSIGNED = 2**63 - 1, 2**64 - 1


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
        sign = next((sign for sign in ("!", "-") if self.take(sign)), "")
        while sign and self.take(sign):
            pass
        found = self.member(depth, negative=sign == "-")
        return _OTHER if sign else found

    def member(self, depth: int, *, negative: bool) -> str:
        found = self.primary(depth, negative=negative)
        dotted = found == _NAME
        while True:
            if self.take("."):
                escaped = self.kind() == "escaped"
                name = self.field()
                found = _SELECTION
                if not escaped and self.take("("):
                    self.macro(name, self.arguments(depth))
                    found, dotted = _OTHER, False
            elif self.take("["):
                self.expression(depth + 1)
                self.need("]")
                found, dotted = _OTHER, False
            elif dotted and self.take("{"):
                self.fields(depth)
                found, dotted = _OTHER, False
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

    def field(self) -> str:
        """The name of a field, which may stand between backquotes."""
        if self.kind() != "escaped":
            return self.identifier()
        self.at += 1
        return self.tokens[self.at - 1][1]

    def primary(self, depth: int, *, negative: bool) -> str:
        if self.take("-"):
            if self.kind() not in ("number", "float"):
                raise _SyntaxError(f"expected a number, found {self.peek() or 'the end'!r}")
            negative = True
        if self.kind() in ("number", "float"):
            self.number(negative=negative)
        elif self.kind() == "string" or self.peek() in ("true", "false", "null"):
            self.at += 1
        elif self.take("("):
            found = self.expression(depth + 1)
            self.need(")")
            return found
        elif self.take("["):
            self.elements(depth)
        elif self.take("{"):
            self.entries(depth)
        else:
            self.take(".")
            return self.named(depth)
        return _OTHER

    def number(self, *, negative: bool) -> None:
        text = self.peek()
        if self.kind() == "float":
            fits = isfinite(float(text))
        elif text[-1] in "uU":
            fits = int(text[:-1], 16 if text.startswith("0x") else 10) <= _LARGEST_UNSIGNED
        else:
            value = int(text, 16 if text.startswith("0x") else 10)
            fits = value <= _LARGEST + negative
        if not fits:
            raise _SyntaxError(f"the number {text} is too large")
        self.at += 1

    def named(self, depth: int) -> str:
        name = self.identifier()
        if name in _RESERVED:
            raise _SyntaxError(f"{name!r} is a reserved word")
        if not self.take("("):
            return _NAME
        arguments = self.arguments(depth)
        if name == "has" and len(arguments) == 1 and arguments[0] != _SELECTION:
            raise _SyntaxError("the argument of has() must be a field of something")
        return _OTHER

    def arguments(self, depth: int) -> list[str]:
        found: list[str] = []
        if self.take(")"):
            return found
        while True:
            found.append(self.expression(depth + 1))
            if not self.take(","):
                self.need(")")
                return found

    def elements(self, depth: int) -> None:
        while not self.ends("]"):
            self.expression(depth + 1)
            if not self.take(","):
                self.need("]")
                return

    def entries(self, depth: int) -> None:
        while not self.ends("}"):
            self.expression(depth + 1)
            self.need(":")
            self.expression(depth + 1)
            if not self.take(","):
                self.need("}")
                return

    def fields(self, depth: int) -> None:
        while not self.ends("}"):
            self.field()
            self.need(":")
            self.expression(depth + 1)
            if not self.take(","):
                self.need("}")
                return

    def ends(self, mark: str) -> bool:
        """Whether nothing more is listed; a comma may stand before the end."""
        if self.tokens[self.at : self.at + 2] == [("mark", ","), ("mark", mark)]:
            self.at += 1
        return self.take(mark)


def _tokens(text: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    position = _end_of(_BLANK.match(text))
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None or token.lastgroup is None:
            raise _SyntaxError(f"cannot read {text[position : position + 20]!r}")
        found.append((token.lastgroup, token[token.lastgroup]))
        position = _end_of(_BLANK.match(text, token.end()))
    return found


def _end_of(blank: re.Match[str] | None) -> int:
    assert blank is not None
    return blank.end()


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
