"""How is a question put to the engine, and its answer brought to paper?

What `diagnose` and `submit diagnose` share: options become pairs, answers become text or JSON and an exit status.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kubectl_probe.errors import OptionsClash
from kubectl_probe.exits import ExitStatus
from kubectl_probe.options import Family
from kubectl_probe.output import Format, note, say, say_bytes, text_style
from kubectl_probe.pairs import read_pairs

if TYPE_CHECKING:
    from tasks.skoop.model.diagnosis import Diagnosis
    from tasks.skoop.report.depth import Depth
    from tasks.skoop.specs import Pair
    from workflows.submit import Answer, DiagnoseResult


def pairs_from(file: Path | None, src: str, dst: str, family: Family | None, **rest: Any) -> "tuple[Pair, ...]":  # noqa: ANN401 -- Pair's own fields
    """Return the questions that the options ask. Raises OptionsClash, PairsUnreadable."""
    if file is not None:
        if src or dst:
            raise OptionsClash("--pairs asks its own questions", "leave --from and --to out")
        pairs, unknown = read_pairs(file)
        if unknown:
            note(f"{file}: these members were left aside: {', '.join(sorted(unknown))}")
        return pairs
    for value, option in ((src, "--from"), (dst, "--to")):
        if not value:
            raise OptionsClash(
                f"{option} is missing", "say who connects to whom: --from NAME --to NAME, or --pairs FILE"
            )
    from pydantic import ValidationError

    from tasks.skoop.specs import Pair

    try:
        return (Pair(src=src, dst=dst, family=_family(family), **rest),)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise OptionsClash(f"{first['loc'][0]}: {first['msg']}", "correct it") from error


def _family(family: Family | None) -> Literal[0, 4, 6]:
    match family:
        case None:
            return 0
        case Family.IPV4:
            return 4
        case Family.IPV6:
            return 6


def print_result(result: "DiagnoseResult", output: Format, depth: "Depth") -> ExitStatus:
    """Print the answers to single questions and return the exit status."""
    from msgspec.structs import replace

    diagnoses = [
        replace(answer.diagnosis, cluster_suspicions=answer.diagnosis.cluster_suspicions or result.cluster_suspicions)
        for answer in result.answers
    ]
    if output is Format.JSON:
        from tasks.skoop.report.document import render as render_json

        for diagnosis in diagnoses:
            say_bytes(render_json(diagnosis))
    else:
        from tasks.skoop.report.text import render as render_text

        say("\n".join(render_text(diagnosis, text_style(depth)) for diagnosis in diagnoses), end="")
    return status_of(diagnoses)


def print_pairs(answers: "Sequence[Answer]", output: Format) -> ExitStatus:
    """Print one line for each answer of many and return the exit status."""
    from tasks.skoop.report.pair_line import line_json, line_text

    for answer in answers:
        if output is Format.JSON:
            say_bytes(line_json(answer.pair.model_dump(), answer.diagnosis))
        else:
            say(line_text(answer.diagnosis))
    return status_of(answer.diagnosis for answer in answers)


def status_of(diagnoses: "Iterable[Diagnosis]") -> ExitStatus:
    """Return 1 if any of them found a problem, else 3 if any could not be made, else 0."""
    from tasks.skoop.report.verdict import Judgement, judge

    found = {judge(diagnosis) for diagnosis in diagnoses}
    if found & {Judgement.FAILS, Judgement.PARTLY, Judgement.STALLS}:
        return ExitStatus.PROBLEM_FOUND
    return ExitStatus.NOT_DONE if Judgement.UNKNOWN in found else ExitStatus.NOTHING_WRONG
