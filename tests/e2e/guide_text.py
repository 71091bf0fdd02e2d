"""What a guide tells its reader to do: files to write, commands to type, and what they print."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w.-]+\.(?:yaml|py))\b")
_COMMANDS = re.compile(r"(meshbus|curl|for|sed|export|kubectl|openssl|tail|python)\b")
_STATUSES = frozenset({"101", "200", "301", "404", "429", "502", "503", "504"})
_NUMBER = re.compile(r"\d[\d.]*")
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+")


class Manifest(NamedTuple):
    """A file of the guide; without a name, the routes of its VirtualService."""

    file: str
    text: str


class Command(NamedTuple):
    """A command, and the lines that the guide says it prints; none: it does not say."""

    text: str
    output: tuple[str, ...]


def commands_and_files(guide: str) -> list[Manifest | Command]:
    """The steps of a guide, in order."""
    steps: list[Manifest | Command] = []
    for language, text in _BLOCK.findall(guide):
        named = _FILE.match(text)
        if named is not None:
            steps.append(Manifest(named[1], text))
        elif language == "yaml" and text.startswith("http:"):
            steps.append(Manifest("", text))
        elif not language:
            steps += _commands(text)
    return steps


def _commands(text: str) -> list[Command]:
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if _COMMANDS.match(line):
            command, _, comment = line.partition("      # ")
            # A comment behind a command of one answer is that answer.
            answer = [comment.strip()] if re.fullmatch(r"v\d", comment.strip()) else []
            found.append((command.rstrip(), answer))
        elif found:
            found[-1][1].append(line)
    return [Command(command, tuple(output)) for command, output in found]


def same(expected: Sequence[str], printed: Sequence[str]) -> bool:
    """Each line that is expected was printed: counts, times and addresses apart."""
    there = {_words(line) for line in printed}
    return all(_words(line) in there for line in expected if line.strip())


def _words(line: str) -> frozenset[str]:
    words = _ADDRESS.sub("ADDRESS", line).replace(",", " ").split()
    return frozenset(w if w in _STATUSES or not _NUMBER.fullmatch(w) else "N" for w in words)
