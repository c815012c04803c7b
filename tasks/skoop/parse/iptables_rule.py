"""What one rule of an iptables-save dump means: its text after `-A CHAIN `, as typed matches and a target.

Follows the command line of iptables(8) as far as `iptables-save` prints it, older spellings included (`-d ! X`, dotted
masks, numbers instead of names). Two readers give the same answer: `read_spec` goes token by token and is the reference;
`RuleReader` cuts the text into fragments that repeat over and over in the dumps of kube-proxy, remembers what each means,
and falls back to the reference for everything it does not recognise at a glance.

How the parts are normalised:
- `-s -d -i -o -p -f` become matches named src, dst, in, out, proto, frag, each with one option of the same name.
- Addresses are canonical (`10.0.0.1/32`, `fd00::/64`); a mask with holes stays as written (`10.0.0.1/255.0.255.0`).
- Protocols are in lower case and otherwise as printed: a name or a number.
- An option of an extension loses its dashes; its values are the tokens up to the next option, quotes removed. How many
  values an option takes is not looked up (unknown extensions are read the same way), but for those in `ONE_VALUE`, whose
  value may begin with a dash, and `NEEDS_VALUE`, which a damaged dump may lack.
- `--dport` and the like after another extension belong to the protocol's own match, as iptables loads it by itself.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from tasks.skoop.model.addr import AddressError, parse_net
from tasks.skoop.model.xtables import Match, Rule, Target

Option = tuple[str, bool, tuple[str, ...]]
"""An option of a match or target: its name without dashes, whether it is negated, its values."""

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"(?=[ \t]|$)|[^ \t]+')
ESCAPE = re.compile(r"\\(.)")
OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
HOST4 = re.compile(rf"{OCTET}\.{OCTET}\.{OCTET}\.{OCTET}/32")

BASIC = {
    "-s": "src",
    "--source": "src",
    "--src": "src",
    "-d": "dst",
    "--destination": "dst",
    "--dst": "dst",
    "-i": "in",
    "--in-interface": "in",
    "-o": "out",
    "--out-interface": "out",
    "-p": "proto",
    "--protocol": "proto",
    "--proto": "proto",
    "-f": "frag",
    "--fragment": "frag",
}
"""Conditions that need no `-m`, by how they are written."""

NO_MODULE = frozenset(("src", "in", "out", "proto"))
"""Our names of conditions that no extension shares."""

MODULE = frozenset(("-m", "--match"))
JUMP = frozenset(("-j", "--jump"))
GOTO = frozenset(("-g", "--goto"))

ONE_VALUE = frozenset(("comment", "log-prefix", "nflog-prefix", "ulog-prefix", "string", "hex-string"))
"""Options with exactly one value of free text, which may begin with a dash."""

NEEDS_VALUE = frozenset(
    (
        *("to-destination", "to-source", "to-ports", "dport", "sport", "dports", "sports", "ports", "ctstate", "state"),
        *("mark", "set-mark", "set-xmark", "match-set", "mode", "probability", "every", "dst-type", "src-type"),
        *("reject-with", "tcp-flags", "uid-owner", "gid-owner", "icmp-type", "icmpv6-type", "limit", "mac-source"),
        *("set-mss", "on-port", "on-ip", "tproxy-mark", "src-range", "dst-range", "zone", "pkt-type"),
        *("physdev-in", "physdev-out"),
    )
)
"""Options that mean nothing without a value: a dump that lacks it was garbled on its way."""

IMPLICIT = frozenset(
    (
        *("dport", "destination-port", "sport", "source-port", "tcp-flags", "syn", "tcp-option"),
        *("icmp-type", "icmpv6-type", "chunk-types", "espspi", "ahspi"),
    )
)
"""Options of the matches that `-p` loads by itself."""

OWN_MATCH = frozenset(("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "esp", "ah", "multiport"))
"""Matches that may carry options named as in IMPLICIT."""

IMPLICIT_NAME = {
    "ipv6-icmp": "icmp6",
    "icmpv6": "icmp6",
    "6": "tcp",
    "17": "udp",
    "1": "icmp",
    "58": "icmp6",
    "132": "sctp",
}
"""Protocol as printed → the name of its match, where they differ."""


class SpecError(Exception):
    """A rule that cannot be read: what is wrong, and at which character of its text (from 0)."""

    def __init__(self, offset: int, problem: str) -> None:
        self.offset = offset
        self.problem = problem
        super().__init__(problem)


def read_spec(spec: str) -> tuple[tuple[Match, ...], Target]:
    """Return the matches, in order, and the target of a rule's text after `-A CHAIN `. Raises SpecError."""
    return _SpecReader(spec).read()


