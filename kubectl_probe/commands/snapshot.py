"""`kubectl-probe snapshot show|diff`: what is in a snapshot, and what differs between two?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kubectl_probe.exits import ExitStatus
from kubectl_probe.options import OutputOption
from kubectl_probe.output import Format, say, say_bytes

if TYPE_CHECKING:
    from tasks.skoop.snapshot import Description, SnapshotDiff
    from tasks.skoop.snapshot.diff import Change

app = typer.Typer(
    help="Look into snapshots.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
SnapshotArgument = Annotated[Path, typer.Argument(metavar="PATH", help="A .kps file or a folder.")]


@app.command("show")
def show(path: SnapshotArgument, output: OutputOption = Format.TEXT) -> int:
    """Say what a snapshot holds, and what could not be collected.

    \b
    Example:
      kubectl-probe snapshot show cluster.kps
    """
    import msgspec

    from tasks.skoop.snapshot import describe

    description = describe(path)
    if output is Format.JSON:
        say_bytes(msgspec.json.encode(description))
    else:
        say(_description_text(path, description), end="")
    return ExitStatus.NOTHING_WRONG


@app.command("diff")
def diff(
    older: Annotated[Path, typer.Argument(metavar="OLDER", help="A .kps file or a folder.")],
    newer: Annotated[Path, typer.Argument(metavar="NEWER", help="A .kps file or a folder.")],
    output: OutputOption = Format.TEXT,
) -> int:
    """Say where two snapshots differ.

    The exit status is 1 if they do, as that of diff is.

    \b
    Example:
      kubectl-probe snapshot diff monday.kps today.kps
    """
    import msgspec

    from tasks.skoop.snapshot import diff as compare

    found = compare(older, newer)
    if output is Format.JSON:
        say_bytes(msgspec.json.encode(found))
    else:
        say(_diff_text(found), end="")
    return ExitStatus.NOTHING_WRONG if found.same else ExitStatus.PROBLEM_FOUND


def _description_text(path: Path, description: "Description") -> str:
    lines = [
        f"{path}: snapshot format {description.version}, written by {description.tool}",
        f"  digest    {description.digest}",
        f"  taken     {description.taken_at or 'at a time not recorded'}, from {description.source or 'a source not recorded'}",
        f"  size      {description.stored_bytes:,} bytes",
        "  objects   " + (_counts(description.objects) or "none"),
        "",
        f"{len(description.netns)} network namespaces",
    ]
    for netns in description.netns:
        lines.append(f"  {netns.id}")
        lines.append(f"    {_counts(netns.counts) or 'empty'}")
        lines += [f"    not collected: {gap.section}: {gap.reason}" for gap in netns.missing]
    lines += [f"not collected: {netns}: {why}" for netns, why in description.uncollected.items()]
    lines += [f"not collected: objects: {kind}: {why}" for kind, why in description.objects_missing.items()]
    return "".join(f"{line}\n" for line in lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name.replace('_', '-')}" for name, count in counts.items() if count)


def _diff_text(found: "SnapshotDiff") -> str:
    if found.same:
        return "the same\n"
    lines = [f"+ {netns}" for netns in found.added] + [f"- {netns}" for netns in found.removed]
    lines += [f"objects: {_change_text(change)}" for change in found.objects]
    for netns, changes in found.changed.items():
        lines.append(netns)
        lines += [f"  {_change_text(change)}" for change in changes]
    lines += [f"no longer collected: {netns}" for netns in found.uncollected_added]
    lines += [f"now collected: {netns}" for netns in found.uncollected_removed]
    return "".join(f"{line}\n" for line in lines)


def _change_text(change: "Change") -> str:
    return f"{change.what:<8} {change.section}" + (f" {change.part}" if change.part else "")
