"""`kubectl-probe lab …`: placeholder until written."""
import typer
app = typer.Typer(help="Real clusters in network namespaces.", no_args_is_help=True, rich_markup_mode=None)
@app.callback()
def _o() -> None: ...
