"""`upalm infill` and `upalm sample`."""

import json
import sys
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import tyro
from rich.console import Console
from rich.text import Text

from upalm.checkpoints.folder import load_model
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.cli import options
from upalm.data.tokenizer import Tokenizer
from upalm.distributed.runtime import enable_compilation_cache
from upalm.distributed.sharding import make_mesh
from upalm.inference import generation, prompts
from upalm.inference.decoding import DecodingModel
from upalm.inference.sampling import Sampler

_FILL = "bold green"


_BATCH = 16


_Text = str | tuple[str, ...]


class _Input(NamedTuple):
    text: _Text
    source: str
    """For error messages: empty, or file and line."""


@dataclass(frozen=True, kw_only=True)
class _Command:
    checkpoint: options.Checkpoint
    """Folder of a run, or of exported weights."""
    text: str | None = None
    """What to work on; `-` reads it from standard input."""
    file: Path | None = None
    """A file with the text; or a .jsonl file, of which every line is done: {"text": ...}, or {"parts": [...]} with
    the gaps between them. `-` is JSON lines from standard input."""
    interactive: bool = False
    """Ask for one text after the other, `\\n` standing for a new line; the model stays loaded."""
    mode: Literal["none", "s2s", "nlu", "nlg"] = "none"
    """Mode token before the text."""
    max_new_tokens: int = 64
    """Most tokens to add."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens up to this probability."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the likeliest one's probability."""
    num_samples: int = 1
    """Answers to draw; the likeliest comes first."""
    seed: int = 0
    """Of the draws."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A string that ends a span; may be given several times."""
    stream: bool = False
    """Print the tokens as they come (one text, one sample)."""
    json: bool = False
    """Print JSON lines, for programs."""
    mesh: tuple[int, int] = (1, 1)
    """Devices to split rows over, and those to split the model over."""

    def __call__(self) -> None:
        inputs = self._inputs()
        if self.stream and (self.json or self.file or self.num_samples > 1 or getattr(self, "unconstrained", False)):
            raise ValueError(
                "--stream prints one sample of one text, under the grammar: leave out --json, --file, --num-samples "
                "and --unconstrained."
            )
        enable_compilation_cache()
        mesh = make_mesh(*self.mesh) if self.mesh != (1, 1) else None
        with jax.set_mesh(mesh) if mesh is not None else nullcontext():
            model, tokenizer, info = load_model(self.checkpoint, mesh)
            self._warn(info)
            unstacked = DecodingModel.of(model)
            del model
            if not self.interactive:
                for chunk in _chunks(inputs):
                    self._answer(unstacked, tokenizer, info, chunk)
                return
            for given in _typed():
                try:
                    self._answer(unstacked, tokenizer, info, [given])
                except ValueError as e:
                    print(f"error: {e}", file=sys.stderr)

    @abstractmethod
    def _find(
        self, model: DecodingModel, tokenizer: Tokenizer, info: CheckpointInfo, texts: Sequence[_Text]
    ) -> Sequence[Sequence[Any]]:
        """The samples of each text."""

    @abstractmethod
    def _shown(self, text: _Text, sample: Any) -> Text:
        """In colour."""

    def _warn(self, info: CheckpointInfo) -> None:
        pass

    @property
    def _options(self) -> dict[str, Any]:
        sampler = Sampler(self.temperature, self.top_k, self.top_p, self.min_p)
        asked = {"mode": self.mode, "max_new_tokens": self.max_new_tokens, "seed": self.seed, "stop": self.stop}
        return {"sampler": sampler, **asked}

    def _inputs(self) -> Iterator[_Input]:
        given = [self.text is not None, self.file is not None, self.interactive]
        if sum(given) != 1:
            raise ValueError("give the text with one of --text, --file and --interactive.")
        if self.text is not None:
            return iter([_Input(sys.stdin.read() if self.text == "-" else self.text, "")])
        if self.file is None:
            return iter(())
        if str(self.file) == "-":
            return _json_lines(sys.stdin, "standard input")
        if not self.file.is_file():
            raise ValueError(f"no file {self.file}.")
        if self.file.suffix == ".jsonl":
            return _json_lines(self.file.open(encoding="utf-8", newline="\n"), str(self.file))
        return iter([_Input(self.file.read_text(encoding="utf-8"), str(self.file))])

    def _answer(
        self, model: DecodingModel, tokenizer: Tokenizer, info: CheckpointInfo, given: Sequence[_Input]
    ) -> None:
        """In one batch; if it is refused then one by one, so that what comes before the culprit is done."""
        try:
            if self.stream:
                self._stream(model, tokenizer, info, given[0].text)
                return
            found = self._find(model, tokenizer, info, [one.text for one in given])
        except ValueError as e:
            if len(given) == 1:
                raise ValueError(f"{given[0].source}: {e}" if given[0].source else str(e)) from e
            for one in given:
                self._answer(model, tokenizer, info, [one])
            return
        for one, samples in zip(given, found, strict=True):
            self._print(one.text, samples)

    def _print(self, text: _Text, samples: Sequence[Any]) -> None:
        if self.json:
            record = {"samples": [sample._asdict() for sample in samples]}
            print(json.dumps(record, ensure_ascii=False), flush=True)
            return
        console = Console(soft_wrap=True, highlight=False)
        for i, sample in enumerate(samples):
            if len(samples) > 1:
                console.print(f"── sample {i + 1}, log-probability {sample.logprob:.2f}", style="dim")
            console.print(self._shown(text, sample))

    def _stream(self, model: DecodingModel, tokenizer: Tokenizer, info: CheckpointInfo, text: _Text) -> None:
        """Part, span, part, ... each as soon as it is known."""
        console = Console(soft_wrap=True, highlight=False)
        parts, gap = prompts.split_gaps(text), -1
        pieces = generation.stream(model, tokenizer, text, inputs_eos=info.inputs_eos, **self._options)
        console.print(Text(parts[0]), end="")
        for piece in pieces:
            for between in range(max(gap, 0) + 1, piece.gap + 1):
                console.print(Text(parts[between]), end="")
            gap = piece.gap
            console.print(Text(piece.text, style=_FILL), end="")
            sys.stdout.flush()
        for part in parts[max(gap, 0) + 1 :]:
            console.print(Text(part), end="")
        console.print()