class RuleReader:
    """Reads rules as `read_spec` does, fast for many: remembers what the fragments that it has seen mean."""

    def __init__(self) -> None:
        self._basic: dict[tuple[str, bool, str], Match] = {}
        self._modules: dict[str, tuple[Match, ...] | None] = {}
        self._targets: dict[str, Target] = {}

    def rule(self, spec: str) -> Rule:
        """Return the rule of this text. Raises SpecError."""
        head, comment, tail = spec, None, ""
        if "\t" in spec:
            return Rule(spec, *read_spec(spec))
        if '"' in spec:
            head, quoted, tail = _around_comment(spec)
            if quoted is None:
                return Rule(spec, *read_spec(spec))
            comment = Match("comment", (("comment", False, (quoted,)),))
            body, target_at = tail, tail.find(" -j ")
        else:
            body, target_at = head, head.find(" -j ")
        if target_at >= 0:
            target_text = body[target_at + 4 :]
            body = body[:target_at]
        elif body.startswith("-j "):
            target_text, body = body[3:], ""
        else:
            target_text = ""
        target = self._target(target_text)
        matches = self._matches(head if comment else body)
        if matches is None or target is None:
            return Rule(spec, *read_spec(spec))
        if comment is not None:
            matches.append(comment)
            if body:
                after = self._matches(body[1:])
                if after is None:
                    return Rule(spec, *read_spec(spec))
                matches += after
        return Rule(spec, tuple(matches), target)

    def _matches(self, text: str) -> list[Match] | None:
        """Return the matches of a stretch without quotes or target; None if it needs the reference reader."""
        found: list[Match] = []
        if not text:
            return found
        first, *modules = (" " + text).split(" -m ")
        if first and not self._basics(first, found):
            return None
        for module in modules:
            if module not in self._modules:
                self._modules[module] = _module(module)
            known = self._modules[module]
            if known is None:
                return None
            found += known
        return found

    def _basics(self, text: str, found: list[Match]) -> bool:
        """Add the basic conditions of a stretch to `found`; False if it needs the reference reader."""
        known = self._basic
        words = iter(text.strip(" ").split(" "))
        for word in words:
            negated = word == "!"
            option = next(words, "") if negated else word
            value = next(words, "")
            if option in _ADDRESSES and HOST4.fullmatch(value):
                name = _ADDRESSES[option]
                found.append(Match(name, ((name, negated, (value,)),)))
                continue
            match = known.get((option, negated, value))
            if match is None:
                match = _basic(f"! {option} {value}" if negated else f"{option} {value}")
                if match is None:
                    return False
                known[option, negated, value] = match
            found.append(match)
        return True

    def _target(self, text: str) -> Target | None:
        target = self._targets.get(text)
        if target is None:
            words = text.split(" ")
            if len(words) == 1 and text[:1] not in ("-", "!"):
                target = Target(text)
            elif len(words) == 3 and words[1].startswith("--") and words[2] and words[2][0] not in '-!"':
                return Target(words[0], False, ((words[1][2:], False, (words[2],)),))
            else:
                return None
            self._targets[text] = target
        return target


def _around_comment(spec: str) -> tuple[str, str | None, str]:
    """Cut a rule at its one quoted comment: (text before it, comment, text after it), or (spec, None, "") if it is not so."""
    parts = spec.split('"')
    if (
        len(parts) == 3
        and "\\" not in parts[1]
        and (not parts[2] or parts[2][0] == " ")
        and (parts[0] == _COMMENT[1:] or parts[0].endswith(_COMMENT))
    ):
        return parts[0][: -len(_COMMENT)], parts[1], parts[2]
    return spec, None, ""


_COMMENT = " -m comment --comment "


def _basic(piece: str) -> Match | None:
    """Return the one basic condition that this is, None if it needs the reference reader."""
    try:
        matches, target = read_spec(piece)
    except SpecError:
        return None
    return matches[0] if len(matches) == 1 and target == Target() else None


def _module(text: str) -> tuple[Match, ...] | None:
    """Return the match of one `-m` fragment, None if what it means hangs on the rest of the rule or is not one match."""
    try:
        matches, target = read_spec("-m " + text)
    except SpecError:
        return None
    return matches if len(matches) == 1 and target == Target() else None


def _address(text: str) -> str:
    """Return the canonical form of the address of -s or -d. Raises SpecError (without place)."""
    if HOST4.fullmatch(text):
        return text
    address, slash, mask = text.partition("/")
    try:
        if slash and not mask.isdecimal():
            kind, width = (IPv6Address, 128) if ":" in mask else (IPv4Address, 32)
            bits = int(kind(mask))
            inverse = bits ^ ((1 << width) - 1)
            if inverse & (inverse + 1):
                return f"{kind(address)}/{kind(mask)}"
            return parse_net(f"{address}/{bits.bit_count()}")
        if slash and ":" in mask:  # ip6tables writes a length wherever the mask is one
            return f"{IPv6Address(address)}/{IPv6Address(mask)}"
        return parse_net(text)
    except (AddressError, AddressValueError):
        raise SpecError(0, f"{text!r} is not an address") from None


