"""Set expressions such as `resize.photo - resize.done`: text in, a tree out, sets by evaluation.

Operators are Python's, with Python's precedence: `-` binds tightest, then `&`, `^` and `|`; parentheses
group. A name is a `task.link`, a repository's id, or anything in quotes. Names may hold `-` and parentheses,
so the longest *known* name that fits is taken; no expression is ever executed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, TypeVar

from datatask.schema.errors import CallerError, InvalidValueError

LENGTH_MAX = 100_000
DEPTH_MAX = 100
TOKENS_MAX = 1000
_LEVELS = ("|", "^", "&", "-")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "|": operator.or_,
    "^": operator.xor,
    "&": operator.and_,
    "-": operator.sub,
}
_REMEDY = "write names with the operators & | - ^ and parentheses, e.g. 'a.in - a.done'"

S = TypeVar("S")


class Name(NamedTuple):
    """A set by its name."""

    name: str


class Operation(NamedTuple):
    """Two sets combined."""

    symbol: str
    left: Tree
    right: Tree


Tree = Name | Operation


class _Token(NamedTuple):
    text: str
    at: int
    is_name: bool


def parse(text: str, known: Collection[str]) -> Tree:
    """Return the tree of an expression; `CallerError` says at which column it goes wrong."""
    if len(text) > LENGTH_MAX:
        raise InvalidValueError(
            f"an expression of {len(text)} characters", remedy=f"length_max is {LENGTH_MAX}"
        )
    tokens = _tokens(text, sorted(known, key=len, reverse=True))
    if len(tokens) > TOKENS_MAX:
        raise InvalidValueError(f"an expression of {len(tokens)} words", remedy=f"words_max is {TOKENS_MAX}")
    parser = _Parser(text, tokens)
    tree = parser.level(0)
    if (rest := parser.peek()) is not None:
        raise parser.wrong(f"{rest.text!r} is not expected", rest)
    return tree


def evaluate(tree: Tree, lookup: Callable[[str], S]) -> S:
    """Return the set that the tree stands for; `lookup` gives the set of a name."""
    match tree:
        case Name(name):
            return lookup(name)
        case Operation(symbol, left, right):
            result: S = _OPERATORS[symbol](evaluate(left, lookup), evaluate(right, lookup))
            return result


def names(tree: Tree) -> list[str]:
    """Return the names in a tree, each once, in order."""
    match tree:
        case Name(name):
            return [name]
        case Operation(_, left, right):
            return list(dict.fromkeys([*names(left), *names(right)]))


class _Parser:
    def __init__(self, text: str, tokens: list[_Token]) -> None:
        self._text = text
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def level(self, number: int) -> Tree:
        """Parse operations of one precedence and of all tighter ones."""
        if number == len(_LEVELS):
            return self._operand()
        tree = self.level(number + 1)
        while (token := self.peek()) is not None and not token.is_name and token.text == _LEVELS[number]:
            self._next += 1
            tree = Operation(token.text, tree, self.level(number + 1))
        return tree

    def _operand(self) -> Tree:
        token = self.peek()
        if token is None:
            raise self.wrong("a name is missing at the end", None)
        self._next += 1
        if token.is_name:
            return Name(token.text)
        if token.text != "(":
            raise self.wrong(f"a name is missing before {token.text!r}", token)
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self.wrong(f"more than {DEPTH_MAX} parentheses inside each other", token)
        tree = self.level(0)
        closing = self.peek()
        if closing is None or closing.text != ")" or closing.is_name:
            raise self.wrong("this parenthesis is not closed", token)
        self._next += 1
        self._depth -= 1
        return tree

    def wrong(self, what: str, token: _Token | None) -> CallerError:
        column = len(self._text) if token is None else token.at
        return InvalidValueError(what, where=f"{self._text!r:.200} column {column + 1}", remedy=_REMEDY)


def _tokens(text: str, known: list[str]) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(text):
        character = text[at]
        if character.isspace():
            at += 1
        elif character in "()&|^-":
            tokens.append(_Token(character, at, False))
            at += 1
        else:
            name, end = _name(text, at, known)
            tokens.append(_Token(name, at, True))
            at = end
    return tokens


def _name(text: str, at: int, known: list[str]) -> tuple[str, int]:
    if text[at] in "'\"":
        end = text.find(text[at], at + 1)
        if end < 0:
            raise InvalidValueError(
                "this quote is not closed", where=f"{text!r:.200} column {at + 1}", remedy=_REMEDY
            )
        return text[at + 1 : end], end + 1
    for name in known:
        end = at + len(name)
        if text.startswith(name, at) and (end == len(text) or text[end] in " \t\n()&|^-"):
            return name, end
    end = at
    while end < len(text) and text[end] not in " \t\n()&|^":
        end += 1
    return text[at:end], end
