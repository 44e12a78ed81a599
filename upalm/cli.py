"""The `upalm` command."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from upalm import __version__, recipe

BIBTEX = {
    "upalm": """@software{upalm,
  title  = {upalm: U-PaLM and UL2R in JAX},
  author = {{The upalm developers}},
  year   = {2026},
  version = {VERSION}
}""",
    "U-PaLM": """@inproceedings{tay2023transcending,
  title     = {Transcending Scaling Laws with 0.1\\% Extra Compute},
  author    = {Tay, Yi and Wei, Jason and Chung, Hyung Won and Tran, Vinh Q. and So, David R. and Shakeri, Siamak
               and Garcia, Xavier and Zheng, Huaixiu Steven and Rao, Jinfeng and Chowdhery, Aakanksha and Zhou, Denny
               and Metzler, Donald and Petrov, Slav and Houlsby, Neil and Le, Quoc V. and Dehghani, Mostafa},
  booktitle = {Proceedings of the 2023 Conference on Empirical Methods in Natural Language Processing},
  year      = {2023},
  note      = {arXiv:2210.11399}
}""",
    "UL2": """@inproceedings{tay2023ul2,
  title     = {{UL2}: Unifying Language Learning Paradigms},
  author    = {Tay, Yi and Dehghani, Mostafa and Tran, Vinh Q. and Garcia, Xavier and Wei, Jason and Wang, Xuezhi
               and Chung, Hyung Won and Shakeri, Siamak and Bahri, Dara and Schuster, Tal and Zheng, Huaixiu Steven
               and Zhou, Denny and Houlsby, Neil and Metzler, Donald},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  note      = {arXiv:2205.05131}
}""",
    "PaLM": """@article{chowdhery2023palm,
  title   = {{PaLM}: Scaling Language Modeling with Pathways},
  author  = {Chowdhery, Aakanksha and Narang, Sharan and Devlin, Jacob and others},
  journal = {Journal of Machine Learning Research},
  volume  = {24},
  number  = {240},
  year    = {2023},
  note    = {arXiv:2204.02311}
}""",
}


@dataclass(frozen=True)
class Recipes:
    """List the recipes, or copy one to edit: `upalm recipes`, `upalm recipes cp palm_tiny .`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """Nothing, or `cp NAME PLACE`."""

    def __call__(self) -> None:
        if not self.words:
            for name in recipe.names():
                print(f"{name:14} {recipe.summary(name)}")
        elif len(self.words) == 3 and self.words[0] == "cp":
            print(recipe.copy(self.words[1], Path(self.words[2])))
        else:
            raise ValueError(f"upalm recipes {' '.join(self.words)}: expected nothing, or `cp NAME PLACE`.")


@dataclass(frozen=True)
class Run:
    """Run a recipe, `upalm run NAME CONFIG [--overrides]` or `upalm run ./mine.py ...`, or `upalm run --from OUT`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """The recipe, and what goes to it; `upalm run NAME --help` lists its settings."""

    def __call__(self) -> None:
        if not self.words:
            raise ValueError(f"upalm run needs a recipe: there are {', '.join(recipe.names())}.")
        recipe.run(self.words[0], list(self.words[1:]))


@dataclass(frozen=True)
class Again:
    """Run what a run folder says: `upalm run --from FOLDER` goes on with it, with --out it is run anew elsewhere."""

    from_: Annotated[Path, tyro.conf.arg(name="from")]
    """Folder of the run, whose config.json has all its settings."""
    out: Path | None = None
    """Another folder, to run it anew."""

    def __call__(self) -> None:
        from upalm.run import again  # imports JAX

        again(self.from_, {} if self.out is None else {"out": self.out})


@dataclass(frozen=True)
class Data:
    """Tokenise text, and look at what the loader makes of it: `upalm data build | show | check --help`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """The subcommand, and what goes to it."""

    def __call__(self) -> None:
        from upalm import cli_data  # imports Grain

        cli_data.main(list(self.words))


@dataclass(frozen=True)
class _Infer:
    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    def __call__(self) -> None:
        from upalm import cli_infer  # imports JAX

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
        from upalm import cli_eval  # imports JAX

        cli_eval.main(list(self.words))


@dataclass(frozen=True)
class Scaling:
    """How much compute UL2R saves, from results of `upalm eval`: `upalm scaling RESULTS...`, or `--paper`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    def __call__(self) -> None:
        from upalm import cli_scaling

        cli_scaling.main(list(self.words))


@dataclass(frozen=True)
class Plan:
    """What a recipe takes on chips that one may not have: `upalm plan ul2r_540b 540b --topology v4:8x8x8`."""

    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    def __call__(self) -> None:
        from upalm import cli_plan

        cli_plan.main(list(self.words))


@dataclass(frozen=True)
class _Interop:
    words: tyro.conf.Positional[tuple[str, ...]] = ()
    """See `--help` of the subcommand."""

    name: ClassVar = ""

    def __call__(self) -> None:
        from upalm import cli_interop  # imports JAX

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


@dataclass(frozen=True)
class Cite:
    """Print the BibTeX of upalm, U-PaLM, UL2 and PaLM."""

    def __call__(self) -> None:
        print("\n\n".join(BIBTEX.values()).replace("VERSION", __version__))


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
            recipe.run(arguments[1], arguments[2:])  # what follows belongs to the recipe
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
