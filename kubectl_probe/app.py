"""Which commands are there? The whole table on one screen.

Each command's module is imported to build the table, but holds only its options: what does the work is imported when it runs.
"""

from typing import Annotated

import typer

from kubectl_probe.commands import collect, demo, diagnose, lab, snapshot, submit, version

HELP = """Say why traffic in a Kubernetes cluster does not arrive, and what mends it.

\b
Begin with:
  kubectl-probe demo
  kubectl-probe diagnose --dumps DIR --from shop/client --to svc/shop/web:80

\b
Exit status:
  0  nothing is wrong          2  the command was wrong
  1  a problem was found       3  it could not be done
"""

app = typer.Typer(
    name="kubectl-probe",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    # Read by main, which also has to know it where parsing fails.
    del debug


app.command("diagnose", short_help="Say whether traffic arrives, and if not, why.")(diagnose.diagnose)
app.command("demo", short_help="Show it on a network that is really broken.")(demo.demo)
app.command("collect", short_help="Keep the state of a network in a file.")(collect.collect)
app.add_typer(snapshot.app, name="snapshot", short_help="Show and compare such files.")
app.add_typer(submit.app, name="submit", short_help="Diagnose as a run that can be watched.")
app.add_typer(lab.app, name="lab", short_help="Real clusters in network namespaces, to break and mend.")
app.command("version", short_help="Print the version.")(version.version)
