"""containerd's filter language, in which List is told what to answer.

The grammar is that of containerd's package ``filters`` (``parser.go``, ``scanner.go``, ``quote.go``)::

    selectors := selector ("," selector)*          all of them must match
    selector  := fieldpath [operator value]        without an operator: the field is present
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="
    value     := quoted | a run of visible characters without space and comma
    quoted    := a Go string in ", or, as the value of "~=" only, between / / or | |

A list of filters matches what any of its members matches; an empty list, and an empty filter, match everything. What Go
does by accident is kept where a client can see it: spaces are skipped before a token but not after a value, a value may
not begin with an operator's or separator's character, ``!=`` and ``~=`` see an absent field as the empty string.

A regular expression is RE2's, matched by RE2 itself, in linear time: a pattern comes from a client. One that RE2 does not
take is an error here; containerd logs it and matches nothing.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import re2

from snapshotter.errors import InvalidError
from snapshotter.snapshots.model import REF_LABEL, Info

FILTER_MAX = 8192
"""Longest filter, in characters; a label takes 4096 bytes at most."""

FILTERS_MAX = 256
"""Most filters in one list."""

_REGEX_MEMORY = 1 << 20
"""Bytes that RE2 may use for one compiled pattern; it falls back to a slower way rather than exceed them."""


class Operator(enum.Enum):
    """What a selector asks of its field."""

    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition: the field that `path` leads to, against `value`."""

    path: tuple[str, ...]
    operator: Operator = Operator.PRESENT
    value: str = ""

    def compile(self) -> Callable[[Info], bool]:
        """The predicate.

        Raises:
            InvalidError: the value of ``~=`` is no regular expression.
        """
        path, value = self.path, self.value
        match self.operator:
            case Operator.PRESENT:
                return lambda info: field(info, path) is not None
            case Operator.EQUAL:
                return lambda info: field(info, path) == value
            case Operator.NOT_EQUAL:
                return lambda info: (field(info, path) or "") != value
            case Operator.MATCHES:
                search = _regex(value)
                return lambda info: search(field(info, path) or "")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What every match certainly has (None: nothing is certain), for a look-up by index before the predicate is asked."""

    name: str | None = None
    parent: str | None = None
    ref: str | None = None


class Filter:
    """A compiled list of filters.

    Raises:
        InvalidError: one of them breaks the grammar; the message says where.
    """

    def __init__(self, filters: Sequence[str]) -> None:
        if len(filters) > FILTERS_MAX:
            raise InvalidError(f"{len(filters)} filters, at most {FILTERS_MAX} are taken")
        self._any = [parse(text) for text in filters]
        self._compiled = [[selector.compile() for selector in selectors] for selectors in self._any]

    def matches(self, info: Info) -> bool:
        """Whether the snapshot is wanted."""
        return not self._compiled or any(all(predicate(info) for predicate in group) for group in self._compiled)

    @property
    def wanted(self) -> Wanted:
        """What an index can be asked for."""
        if len(self._any) != 1:
            return Wanted()
        # A value that is not UTF-8 equals nothing, and no index can be asked for it.
        equal = {s.path: s.value for s in self._any[0] if s.operator is Operator.EQUAL and _is_utf8(s.value)}
        # A reference is never empty where it is present, and an absent one is no match.
        return Wanted(equal.get(("name",)), equal.get(("parent",)), equal.get(("labels", REF_LABEL)))


def field(info: Info, path: Sequence[str]) -> str | None:
    """The value that `path` leads to in `info`; None if it leads nowhere (``adaptSnapshot`` in ``storage/bolt.go``)."""
    match path[0]:
        case "kind":
            return info.kind.name.lower()
        case "name":
            return info.name
        case "parent":
            return info.parent
        case "labels":
            return info.labels.get(".".join(path[1:]))
    return None


def parse(text: str) -> list[Selector]:
    """The selectors of one filter, all of which must match; none for the empty filter.

    Raises:
        InvalidError: `text` breaks the grammar, or is too long.
    """
    if len(text) > FILTER_MAX:
        raise InvalidError(f"filter of {len(text)} characters, at most {FILTER_MAX} are taken")
    return _Parser(text).selectors() if text else []


def _regex(pattern: str) -> Callable[[str], bool]:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _REGEX_MEMORY
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        raise InvalidError(f"filter: {pattern[:200]!r} is no regular expression that RE2 takes: {error}") from error

    def search(value: str) -> bool:
        return compiled.search(value) is not None

    return search


_ESCAPES = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92}
_HEX = {"x": 2, "u": 4, "U": 8}
_ILLEGAL = "\0\ufffd"  # the latter because Go's decoder answers it for an error, and the scanner asks no further


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _is_field(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_")


def _is_value(char: str) -> bool:
    # Letters, marks, numbers, punctuation, symbols; every separator of category Z is white space.
    return char not in _ILLEGAL and char != "," and unicodedata.category(char)[0] in "LMNPS"


def _is_space(char: str) -> bool:
    # Unicode's White_Space; str.isspace has the four separators of ASCII (1C to 1F) besides.
    return char.isspace() and char not in "\x1c\x1d\x1e\x1f"


class _Parser:
    """Reads one filter from left to right; `_at` is the position of the next character."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> list[Selector]:
        found = [self._selector()]
        while self._peek():
            if self._peek() != ",":
                raise self._error(self._at, "unexpected input")
            self._at += 1
            found.append(self._selector())
        return found

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._peek() == ".":
            self._at += 1
            path.append(self._field())
        if self._peek() in ("", ","):
            return Selector(tuple(path))
        operator = self._operator()
        return Selector(tuple(path), operator, self._value(any_quote=operator is Operator.MATCHES))

    def _field(self) -> str:
        self._skip_space()
        start, char = self._at, self._peek()
        if char == '"':
            return self._quoted()
        if not char or not _is_field(char):
            raise self._error(start, "expected a field, or a string in double quotes")
        return self._run(_is_field)

    def _operator(self) -> Operator:
        self._skip_space()
        start = self._at
        written = self._run(lambda char: char in "=!~")
        match written:
            case "==" | "!=" | "~=":
                return Operator(written)
            case "":
                raise self._error(start, "expected an operator, ==, != or ~=")
            case _:
                raise self._error(start, f"unsupported operator {written}")

    def _value(self, *, any_quote: bool) -> str:
        self._skip_space()
        start, char = self._at, self._peek()
        if char == '"' or (any_quote and char and char in "/|"):
            return self._quoted()
        if not char or char in _ILLEGAL or char in '/|,.=!~"':
            raise self._error(start, "expected a value, or a string in double quotes (or, after ~=, between / / or | |)")
        self._at += 1
        return char + self._run(_is_value)

    def _quoted(self) -> str:
        start, quote = self._at, self._text[self._at]
        self._at += 1
        # Bytes: \x and octal escapes denote bytes, which need not make UTF-8 (then they equal no label).
        value = bytearray()
        while (char := self._peek()) != quote:
            if char in ("", "\n", *_ILLEGAL):
                raise self._error(start, "string not terminated")
            self._at += 1
            value += self._escape(quote) if char == "\\" else char.encode(errors="surrogatepass")
        self._at += 1
        return value.decode(errors="surrogateescape")

    def _escape(self, quote: str) -> bytes:
        start, char = self._at, self._peek()
        self._at += 1
        if char == quote:
            return char.encode()
        if char in _ESCAPES:
            return bytes([_ESCAPES[char]])
        if char in _HEX:
            number = self._number(start, self._text[self._at : self._at + _HEX[char]], _HEX[char], 16)
            self._at += _HEX[char]
            return bytes([number]) if char == "x" else self._rune(start, number)
        if char and char in "01234567":
            number = self._number(start, self._text[start : start + 3], 3, 8)
            self._at = start + 3
            if number > 255:
                raise self._error(start, "octal escape above 255")
            return bytes([number])
        raise self._error(start, "illegal escape")

    def _number(self, start: int, digits: str, length: int, base: int) -> int:
        allowed = "0123456789abcdefABCDEF" if base == 16 else "01234567"
        if len(digits) != length or any(digit not in allowed for digit in digits):
            raise self._error(start, "illegal numeric escape")
        return int(digits, base)

    def _rune(self, start: int, number: int) -> bytes:
        if number > 0x10FFFF:
            raise self._error(start, "escape beyond Unicode")
        # Go writes half of a surrogate pair as the replacement character.
        return (chr(number) if not 0xD800 <= number <= 0xDFFF else "\ufffd").encode()

    def _run(self, belongs: Callable[[str], bool]) -> str:
        start = self._at
        while (char := self._peek()) and belongs(char):
            self._at += 1
        return self._text[start : self._at]

    def _skip_space(self) -> None:
        self._run(_is_space)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _error(self, at: int, why: str) -> InvalidError:
        return InvalidError(f"filter {self._text[:200]!r}, character {at + 1}: {why}")