class _SpecReader:
    """One reading of one rule, token by token."""

    def __init__(self, spec: str) -> None:
        self.tokens = [(found.group(), found.start()) for found in TOKEN.finditer(spec)]
        self.length = len(spec)
        self.at = 0
        self.matches: list[tuple[str, list[Option]]] = []
        self.target = Target()
        self.target_options: list[Option] = []
        self.in_target = False
        self.by_module = False
        """Whether the last match is an extension's: `-m frag` and `-m dst` share their names with `-f` and `-d`."""
        self.proto = ""

    def read(self) -> tuple[tuple[Match, ...], Target]:
        while self.at < len(self.tokens):
            self._next()
        target = Target(self.target.name, self.target.goto, tuple(self.target_options))
        return tuple(Match(name, tuple(options)) for name, options in self.matches), target

    def _next(self) -> None:
        token, offset = self.tokens[self.at]
        self.at += 1
        negated = token == "!"
        if negated:
            if self.at == len(self.tokens):
                raise SpecError(offset, "nothing follows the '!'")
            token, offset = self.tokens[self.at]
            self.at += 1
        if token in BASIC and not (token == "--proto" and self.by_module and self.matches[-1][0] == "policy"):
            self._basic_condition(BASIC[token], negated, offset)
        elif negated and not token.startswith("--"):
            raise SpecError(offset, f"{token!r} cannot be negated")
        elif token in MODULE:
            name = self._word(offset, "the name of a match")
            if name in NO_MODULE:
                raise SpecError(offset, f"{name!r} is no match")
            self.matches.append((name, []))
            self.in_target, self.by_module = False, True
        elif token in JUMP or token in GOTO:
            if self.target.name:
                raise SpecError(offset, "a second target")
            self.target = Target(self._word(offset, "a target"), token in GOTO)
            self.in_target = True
        elif token.startswith("--") and len(token) > 2:
            self._option(token[2:], negated, offset)
        elif token.startswith("-"):
            raise SpecError(offset, f"unknown option {token!r}")
        else:
            raise SpecError(offset, f"{token!r} is neither an option nor the value of one")

    def _basic_condition(self, name: str, negated: bool, offset: int) -> None:
        self.by_module = False
        if name == "frag":
            self.matches.append((name, [(name, negated, ())]))
            return
        value = self._word(offset, "a value")
        if value == "!":
            negated, value = not negated, self._word(offset, "a value")
        if name in ("src", "dst"):
            try:
                value = _address(value)
            except SpecError as error:
                raise SpecError(self.tokens[self.at - 1][1], error.problem) from None
        elif name == "proto":
            value = self.proto = value.lower()
        self.matches.append((name, [(name, negated, (value,))]))

    def _option(self, name: str, negated: bool, offset: int) -> None:
        if name in ONE_VALUE:
            values: tuple[str, ...] = (self._value(offset),)
        else:
            negated, values = self._values(negated)
            if not values and name in NEEDS_VALUE:
                raise SpecError(offset, f"--{name} has no value")
        option = (name, negated, values)
        if self.in_target:
            self.target_options.append(option)
            return
        if name in IMPLICIT and (not self.matches or self.matches[-1][0] not in OWN_MATCH):
            own = IMPLICIT_NAME.get(self.proto, self.proto)
            if not own:
                raise SpecError(offset, f"--{name} without -p")
            earlier = next((options for match, options in self.matches if match == own), None)
            if earlier is None:
                earlier = []
                self.matches.append((own, earlier))
                self.by_module = True
            earlier.append(option)
        elif self.matches and self.by_module:
            self.matches[-1][1].append(option)
        else:
            raise SpecError(offset, f"--{name} belongs to no match or target")

    def _word(self, offset: int, what: str) -> str:
        """Return the next token as the one value that must follow."""
        if self.at == len(self.tokens):
            raise SpecError(offset, f"{what} is missing")
        return self._value(offset)

    def _value(self, offset: int) -> str:
        if self.at == len(self.tokens):
            raise SpecError(offset, "a value is missing")
        token, place = self.tokens[self.at]
        self.at += 1
        return _unquoted(token, place)

    def _values(self, negated: bool) -> tuple[bool, tuple[str, ...]]:
        """Return the tokens up to the next option; a `!` among them that stands before a value negates, as it once did."""
        values: list[str] = []
        while self.at < len(self.tokens):
            token, place = self.tokens[self.at]
            following = self.tokens[self.at + 1][0] if self.at + 1 < len(self.tokens) else ""
            if token == "!" and not values and following and not _is_option(following):
                negated = not negated
            elif token == "!" or _is_option(token):
                break
            else:
                values.append(_unquoted(token, place))
            self.at += 1
        return negated, tuple(values)


_ADDRESSES = {"-s": "src", "-d": "dst"}


def _is_option(token: str) -> bool:
    """Say whether a token starts an option: a dash and a letter, or two dashes; not a negative number, not quoted."""
    return len(token) > 1 and token[0] == "-" and (token[1] == "-" or token[1].isalpha())


def _unquoted(token: str, offset: int) -> str:
    if '"' not in token:
        return token
    if len(token) > 1 and token[0] == '"' and token[-1] == '"' and TOKEN.fullmatch(token):
        return ESCAPE.sub(r"\1", token[1:-1])
    raise SpecError(offset, "a quotation mark is not closed, or stands inside a word")
