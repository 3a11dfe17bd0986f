"""Where options come from besides the command line: the environment and a file.

Owns the names of environment variables, the form of the file and its refusals. Refuses what it does
not know, with its line; knows no command's options but those of the one that runs. A value is what
would be typed: the option's own type reads it.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

VARIABLE_PREFIX: Final = "TURNOUT"
VARIABLE_CONFIG: Final = f"{VARIABLE_PREFIX}_CONFIG"
# Of all commands that ask a control plane.
SHARED_SECTION: Final = "client"
SHARED_KEYS: Final = ("control", "tenant", "output")
# Commands whose variables carry the command's name: the servers, and what belongs to Envoy's files.
# TURNOUT_CONTROL means the control plane's address to all others. No flag may be called --port:
# Kubernetes gives every pod a TURNOUT_CONTROL_PORT when there is a Service "turnout-control".
NAMED_COMMANDS: Final = frozenset({"sidecar", "control", "envoy", "snapshot"})
# They lift a safeguard: for this once, never by what lies about in an environment or a file.
TYPED_ONLY: Final = frozenset({"force", "overwrite-baseline"})
FILE_BYTES_MAX: Final = 256 * 1024
_META: Final = "turnout.config"

CONFIG_HELP: Final = "File with options (YAML): a section per command; see `turnout --help`."

HELP: Final = """Options without typing them: every option also comes from the environment and
from a file. The command line wins over the environment, which wins over the file, which wins over
the default.

\b
  TURNOUT_<FLAG>           clients: TURNOUT_CONTROL, TURNOUT_TENANT
  TURNOUT_SIDECAR_<FLAG>   `turnout sidecar`: TURNOUT_SIDECAR_STATE_DIR
  TURNOUT_CONTROL_<FLAG>   `turnout control`: TURNOUT_CONTROL_LISTEN
  TURNOUT_CONFIG           the file, as --config FILE

A file has a section per command, with the flags' names; `client` holds control, tenant and output
for all commands that ask a control plane:

