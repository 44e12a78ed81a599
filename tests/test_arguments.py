from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from upalm import arguments


@dataclass(frozen=True)
class Inner:
    """Nested settings."""

    size: int = 1

    def __post_init__(self):
        if self.size < 0:
            raise ValueError(f"size is {self.size}, expected at least 0.")


@dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    text: str = ""
    width: float = 1.0
    kind: Literal["left", "right"] = "left"
    flag: bool = False
    place: Path = Path(arguments.__file__).parent / "assets" / "x"
    maybe_text: str | None = None
    maybe_place: Path | None = None
    maybe_number: int | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--inner.size", "-1"], "error: --inner.size: size is -1, expected at least 0."),
        (["--width", "z"], "error: --width: expected a number, got 'z'"),
        (["--inner.size", "z"], "error: --inner.size: expected a whole number, got 'z'"),
        (["--kind", "up"], "error: invalid choice 'up' for argument '--kind'. Expected one of ('left', 'right')."),
        (["--text", "-x = 1"], "needs an equals sign: --text='-x = 1'"),
        (["--text"], "error: missing value for argument '--text'. Expected 1 value."),
        (["--widht", "2"], "error: unrecognized options: --widht, 2\nPerhaps you meant:\n    --width FLOAT"),
        (["--place", ""], "error: --place: expected a path, got an empty text."),
        (["--place", "gs://b/run"], "error: --place: expected a path on a disk, got gs://b/run."),
        (["extra"], "error: unrecognized options: extra"),
    ],
)
def test_a_mistake_names_the_option_without_a_box(words, message, capsys):
    with pytest.raises(SystemExit) as e:
        arguments.parse(Settings, words, "upalm test")
    said = capsys.readouterr().err
    assert e.value.code == 2 and message in said and "│" not in said
    assert said.endswith("`upalm test --help` lists the options.\n")


def test_help_keeps_lines_and_hides_the_install_folder(capsys):
    with pytest.raises(SystemExit) as e:
        arguments.parse(Settings, ["--help"], "upalm test", heading="One line.\nAnother line.\n")
    said = capsys.readouterr().out
    assert not e.value.code and said.startswith("One line.\nAnother line.\n\nusage: upalm test ")
    assert "(default: upalm/assets/x)" in said


def test_a_flag_is_set_either_way_whatever_its_default(capsys):
    for default in (False, True):
        for words, expected in ((["--flag"], True), (["--no-flag"], False), ([], default)):
            parsed = arguments.parse(Settings, words, "upalm test", default=Settings(flag=default))
            assert parsed.flag is expected
    with pytest.raises(SystemExit):
        arguments.parse(Settings, ["--help"], "upalm test", default=Settings(flag=True))
    assert "--flag, --no-flag" in capsys.readouterr().out


@pytest.mark.parametrize(("no_color", "coloured"), [("1", False), ("", True)])
def test_help_has_no_colour_under_no_color(no_color, coloured, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(SystemExit):
        arguments.parse(Settings, ["--help"], "upalm test")
    assert ("\x1b[" in capsys.readouterr().out) == coloured


def test_none_is_a_text_and_a_path_like_any_other(capsys):
    parsed = arguments.parse(Settings, ["--maybe-text", "None", "--maybe-place", "None"], "upalm test")
    assert (parsed.maybe_text, parsed.maybe_place) == ("None", Path("None"))
    given = Settings(maybe_text="a", maybe_place=Path("b"))
    for default in (Settings(), given):
        assert arguments.parse(Settings, [], "upalm test", default=default) == default
    with pytest.raises(SystemExit):
        arguments.parse(Settings, ["--help"], "upalm test")
    said = capsys.readouterr().out
    assert "--maybe-text STR" in said and "--maybe-place PATH" in said and "(default: None)" in said


def test_other_words_are_returned_beside_the_options():
    parsed, rest = arguments.parse_known(Settings, ["--flag", "--mesh.model", "8"], "upalm test")
    assert parsed.flag and rest == ["--mesh.model", "8"]
