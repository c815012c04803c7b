"""Which conditions hang on chance, on the moment, or on counters that a dump does not show.

`statistic` splits with its probability. A rate limit is taken to have tokens left, since one packet is asked about; that is
noted as assumed. What hangs on a list, a clock or a counter splits evenly, without more ado: both ways can happen
(docs/kernel.md). What looks into payload or at things that are not collected is unknown.
"""

from tasks.skoop.netstack.xtables.spelling import Options, number, only
from tasks.skoop.netstack.xtables.truth import Chance, Condition, NotUnderstood, opposite, unknown

WITHIN_LIMIT = "the rate limit is not used up"


def statistic(options: Options, _: int) -> Condition:
    """`-m statistic`: random with a probability; nth, of which the counter is not known, one in N."""
    given = {name: option for option in options for name in (option[0],)}
    mode = only(given["mode"]) if "mode" in given else ""
    name = {"random": "probability", "nth": "every"}.get(mode, "")
    if name not in given:
        raise NotUnderstood(f"--mode {mode}")
    text = only(given[name])
    try:
        probability = float(text) if mode == "random" else 1.0 / number(text)
    except (ValueError, ZeroDivisionError):
        raise NotUnderstood(f"--{name} {text}") from None
    if not 0.0 <= probability <= 1.0:
        raise NotUnderstood(f"--{name} {text}")
    if given[name][1]:
        probability = 1.0 - probability
    if probability in (0.0, 1.0):
        certain = probability == 1.0
        return lambda _: certain
    draw = Chance(probability)
    return lambda _: draw


def limit(_: Options, __: int) -> Condition:
    """`-m limit`: the first packets of a burst match."""
    answer = Chance(1.0, assumed=(WITHIN_LIMIT,))
    return lambda _: answer


def hashlimit(options: Options, _: int) -> Condition:
    """`-m hashlimit`: up to the limit the first packet matches, above it it does not."""
    given = {name: negate for name, negate, _ in options}
    name = next((name for name in ("hashlimit-upto", "hashlimit-above", "hashlimit") if name in given), "")
    if not name:
        raise NotUnderstood("a hashlimit without limit")
    upto = (name != "hashlimit-above") != given[name]
    answer = Chance(1.0 if upto else 0.0, assumed=(WITHIN_LIMIT,))
    return lambda _: answer


def asks_list(options: Options) -> bool:
    """Say whether the options of `recent` ask for an address in a list."""
    return any(name in ("rcheck", "update", "remove") for name, _, _ in options)


def recent(options: Options, lists: int) -> Condition:
    """`-m recent`: --set always matches; whether an address is on the list is not in a dump.

    A chain that asks `lists` lists from this one on (session affinity: one for each endpoint) is as likely to find the
    address in any of them as in none.
    """
    given = {name: negate for name, negate, _ in options}
    action = next((name for name in ("set", "rcheck", "update", "remove") if name in given), "")
    if not action:
        raise NotUnderstood("a recent without --set, --rcheck, --update or --remove")
    if action == "set":
        holds = not given["set"]
        return lambda _: holds
    details = " ".join(" ".join((name, *values)) for name, _, values in options if name != action)
    listed = Chance(1.0 / (lists + 1), key=f"recent {details}" if action == "rcheck" else "")
    answer = opposite(listed) if given[action] else listed
    return lambda _: answer


def either_way(options: Options, _: int) -> Condition:
    """Match of the moment (time, cpu, quota): can go either way."""
    negate = bool(options) and all(negate for _, negate, _ in options)
    answer = Chance(key=f"moment {_words(options)}", inverted=negate)
    return lambda _: answer


def moving_counter(_: Options, __: int) -> Condition:
    """Match on a counter that goes on (quota): can go either way, each time anew."""
    answer = Chance()
    return lambda _: answer


def not_simulated(name: str, options: Options, reason: str) -> Condition:
    """Match of which we cannot tell: what it looks at is not simulated. The same one has one answer per packet."""
    answer = unknown(reason, f"{name} {_words(options)}")
    return lambda _: answer


def _words(options: Options) -> str:
    return " ".join(" ".join(("!" if negate else "", name, *values)) for name, negate, values in options)
