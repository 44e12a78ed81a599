"""`upalm --completion`: a script that completes commands, recipes, configs, options and choices with Tab."""

import contextlib
import io
import re
from collections.abc import Callable, Sequence
from functools import partial

from upalm.arguments import set_columns
from upalm.cli.main import COMMANDS, parse
from upalm.training import recipes

_FUNCTION = """\
# Completion of upalm for bash and zsh.
_upalm_words() {
  case "$1" in
CASES
    *) return 1 ;;
  esac
}
_upalm() {
  local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD - 1]}" context="" word words i
  for ((i = 1; i < COMP_CWORD; i++)); do
    word="${COMP_WORDS[i]}"
    [[ "$word" != -* ]] && _upalm_words "$context${context:+ }$word" > /dev/null || break
    context="$context${context:+ }$word"
  done
  words="$(_upalm_words "$context $previous" || _upalm_words "$context")"
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _upalm upalm
"""
_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def script(shell: Sequence[str]) -> str:
    """The completion script for `["bash"]` or `["zsh"]`.

    Raises:
        ValueError: another shell.
    """
    if list(shell) not in (["bash"], ["zsh"]):
        raise ValueError(f"--completion {' '.join(shell)}: expected `--completion bash` or `--completion zsh`.")
    cases = "\n".join(f"    '{place}') echo '{' '.join(after)}' ;;" for place, after in words().items())
    return (_ZSH if shell[0] == "zsh" else "") + _FUNCTION.replace("CASES", cases)


def words() -> dict[str, list[str]]:
    """Completions of each place of a command line, such as "run palm_tiny"; nothing stands for a file or free text."""
    found = {"": ["--help", "--version", "--completion"], " --completion": ["bash", "zsh"]}
    for name in COMMANDS:
        *group, last = name.split()
        found.setdefault(" ".join(group), []).append(last)
        if group and group[0] not in found[""]:
            found[""].append(group[0])
        found.setdefault(name, []).extend(_options(found, name, partial(parse, name, ["--help"])))
    for name in recipes.names():
        configs = list(recipes.configs(name))
        for place in ("run", "plan", "recipes show", "recipes cp"):
            found[place].append(name)
        found[f"run {name}"] = found[f"plan {name}"] = configs
        for config in configs or [""]:
            place = f"run {name} {config}".strip()
            options = _options(found, place, partial(recipes.run, name, [*config.split(), "--help"]))
            found[place] = found.get(place, []) + options
    return found


def _options(found: dict[str, list[str]], place: str, show_help: Callable[[], object]) -> list[str]:
    """Options that a help text lists; what may follow each that takes a value goes into `found`."""
    options = []
    for line in _read(show_help).splitlines():
        if listed := re.match(r"[│ ] (--?\w.*?)(?:  | *│?$)", line):
            for spelling in listed[1].split(", "):
                option, _, value = spelling.partition(" ")
                options.append(option)
                if value:
                    found[f"{place} {option}"] = value[1:-1].split(",") if re.fullmatch(r"\{.*\}", value) else []
    return options


def _read(show_help: Callable[[], object]) -> str:
    printed = io.StringIO()
    with set_columns(120), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        show_help()
    return printed.getvalue()