def _typed() -> Iterator[_Input]:
    print("a text a line, \\n for a new line in it; Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield _Input(line.replace("\\n", "\n"), "")


def _chunks(inputs: Iterator[_Input]) -> Iterator[list[_Input]]:
    """As many as make a batch; those before a bad line come before its error."""
    chunk: list[_Input] = []
    try:
        for one in inputs:
            chunk.append(one)
            if len(chunk) == _BATCH:
                yield chunk
                chunk = []
    except ValueError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _json_lines(file: Any, name: str) -> Iterator[_Input]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        source = f"{name}, line {number}"
        try:
            found = json.loads(line)
        except ValueError as e:
            raise ValueError(f"{source}: not JSON: {e}.") from e
        text = found.get("text", found.get("parts")) if isinstance(found, dict) else None
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = tuple(text)
        if not isinstance(text, str | tuple):
            raise ValueError(
                f'{source}: expected {{"text": "..."}} or {{"parts": ["...", ...]}}, got {line.strip()[:80]}'
            )
        yield _Input(text, source)


@dataclass(frozen=True, kw_only=True)
class Infill(_Command):
    """Fill the gaps <extra_id_0>, <extra_id_1>, ... of a text."""

    mode: Literal["none", "s2s", "nlu", "nlg"] = "nlg"
    """Mode token before the text."""
    max_new_tokens: int = 48
    """Most tokens in a gap."""
    unconstrained: bool = False
    """Decode without the grammar, and see whether the model keeps the form."""

    def _find(self, model, tokenizer, info, texts):
        options = {"num_samples": self.num_samples, "constrained": not self.unconstrained, **self._options}
        options["inputs_eos"] = info.inputs_eos
        return generation.infill_batch(model, tokenizer, texts, **options)

    def _shown(self, text, sample):
        shown = Text()
        for part, span in zip(prompts.split_gaps(text), [*sample.spans, ""], strict=True):
            shown.append(part).append(span, style=_FILL)
        if not sample.format_ok:
            shown.append(f"\n(the form was not kept: {', '.join(sample.finish_reasons)})", style="dim")
        return shown

    def _warn(self, info):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            generation.warn_of_gaps(info)
        for warning in found:
            print(f"warning: {warning.message}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Sample(_Command):
    """Continue a prompt.

    It may end with <extra_id_0>.
    """

    def _find(self, model, tokenizer, info, texts):
        options = {"num_samples": self.num_samples, "inputs_eos": info.inputs_eos, **self._options}
        return generation.generate_batch(model, tokenizer, texts, **options)

    def _shown(self, text, sample):
        return Text(prompts.split_gaps(text)[0]).append(sample.text, style=_FILL)
