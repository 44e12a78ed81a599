"""One name per thing, in every command."""

import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from typing import get_args, get_type_hints

import pytest
import tyro

from upalm.cli.main import COMMANDS

FORMER = {"source", "folder", "dest", "init", "base", "checkpoint_folder", "input", "output", "dir"}


@pytest.mark.parametrize("name", COMMANDS)
def test_checkpoints_data_and_outputs_have_one_name(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    names = {field.name for field in fields(getattr(import_module(module), attribute))}
    imported = {"source"} if name.startswith("import-") else set()  # neither a checkpoint of upalm nor text
    assert names & FORMER == imported


@pytest.mark.parametrize("name", ["infill", "sample", "eval", "export-hf"])
def test_c_is_short_for_checkpoint_everywhere(upalm, capsys, name):
    with pytest.raises(SystemExit):
        upalm(name, "--help")
    assert "-c FOLDER, --checkpoint FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        (("infill", "--mode", "x"), "'auto', 'none', 's2s', 'nlu', 'nlg'"),
        (("eval", "--attention", "x"), "'prefix', 'causal'"),
        (("import-hf", "y", "--norm", "x"), "'keep', 'rms'"),
        (("export-hf", "--dtype", "x"), "'keep', 'float32', 'bfloat16', 'float16'"),
    ],
)
def test_choices_are_checked_before_anything_loads(upalm, capsys, words, choices):
    with pytest.raises(SystemExit) as e:
        upalm(*words)
    said = capsys.readouterr().err
    assert e.value.code == 2 and f"invalid choice 'x' for argument '{words[-2]}'. Expected one of ({choices})" in said


@pytest.mark.parametrize("name", COMMANDS)
def test_positional_words_have_names(name):
    module, _, attribute = COMMANDS[name][0].partition(":")
    for option, kind in get_type_hints(getattr(import_module(module), attribute), include_extras=True).items():
        marks = getattr(kind, "__metadata__", ())
        if tyro.conf.Positional in marks:
            assert [mark for mark in marks if getattr(mark, "metavar", None)], option


def test_choices_are_those_of_the_functions():
    from upalm.cli import evaluate, options
    from upalm.evals.infilling import suite
    from upalm.inference import config

    assert (get_args(options.Mode), options.Attention) == (("auto", *get_args(config.Mode)), config.Attention)
    assert suite.NAME == evaluate.INFILLING


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_read_without_jax(name):
    module = COMMANDS[name][0].partition(":")[0]
    code = f"import sys, {module}; sys.exit(str({{'jax', 'grain', 'matplotlib', 'orbax'}} & set(sys.modules) or ''))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr.strip() == ""
