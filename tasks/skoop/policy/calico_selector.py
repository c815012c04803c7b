"""What does a selector in Calico's own language select?

Follows the grammar of the Calico documentation (Selectors): `all()`, `global()`, `has(k)`, `k == 'v'`, `k != 'v'`, `k in {…}`,
`k not in {…}`, `contains`, `starts with`, `ends with`, with `!`, `&&`, `||` and parentheses; `!=` and `not in` hold where the label
is absent. An empty text selects everything, as does `all()`.
"""

import re
from collections.abc import Callable

from msgspec import Struct

from tasks.skoop.policy.certainty import Answer, Unsure, all_of, any_of, negation
from tasks.skoop.policy.clauses import BadClause
from tasks.skoop.policy.selectors import Labels

Test = Callable[[Labels], Answer]
_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"[^"]*"|'[^']*')|(?P<op>&&|\|\||==|!=|[!(){},])
        |(?P<word>starts\s+with\b|ends\s+with\b|not\s+in\b|[A-Za-z0-9_./\-]+))""",
    re.VERBOSE,
)
_TEXT_TESTS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda value, part: part in value,
    "starts with": lambda value, part: value.startswith(part),
    "ends with": lambda value, part: value.endswith(part),
}


class CalicoSelector(Struct, frozen=True):
    """A selector: its text and the test that it means. `is_global` = it is `global()`: what is in no namespace."""

    text: str
    test: Test
    is_global: bool = False

    def selects(self, labels: Labels) -> Answer:
        """Say whether it selects an object with these labels."""
        return self.test(labels)


def read_selector(text: str) -> CalicoSelector:
    """Return the selector that a text means. Raises BadClause."""
    if not text.strip():
        return CalicoSelector(text, lambda _: True)
    if re.fullmatch(r"\s*global\(\s*\)\s*", text):
        return CalicoSelector(text, lambda _: False, is_global=True)
    return CalicoSelector(text, _Parser(text).whole())


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        at, end = 0, len(text.rstrip())
        while at < end:
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._bad(f"at {text[at:]!r}")
            kind = found.lastgroup or ""
            token = found[kind]
            self.tokens.append((kind, token[1:-1] if kind == "text" else " ".join(token.split())))
            at = found.end()
        self.at = 0

    def whole(self) -> Test:
        test = self._either()
        if self.at != len(self.tokens):
            raise self._bad(f"unexpected {self.tokens[self.at][1]!r}")
        return test

    def _bad(self, problem: str) -> BadClause:
        return BadClause(f"selector {self.text!r}: {problem}")

    def _next(self, kind: str = "", *wanted: str) -> str:
        if self.at >= len(self.tokens):
            raise self._bad("it ends too early")
        found, token = self.tokens[self.at]
        if (kind and found != kind) or (wanted and token not in wanted):
            raise self._bad(f"unexpected {token!r}")
        self.at += 1
        return token

    def _accept(self, kind: str, token: str) -> bool:
        if self.at < len(self.tokens) and self.tokens[self.at] == (kind, token):
            self.at += 1
            return True
        return False

    def _either(self) -> Test:
        tests = [self._both()]
        while self._accept("op", "||"):
            tests.append(self._both())
        return tests[0] if len(tests) == 1 else lambda labels: any_of(test(labels) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._accept("op", "&&"):
            tests.append(self._one())
        return tests[0] if len(tests) == 1 else lambda labels: all_of(test(labels) for test in tests)

    def _one(self) -> Test:
        if self._accept("op", "!"):
            inner = self._one()
            return lambda labels: negation(inner(labels))
        if self._accept("op", "("):
            inner = self._either()
            self._next("op", ")")
            return inner
        word = self._next("word")
        if self._accept("op", "("):
            return self._call(word)
        return self._comparison(word)

    def _call(self, name: str) -> Test:
        if name == "has":
            key = self._next("word")
            self._next("op", ")")
            return lambda labels: labels.has(key)
        self._next("op", ")")
        if name == "all":
            return lambda _: True
        if name == "global":
            return lambda _: Unsure("global() inside of a longer selector")
        raise self._bad(f"{name}() is not known")

    def _comparison(self, key: str) -> Test:
        operator = self._next()
        if operator in ("==", "!="):
            values: tuple[str, ...] = (self._next("text"),)
        elif operator in ("in", "not in"):
            values = self._set()
        elif operator in _TEXT_TESTS:
            return self._text_test(key, _TEXT_TESTS[operator], self._next("text"))
        else:
            raise self._bad(f"{operator!r} is no comparison")
        if operator in ("==", "in"):
            return lambda labels: labels.holds(key, values)
        return lambda labels: negation(labels.holds(key, values))

    @staticmethod
    def _text_test(key: str, test: Callable[[str, str], bool], part: str) -> Test:
        def holds(labels: Labels) -> Answer:
            value = labels.values.get(key)
            return labels.has(key) if value is None else test(value, part)

        return holds

    def _set(self) -> tuple[str, ...]:
        self._next("op", "{")
        values: list[str] = []
        while not self._accept("op", "}"):
            values.append(self._next("text"))
            if not self._accept("op", ","):
                self._next("op", "}")
                break
        return tuple(values)
