"""The README's examples run, its links lead somewhere, and its commands exist."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from ope.cli.arguments import parser

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def test_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    result = doctest.testfile(str(README), module_relative=False, optionflags=options)
    assert result.attempted > 10
    assert result.failed == 0


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_named_files_exist() -> None:
    named = re.findall(r"`((?:examples|benchmarks|docs)/[^`]*)`", README.read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^make (\w+)", README.read_text(), flags=re.MULTILINE))
    rules = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= targets <= rules


def test_evaluate_command_parses() -> None:
    command = re.search(r"python -m ope (evaluate .*?)\n```", README.read_text(), flags=re.DOTALL)
    assert command is not None
    arguments = parser().parse_args(shlex.split(command[1].replace("\\\n", " ")))
    assert arguments.candidate == ["cloned=policy.safetensors", "protocol=p_no,p_yes"]
