"""The `upalm` command."""

import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

import tyro

from upalm.cli.cite import Cite
from upalm.cli.run import Again, Recipes, Run
from upalm.training import recipes


@dataclass(frozen=True)
class Data:
    """Tokenise text, and look at what the loader makes of it: `upalm data build | show | check --help`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """The subcommand, and what goes to it."""

    def __call__(self) -> None:
        from upalm.cli import data as cli_data  # imports Grain

        cli_data.main(list(self.words))


@dataclass(frozen=True)
class _Infer:
    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    def __call__(self) -> None:
        from upalm.cli import infer as cli_infer  # imports JAX

        cli_infer.main([type(self).__name__.lower(), *self.words])


class Infill(_Infer):
    """Fill the gaps <extra_id_0>, <extra_id_1>, ... of a text: `upalm infill --help`."""


class Sample(_Infer):
    """Continue a prompt: `upalm sample --help`."""


@dataclass(frozen=True)
class Eval:
    """Measure a checkpoint on held-out text, or on the paper's suites: `upalm eval --help`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    def __call__(self) -> None:
        from upalm.cli import evaluate as cli_eval  # imports JAX

        cli_eval.main(list(self.words))


@dataclass(frozen=True)
class Scaling:
    """How much compute UL2R saves, from results of `upalm eval`: `upalm scaling RESULTS...`, or `--paper`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    def __call__(self) -> None:
        from upalm.cli import scaling as cli_scaling

        cli_scaling.main(list(self.words))


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on chips that one may not have: `upalm plan ul2r_540b 540b --topology v4:8x8x8`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    def __call__(self) -> None:
        from upalm.cli import plan as cli_plan

        cli_plan.main(list(self.words))


@dataclass(frozen=True)
class _Interop:
    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    name: ClassVar = ""

    def __call__(self) -> None:
        from upalm.cli import interop as cli_interop  # imports JAX

        cli_interop.main([self.name, *self.words])


class ImportHf(_Interop):
    """Open a Cohere-architecture checkpoint of Hugging Face: `upalm import-hf SOURCE DEST`."""

    name = "import-hf"


class ImportPalm(_Interop):
    """Open a .pt file of PaLM-rlhf-pytorch: `upalm import-palm SOURCE DEST --tokenizer FOLDER`."""

    name = "import-palm"


class ExportHf(_Interop):
    """Write a checkpoint for transformers: `upalm export-hf CHECKPOINT DEST`."""

    name = "export-hf"


Command = (
    Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Recipes, tyro.conf.subcommand("recipes")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Infill, tyro.conf.subcommand("infill")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Scaling, tyro.conf.subcommand("scaling")]
    | Annotated[ImportHf, tyro.conf.subcommand("import-hf")]
    | Annotated[ImportPalm, tyro.conf.subcommand("import-palm")]
    | Annotated[ExportHf, tyro.conf.subcommand("export-hf")]
    | Annotated[Cite, tyro.conf.subcommand("cite")]
)


_PASSED_ON = {  # what follows belongs to another parser
    **{"infill": Infill, "sample": Sample, "data": Data, "eval": Eval, "plan": Plan, "scaling": Scaling},
    **{"import-hf": ImportHf, "import-palm": ImportPalm, "export-hf": ExportHf},
}


def main() -> None:
    """Errors that a user can cause are one line; Ctrl-C says how to go on."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["run"] and any(a.startswith("--from") for a in arguments[1:2]):
            tyro.cli(Again, prog="upalm run", args=arguments[1:])()
        elif arguments[:1] == ["run"] and arguments[1:2] and not arguments[1].startswith("-"):
            recipes.run(arguments[1], arguments[2:])  # what follows belongs to the recipe
        elif arguments and arguments[0] in _PASSED_ON:
            _PASSED_ON[arguments[0]](tuple(arguments[1:]))()
        else:
            tyro.cli(Command, prog="upalm", args=arguments)()
    except KeyboardInterrupt as e:
        sys.exit(f"interrupted: {e}" if str(e) else "interrupted.")
    except (ValueError, FloatingPointError, OSError) as e:
        if type(e) not in (ValueError, FloatingPointError, OSError):
            raise  # a subclass is a bug of ours or of a library, and wants its traceback
        sys.exit(f"error: {e}")