\b
  client: {control: 10.0.0.5:7700, tenant: risk}
  apply: {dry-run: true}
  control:
    listen: 0.0.0.0:7700
    webhook: [https://hooks.example/turnout]
  envoy: {bootstrap: {workers: 4}}

Keys that a command does not have are refused, with their line (exit code 2). What lifts a safeguard
(--force, --overwrite-baseline) must be typed.
"""


class Value(NamedTuple):
    """One value of a file: as written, or several of them, or a section."""

    content: str | tuple[str, ...] | dict[str, Value]
    line: int


class Refused(ValueError):
    """A file that cannot be used; the message has file and line."""


# -- The file --------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Value]:
    """Parse a file of options: sections by name.

    Raises:
        Refused: It cannot be read, or is not a mapping of sections.
    """
    import yaml  # only those who have a file pay for it

    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror or error}") from error
    if len(data) > FILE_BYTES_MAX:
        raise Refused(f"{path}: larger than {FILE_BYTES_MAX} bytes")
    try:
        root = yaml.compose(data.decode(), Loader=yaml.BaseLoader)
    except UnicodeDecodeError as error:
        raise Refused(f"{path}: not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise Refused(f"{path}: nested too deeply") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise Refused(f"{place}: not YAML: {problem}") from error
    if root is None:
        return {}
    value = _value(path, root, "the file")
    if not isinstance(value.content, dict):
        raise Refused(f"{path}:{value.line}: must be a mapping of sections, like client: {{...}}")
    return value.content


def _value(path: Path, node: Any, name: str) -> Value:
    line = node.start_mark.line + 1
    if node.id == "scalar":
        if node.value == "" and node.style is None:
            raise Refused(f'{path}:{line}: {name}: no value; leave it out, or write ""')
        return Value(node.value, line)
    if node.id == "sequence":
        for item in node.value:
            if item.id != "scalar":
                place = f"{path}:{item.start_mark.line + 1}"
                raise Refused(f"{place}: {name}: must be a list of plain values")
        return Value(tuple(item.value for item in node.value), line)
    entries: dict[str, Value] = {}
    for key, item in node.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if key.id != "scalar":
            raise Refused(f"{place}: {name}: keys must be names")
        if key.value in entries:
            raise Refused(f"{place}: {key.value}: is there twice")
        value = _value(path, item, key.value)
        entries[key.value] = Value(value.content, key.start_mark.line + 1)
    return Value(entries, line)


# -- Commands --------------------------------------------------------------------------------------


def configure(command: Any, words: tuple[str, ...], commands: Collection[str]) -> None:
    """Let a command's options come from the environment and from a file as well.

    Args:
        command: A click command or group; changed in place.
        words: What is typed to reach it, without "turnout".
        commands: Names of all commands: the sections that a file may have.
    """
    children = getattr(command, "commands", None)
    if children is not None:
        for name, child in children.items():
            configure(child, (*words, name), commands)
        return
    found = options(command)
    if not found:
        return  # nothing to take: a broken file must not keep it from running
    for flag, option in found.items():
        if option.envvar is None and flag not in TYPED_ONLY:
            option.envvar = variable(words, flag)
            option.show_envvar = False  # said once, below; the help stays readable
            option.get_error_hint = _hint(option.get_error_hint, option.envvar)
    command.params.append(_config_option(words, commands))
    section = ".".join(words)
    example = variable(words, "<FLAG>")
    note = f"Options also come from {example} and from section {section} of --config FILE."
    command.epilog = f"{command.epilog}\n\n{note}" if command.epilog else note


def options(command: Any) -> dict[str, Any]:
    """A command's options by flag, without the dashes; not those that every command has."""
    found = {}
    for param in command.params:
        flags = [flag for flag in param.opts if flag.startswith("--")]
        if param.param_type_name == "option" and flags:
            found[max(flags, key=len).removeprefix("--")] = param
    return {flag: param for flag, param in found.items() if flag not in ("config", "help")}


def variable(words: tuple[str, ...], flag: str) -> str:
    """The environment variable of a command's flag."""
    named = words if words[0] in NAMED_COMMANDS else ()
    return "_".join((VARIABLE_PREFIX, *named, flag)).replace("-", "_").upper()


def remember(ctx: typer.Context, path: Path | None) -> None:
    """Keep what was said before the command: `turnout --config FILE COMMAND`."""
    if path is not None:
        ctx.meta[_META] = path


def _hint(hint: Callable[..., str], name: str) -> Callable[..., str]:
    """An option's name in errors, with the variable that a wrong value may have come from."""

    def with_variable(*args: Any) -> str:
        return f"{hint(*args)} (env var: '{name}')" if os.environ.get(name) else hint(*args)

    return with_variable


def _config_option(words: tuple[str, ...], commands: Collection[str]) -> Any:
    def take(ctx: typer.Context, param: typer.CallbackParam, value: Path | None) -> None:
        source = ctx.get_parameter_source(param.name or "")
        typed = source is not None and source.name == "COMMANDLINE"
        path = value if typed else ctx.meta.get(_META, value)
        if path is None:
            return
        try:
            ctx.default_map = _defaults(ctx, words, commands, Path(path))
        except Refused as error:
            if not ctx.resilient_parsing:  # completion says nothing
                raise typer.BadParameter(str(error), param_hint="--config") from error

    option = typer.Option(
        "--config",
        envvar=VARIABLE_CONFIG,
        metavar="FILE",
        is_eager=True,  # before the options whose values it has
        expose_value=False,
        callback=take,
        help=CONFIG_HELP,
    )

    def holder(config: Path | None = None) -> None:
        """Lend its option."""

    holder.__annotations__["config"] = Annotated[Path | None, option]
    app = typer.Typer(add_completion=False)
    app.command()(holder)
    return typer.main.get_command(app).params[0]


def _defaults(
    ctx: typer.Context, words: tuple[str, ...], commands: Collection[str], path: Path
) -> dict[str, Any]:
    """Values by parameter, each read by its option's type.

    Raises:
        Refused: As `read`; a section or key is unknown, or a value is not of its option's type.
    """
    sections = read(path)
    known = {*commands, SHARED_SECTION}
    for name, section in sections.items():
        if name not in known:
            raise Refused(f"{path}:{section.line}: {_unknown('section', name, known)}")
    found = {f: o for f, o in options(ctx.command).items() if f not in TYPED_ONLY}
    chosen: dict[str, Value] = {}
    shared = _keys(path, SHARED_SECTION, sections.get(SHARED_SECTION), SHARED_KEYS)
    if words[0] not in NAMED_COMMANDS:
        chosen.update((key, value) for key, value in shared.items() if key in found)
    inner: Value | None = Value(sections, 1)
    for word in words:
        inner = inner.content.get(word) if inner and isinstance(inner.content, dict) else None
    chosen.update(_keys(path, " ".join(words), inner, found))
    return dict(_converted(ctx, found, chosen, path))


def _keys(
    path: Path, name: str, section: Value | None, known: Collection[str]
) -> Mapping[str, Value]:
    if section is None:
        return {}
    if not isinstance(section.content, dict):
        raise Refused(f"{path}:{section.line}: {name}: must be a mapping of flags to values")
    for key, value in section.content.items():
        if key not in known:
            raise Refused(f"{path}:{value.line}: {name}: {_unknown('flag', key, known)}")
    return section.content


def _converted(
    ctx: typer.Context, found: Mapping[str, Any], chosen: Mapping[str, Value], path: Path
) -> Iterator[tuple[str, Any]]:
    for key, (content, line) in chosen.items():
        option = found[key]
        if isinstance(content, dict) or (isinstance(content, tuple) and not option.multiple):
            raise Refused(f"{path}:{line}: {key}: must be one value")
        value = (content,) if option.multiple and isinstance(content, str) else content
        try:
            option.process_value(ctx, value)
        except typer.BadParameter as error:
            raise Refused(f"{path}:{line}: {key}: {error.message}") from error
        yield option.name, value


def _unknown(what: str, name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    remedy = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    return f"unknown {what} {name!r}; {remedy}"
