"""Rulesets that others published: each is read, or refused with its place; runs where KUBEPROBE_CORPUS names a folder of them.

The folder holds iptables-save/*.txt. Such collections are of mixed licences, so none is carried here.
"""

import os
from pathlib import Path

import pytest

from tasks.skoop.model.xtables import Backend, Rule
from tasks.skoop.parse.errors import ParseError
from tasks.skoop.parse.iptables import parse_iptables_save
from tasks.skoop.parse.iptables_render import render_rule
from tasks.skoop.parse.iptables_rule import read_spec

FOLDER = os.environ.get("KUBEPROBE_CORPUS")
FILES = sorted(Path(FOLDER, "iptables-save").glob("*.txt")) if FOLDER else []


@pytest.mark.skipif(not FILES, reason="KUBEPROBE_CORPUS names no folder with iptables-save/*.txt")
def test_published_rulesets_are_read_or_refused_with_a_place() -> None:
    read = 0
    for path in FILES:
        try:
            tables = parse_iptables_save(path.read_text(), backend=Backend.LEGACY, family=4, source=path.name)
        except ParseError as error:
            assert error.line >= 1 and error.column >= 1, error
            continue
        read += 1
        for rule in (rule for table in tables for chain in table.chains for rule in chain.rules):
            assert Rule(rule.raw, *read_spec(rule.raw)) == rule
            assert read_spec(render_rule(rule)) == (rule.matches, rule.target)
    assert read >= len(FILES) * 0.7  # the others are input of iptables-restore: tests/kernel/rulesets loads them first
