"""Print a script that makes a shell complete commands, areas, verbs, flags, and known values.

bash, in ~/.bashrc:  eval "$(stonemux completion bash)"
zsh, in ~/.zshrc:    eval "$(stonemux completion zsh)"
fish, once:          stonemux completion fish > ~/.config/fish/completions/stonemux.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import NamedTuple

from stonemux import cli, verbs
from stonemux.errors import EXIT_OK
from stonemux.flags import Flag
from stonemux.operations import OPERATIONS
from stonemux.parser import Parser
from stonemux.schema import Operation, Param

FILES = ("FILE", "DIR")
"""The metavars of flags whose value is a path."""


class Word(NamedTuple):
    """A word that may be typed next. `takes`, for a flag with a value, is the known values, or FILE or DIR."""

    text: str
    help: str
    takes: str | None = None


Tree = Mapping[str, list[Word]]
"""The words that may follow the words typed so far (joined by spaces)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=tuple(SHELLS), help="your shell")


def run(options: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Print the script."""
    print(SHELLS[options.shell](tree()), end="")
    return EXIT_OK


def tree() -> Tree:
    """Everything that can be typed."""
    areas, named = verbs.areas(OPERATIONS), {row.name for row in cli.COMMANDS}
    found: dict[str, list[Word]] = {"": [Word(row.name, row.help) for row in cli.COMMANDS]}
    for area, here in [*areas.items(), *((alias, areas[area]) for alias, area in verbs.ALIASES.items())]:
        found[area] = [Word(verb, operation.summary) for verb, operation in here.items() if verb]
        for verb, operation in here.items():
            found[f"{area} {verb}".rstrip()] = _of_operation(operation)
    for typed, verb in verbs.VERB_ALIASES.items():
        area, _, alias = typed.partition(" ")
        found[area].append(Word(alias, f"the same as {verb}"))
        found[typed] = found[f"{area} {verb}"]
    found[""] += [Word(area, ", ".join(filter(None, here))) for area, here in areas.items() if area not in named]
    found[""] += [Word(alias, f"the same as {area}") for alias, area in verbs.ALIASES.items()]
    for row in cli.COMMANDS:
        found[row.name] = found.get(row.name, []) + _of_command(row)
    return found


def _of_operation(operation: Operation) -> list[Word]:
    return [_of_param(param) for param in operation.params] + [_of_flag(flag) for flag in verbs.common(operation)]


def _of_param(param: Param) -> Word:
    return Word(verbs.flag(param), param.doc, None if param.kind == "boolean" else " ".join(param.choices))


def _of_flag(flag: Flag) -> Word:
    known = flag.metavar if flag.metavar in FILES else ""
    return Word(flag.typed, flag.help, known if flag.metavar else None)


def _of_command(row: cli.Command) -> list[Word]:
    parser = Parser(prog=row.name)
    import_module(f"stonemux.commands.{row.module}").add_arguments(parser)
    found: list[Word] = []
    for action in parser._actions:
        known = " ".join(action.choices or ()) or (action.metavar if action.metavar in FILES else "")
        long = next((name for name in action.option_strings if name.startswith("--")), None)
        if long is not None:
            found.append(Word(long, action.help or "", None if action.nargs == 0 else str(known)))
        elif action.choices:
            found += [Word(str(choice), action.help or "") for choice in action.choices]
    return found


# --- bash and zsh: the same two functions return the known words, and each shell uses them in its own way


def _known(tree: Tree) -> str:
    lines = ["_stonemux_next() {", '  case "$1" in']
    lines += [f'    "{typed}") known="{" ".join(word.text for word in words)}" ;;' for typed, words in tree.items()]
    lines += ['    *) known="" ;;', "  esac", "}", "_stonemux_values() {", '  case "$1 $2" in']
    for typed, words in tree.items():
        for word in words:
            if word.takes is not None:
                lines.append(f'    "{typed} {word.text}") known="{word.takes or "-"}" ;;')
    return "\n".join([*lines, '    *) known="" ;;', "  esac", "}", ""])


BASH = """\
_stonemux() {
  local known typed="" cur="${COMP_WORDS[COMP_CWORD]}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -gt 1 ]; then
    typed="${COMP_WORDS[1]}"
    if [ "$COMP_CWORD" -gt 2 ]; then
      _stonemux_next "$typed ${COMP_WORDS[2]}"
      [ -n "$known" ] && typed="$typed ${COMP_WORDS[2]}"
    fi
    _stonemux_values "$typed" "${COMP_WORDS[COMP_CWORD-1]}"
    case "$known" in
      "") ;;
      -) return ;;
      FILE | DIR) compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
      *) mapfile -t COMPREPLY < <(compgen -W "$known" -- "$cur"); return ;;
    esac
  fi
  _stonemux_next "$typed"
  mapfile -t COMPREPLY < <(compgen -W "$known" -- "$cur")
}
complete -F _stonemux stonemux
"""

ZSH = """\
_stonemux() {
  local known typed=""
  if (( CURRENT > 2 )); then
    typed="${words[2]}"
    if (( CURRENT > 3 )); then
      _stonemux_next "$typed ${words[3]}"
      [[ -n "$known" ]] && typed="$typed ${words[3]}"
    fi
    _stonemux_values "$typed" "${words[CURRENT-1]}"
    case "$known" in
      "") ;;
      -) return ;;
      FILE | DIR) _files; return ;;
      *) compadd -- ${=known}; return ;;
    esac
  fi
  _stonemux_next "$typed"
  compadd -- ${=known}
}
(( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit; }
compdef _stonemux stonemux
"""


def _bash(tree: Tree) -> str:
    return _known(tree) + BASH


def _zsh(tree: Tree) -> str:
    return _known(tree) + ZSH


# --- fish

FISH = """\
function __stonemux_typed
    set -l words (commandline -opc)
    set -e words[1]
    set -l n (count $argv)
    test (count $words) -ge $n; and test "$words[1..$n]" = "$argv"
end
function __stonemux_next
    set -l words (commandline -opc)
    set -e words[1]
    test "$words" = "$argv"
end
complete -c stonemux -f
"""


def _fish(tree: Tree) -> str:
    return FISH + "\n".join(_fish_lines(tree)) + "\n"


def _fish_lines(tree: Tree) -> Iterable[str]:
    for typed, words in tree.items():
        for word in words:
            told = f"-d {_fish_quoted(word.help.partition('. ')[0])}"
            if not word.text.startswith("--"):
                yield f"complete -c stonemux -n '__stonemux_next {typed}' -a {word.text} {told}"
                continue
            takes = {None: "", "": "-x", "FILE": "-r -F", "DIR": "-r -F"}.get(word.takes, f"-x -a '{word.takes}'")
            yield f"complete -c stonemux -n '__stonemux_typed {typed}' -l {word.text[2:]} {takes} {told}".replace(
                "  ", " "
            )


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Tree], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
