"""A DAG as a picture: text for Mermaid and for D2. Dashed boxes fan out; the label of an edge says how the value flows."""

from workflows.dag import Dag

_LABEL = {"result": "", "gather": "all", "each": "each", "when": "if", "after": "then"}


def mermaid(dag: Dag) -> str:
    """Return the DAG as a Mermaid flowchart, steps in order; equal DAGs give equal text."""
    lines = [f"%% {dag.name}: {dag.summary}".rstrip(": "), "flowchart TD"]
    for name in dag.order:
        lines.append(f'  {_ident(name)}["{_caption(dag, name, "<br/>")}"]')
        if dag.scopes[name]:
            lines.append(f"  style {_ident(name)} stroke-dasharray: 4 3")
    for source, target, kinds in _edges(dag):
        label = f'|"{kinds}"|' if kinds else ""
        lines.append(f"  {_ident(source)} -->{label} {_ident(target)}")
    return "\n".join(lines) + "\n"


def d2(dag: Dag) -> str:
    """Return the DAG as D2 text, steps in order; equal DAGs give equal text."""
    lines = [f"# {dag.name}: {dag.summary}".rstrip(": "), "direction: down"]
    for name in dag.order:
        dashed = " {style.multiple: true; style.stroke-dash: 3}" if dag.scopes[name] else ""
        lines.append(f'{name}: "{_caption(dag, name, chr(92) + "n")}"{dashed}')
    for source, target, kinds in _edges(dag):
        lines.append(f"{source} -> {target}" + (f": {kinds}" if kinds else ""))
    return "\n".join(lines) + "\n"


def _ident(name: str) -> str:
    """Mermaid has keywords such as `end`; a prefix keeps names apart from them."""
    return "s_" + name.replace("-", "_")


def _caption(dag: Dag, name: str, newline: str) -> str:
    scope = dag.scopes[name]
    per = f" (per {' and '.join(scope)})" if scope and scope != (name,) else " (fan-out)" if scope else ""
    return f"{name}{per}{newline}{dag.steps[name].spec.summary}".replace('"', "'")


def _edges(dag: Dag) -> list[tuple[str, str, str]]:
    """Return one edge for each two steps, labelled with all that flows over it."""
    edges: dict[tuple[str, str], list[str]] = {}
    for source, target, kind in dag.edges():
        edges.setdefault((source, target), []).append(_LABEL[kind])
    return [(source, target, ", ".join(filter(None, kinds))) for (source, target), kinds in edges.items()]
