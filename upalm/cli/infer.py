"""`upalm infill` and `upalm sample`."""

import json
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro
from etils import epy

from upalm.checkpoints.shipped import PALM_TINY, UPALM_TINY
from upalm.cli import options
from upalm.cli.answers import FILL, Answers
from upalm.files import parse_json

if TYPE_CHECKING:
    from upalm.checkpoints.lineage import CheckpointInfo
    from upalm.data.tokenizer import Tokenizer
    from upalm.inference.config import GenerationConfig
    from upalm.inference.decoding import DecodingModel
    from upalm.inference.generation import Continuation
    from upalm.inference.generation import Infill as Filled

with epy.lazy_imports():  # once the options are read: they import JAX
    import jax

    from upalm.checkpoints import folder
    from upalm.distributed import runtime, sharding
    from upalm.inference import config as generation_config
    from upalm.inference import decoding, generation, language_model, prompts, sampling

Text = str | tuple[str, ...]
"""Text with gaps, or its parts."""

ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescape(text: str) -> str:
    r"""Replace `\n`, `\t`, `\r` and `\\` by the characters that they stand for; other backslashes stay.

    >>> unescape(r"a\nb\\n\d")
    'a\nb\\n\\d'
    """
    return re.sub(r"\\([ntr\\])", lambda found: ESCAPES[found[1]], text)


class Input(NamedTuple):
    """A text to answer."""

    text: Text
    source: str
    """File and line for error messages, or nothing."""


class _Loaded(NamedTuple):
    model: "DecodingModel"
    tokenizer: "Tokenizer"
    info: "CheckpointInfo"


@dataclass(frozen=True, kw_only=True)
class _Inference(ABC):
    """Options of both commands, and how they run. A subclass says how texts are answered."""

    checkpoint: options.Checkpoint = PALM_TINY
    """Folder of a run, or of weights. The default is the base model that the package ships."""
    text: str | None = None
    """Text to answer; `-` reads it from standard input."""
    file: Path | None = None
    """File with the text; or a .jsonl file, of which every line is answered: {"text": ...}, or {"parts": [...]} with
    the gaps between them. `-` is JSON lines from standard input."""
    interactive: bool = False
    """Ask for one text after the other, `\\n` standing for a new line; the model stays loaded."""
    mode: options.Mode = "auto"
    """Mode token before the text. `auto` is nlg for a text with gaps and none for any other."""
    attention: options.Attention = "prefix"
    """Prompt tokens see the whole prompt, or only what comes before them, as a causal base model was trained."""
    max_new_tokens: int = 64
    """Most tokens to add."""
    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens up to this probability."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the likeliest token's probability."""
    num_samples: int = 1
    """Answers to draw, of which the likeliest comes first; more than one need a temperature."""
    seed: int = 0
    """Seed of the draws."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """String that ends a span; may be given several times. `\\n`, `\\t`, `\\r` and `\\\\` are escapes."""
    stream: bool = False
    """Print tokens as they come: one sample of each text, and no JSON lines in or out."""
    json: bool = False
    """Print JSON lines, for programs."""
    mesh: tuple[int, int] = (1, 1)
    """Devices to split rows over, and devices to split the model over."""

    def __call__(self) -> None:
        config, inputs = self.config(), self._inputs()
        if self.stream:
            self._check_stream(config)
        runtime.enable_compilation_cache()
        mesh = sharding.make_mesh(*self.mesh) if self.mesh != (1, 1) else None
        with jax.set_mesh(mesh) if mesh is not None else nullcontext():
            model, tokenizer, info = folder.load_model(self.checkpoint, mesh)
            loaded = _Loaded(decoding.DecodingModel.of(model), tokenizer, info)
            del model  # its weights lie in `loaded`, laid out otherwise
            if not self.interactive:
                repeats = Counter[int]()
                for batch in _batches(_warned(inputs, info), config.batch_size):
                    self._answer(loaded, config, batch, repeats)
                return
            for typed in _warned(_read_typed(), info):
                try:
                    self._answer(loaded, config, [typed], Counter())
                except ValueError as e:
                    print(f"error: {e}", file=sys.stderr)

    def config(self) -> "GenerationConfig":
        """The options of generation.

        Raises:
            ValueError: a value out of range.
        """
        return generation_config.GenerationConfig(
            mode=self.mode,
            max_new_tokens=self.max_new_tokens,
            sampler=sampling.Sampler(self.temperature, self.top_k, self.top_p, self.min_p),
            num_samples=self.num_samples,
            seed=self.seed,
            stop=tuple(map(unescape, self.stop)),
            attention=self.attention,
        )

    @abstractmethod
    def answer(
        self, loaded: _Loaded, texts: Sequence[Text], config: "GenerationConfig", repeats: Counter[int]
    ) -> "Sequence[Filled] | Sequence[Continuation]":
        """Answer texts in one batch; `repeats` numbers equal ones over all batches."""

    # --- Input ---

    def _inputs(self) -> Iterator[Input]:
        if sum([self.text is not None, self.file is not None, self.interactive]) != 1:
            raise ValueError("give the text with one of --text, --file and --interactive.")
        if self.text is not None:
            return iter([Input(_read_stdin() if self.text == "-" else self.text, "")])
        if self.file is None:
            return iter(())
        if str(self.file) == "-":
            return _read_json_lines(sys.stdin.buffer, "standard input")
        if self.file.is_dir():
            raise ValueError(f"{self.file} is a folder, expected a file.")
        if not self.file.exists():
            raise ValueError(f"no file {self.file}.")
        if self._has_json_lines:
            return _read_json_lines(self.file.open("rb"), str(self.file))
        return iter([Input(_decode(self.file.read_bytes(), str(self.file)), str(self.file))])

    # --- Answers ---

    @property
    def _has_json_lines(self) -> bool:
        """Whether the texts are the lines of a file."""
        return self.file is not None and (str(self.file) == "-" or self.file.suffix.lower() == ".jsonl")

    @property
    def _is_single(self) -> bool:
        """Whether all that is printed is one answer."""
        return not self.interactive and not self._has_json_lines and self.num_samples == 1

    def _check_stream(self, config: "GenerationConfig") -> None:
        """Refuse what cannot be streamed.

        Raises:
            ValueError: with the options to leave out.
        """
        refused = {
            "--json": self.json,
            "--file with JSON lines": self._has_json_lines,
            "--num-samples": self.num_samples > 1,
            "--unconstrained": not config.constrained,
        }
        if given := [option for option, is_given in refused.items() if is_given]:
            raise ValueError(
                f"--stream prints one sample of a text, under the grammar: leave out {' and '.join(given)}."
            )

    def _answer(
        self, loaded: _Loaded, config: "GenerationConfig", inputs: Sequence[Input], repeats: Counter[int]
    ) -> None:
        """Answer in one batch; if it is refused, one by one, so that the texts before the wrong one are answered."""
        try:
            if self.stream:
                self._stream(loaded, config, inputs[0].text)
                return
            answers = self.answer(loaded, [x.text for x in inputs], config, repeats)
        except ValueError as e:
            if len(inputs) == 1:
                raise ValueError(f"{inputs[0].source}: {e}" if inputs[0].source else str(e)) from e
            for x in inputs:
                self._answer(loaded, config, [x], repeats)
            return
        for x, answer in zip(inputs, answers, strict=True):
            self._print(x.text, [answer._replace(alternatives=()), *answer.alternatives])

    def _print(self, text: Text, samples: "Sequence[Filled | Continuation]") -> None:
        if self.json:
            records = [{k: v for k, v in sample._asdict().items() if k != "alternatives"} for sample in samples]
            print(json.dumps({"samples": records}, ensure_ascii=False), flush=True)
            return
        out = Answers(self._is_single)
        for i, sample in enumerate(samples):
            if len(samples) > 1:
                out.heading(f"── sample {i + 1}, log-probability {sample.logprob:.2f}")
            for place, part in enumerate(_parts(text, sample)):
                out.write(part, FILL * (place % 2))
            out.end()
            if isinstance(sample, generation.Infill) and not sample.format_ok:
                reasons = ", ".join(sample.finish_reasons)
                print(f"warning: the answer did not keep the format ({reasons})", file=sys.stderr)

    def _stream(self, loaded: _Loaded, config: "GenerationConfig", text: Text) -> None:
        """Print part, span, part, ... each as soon as it is known."""
        model, tokenizer, info = loaded
        parts, gap = prompts.split_gaps(text), -1
        pieces = generation.stream(model, tokenizer, text, config, inputs_eos=info.inputs_eos)
        out = Answers(self._is_single)
        out.write(parts[0])
        for piece in pieces:
            for between in range(max(gap, 0) + 1, piece.gap + 1):
                out.write(parts[between])
            gap = piece.gap
            out.write(piece.text, FILL)
        for part in parts[max(gap, 0) + 1 :]:
            out.write(part)
        out.end()


@dataclass(frozen=True, kw_only=True)
class Infill(_Inference):
    """Fill the gaps <extra_id_0>, <extra_id_1>, ... of a text."""

    checkpoint: options.Checkpoint = UPALM_TINY
    """Folder of a run, or of weights. The default is the model that the package ships: its base, continued with UL2R on
    Python source."""
    max_new_tokens: int = 48
    """Most tokens in a gap."""
    unconstrained: bool = False
    """Decode without the grammar, and see whether the model keeps the format."""
    heal: bool = True
    """Write the tokens at a gap's borders anew, for gaps inside words. The text around the gap stays as it is."""

    def config(self) -> "GenerationConfig":
        return replace(super().config(), constrained=not self.unconstrained, heal=self.heal)

    def answer(
        self, loaded: _Loaded, texts: Sequence[Text], config: "GenerationConfig", repeats: Counter[int]
    ) -> "Sequence[Filled]":
        model, tokenizer, info = loaded
        return generation.infill_batch(model, tokenizer, texts, config, inputs_eos=info.inputs_eos, repeats=repeats)


@dataclass(frozen=True, kw_only=True)
class Sample(_Inference):
    """Continue a prompt."""

    def answer(
        self, loaded: _Loaded, texts: Sequence[Text], config: "GenerationConfig", repeats: Counter[int]
    ) -> "Sequence[Continuation]":
        model, tokenizer, info = loaded
        return generation.generate_batch(model, tokenizer, texts, config, inputs_eos=info.inputs_eos, repeats=repeats)


def _parts(text: Text, sample: "Filled | Continuation") -> list[str]:
    """Interleave kept and generated parts."""
    kept, spans = prompts.split_gaps(text), sample.spans if isinstance(sample, generation.Infill) else [sample.text]
    return [part for pair in zip(kept, [*spans, ""], strict=False) for part in pair][: 2 * len(spans) + 1]


# --- Reading --------------------------------------------------------------------------------------


def _decode(content: bytes, name: str) -> str:
    """Decode UTF-8; line ends stay as they are.

    Raises:
        ValueError: another encoding.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        raise ValueError(
            f"{name} is not UTF-8: byte 0x{content[e.start]:02x} in line {line}. Convert it first, such as by "
            "`iconv -f latin1 -t utf-8`."
        ) from e


def _read_stdin() -> str:
    return _decode(sys.stdin.buffer.read(), "standard input")


def _read_typed() -> Iterator[Input]:
    print("one text per line, \\n for a new line in it; Ctrl-D ends", file=sys.stderr)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        except UnicodeDecodeError as e:
            raise ValueError(
                f"what was typed is not UTF-8: byte 0x{e.object[e.start]:02x}. Use a terminal of UTF-8."
            ) from e
        if line.strip():
            yield Input(unescape(line), "")


def _warned(inputs: Iterator[Input], info: "CheckpointInfo") -> Iterator[Input]:
    """Warn before the first text with a gap if the model never saw one."""
    is_due = info.gaps_trained is False
    for x in inputs:
        if is_due and prompts.has_gaps(x.text):
            print(f"warning: {language_model.NEVER_SAW_GAPS}", file=sys.stderr)
            is_due = False
        yield x


def _batches(inputs: Iterator[Input], size: int) -> Iterator[list[Input]]:
    """Group inputs; those before a bad line come before its error."""
    batch: list[Input] = []
    try:
        for x in inputs:
            batch.append(x)
            if len(batch) == size:
                yield batch
                batch = []
    except ValueError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _read_json_lines(file: Iterable[bytes], name: str) -> Iterator[Input]:
    n_texts = 0
    for number, content in enumerate(file, 1):
        source = f"{name}, line {number}"
        line = _decode(content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content, source).strip()
        if not line:
            continue
        try:
            record = parse_json(line)
        except ValueError as e:
            raise ValueError(f"{source}: not JSON: {e}.") from e
        text = record.get("text", record.get("parts")) if isinstance(record, dict) else None
        if isinstance(text, list) and all(isinstance(part, str) for part in text):
            text = tuple(text)
        if not isinstance(text, str | tuple):
            raise ValueError(f'{source}: expected {{"text": "..."}} or {{"parts": ["...", ...]}}, got {line[:80]}')
        n_texts += 1
        yield Input(text, source)
    if not n_texts:
        raise ValueError(f"{name} is empty: there is nothing to continue or to fill.")
