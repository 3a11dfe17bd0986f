"""The `turnout` command: finds its subcommands by entry point, imports only the one that is called.

Owns the list of one-line helps, so that `turnout --help` imports neither side. Refuses to know
anything else about a subcommand.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperGroup

from turnout import __version__, settings
from turnout.completing import COMPLETE_VARIABLE

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP: Final = "turnout.commands"
# Found without looking through everything that is installed: traffic may wait for it.
DIRECT: Final = {"sidecar": ("sidecar.commands", "sidecar")}

# In the order in which they are listed. A command without a line here is listed last, without help.
HELPS: Final = {
    "sidecar": "Serve Envoy: choose each request's variant, fold its access log.",
    "control": "Run the control plane: resources, rollouts, sidecars' config.",
    "envoy": "Print, check and extend Envoy configurations for a sidecar.",
    "snapshot": "Build a snapshot from resource files, or show one.",
    "init": "Write a first resource file, from questions or flags.",
    "lint": "Check resource files offline and name every violation.",
    "diff": "Show what apply would change.",
    "plan": "Say what a rollout can find out, and when, before it starts.",
    "apply": "Create or update the resources in files.",
    "get": "List targets or experiments, or print one.",
    "describe": "Tell an experiment's or a target's state, and why.",
    "status": "Say where an experiment is, by exit code: for CI.",
    "wait": "Wait until an experiment is in a state.",
    "watch": "Follow experiments as they change.",
    "explain": "Say why a request gets its variant, live or offline.",
    "force": "Sign a token that gives its bearer a variant.",
    "results": "Show what is known of an experiment's variants.",
    "analyze": "Judge any experiment's data: CSV, Parquet, Arrow, JSON lines.",
    "start": "Start an experiment at its first step.",
    "pause": "Freeze an experiment's step; safety still rolls back.",
    "resume": "Go on with a paused experiment.",
    "advance": "Go to an experiment's next step, whatever its checks say.",
    "promote": "Make a candidate the target's baseline.",
    "rollback": "Take all traffic from an experiment's candidates, for good.",
    "undo": "Undo a promotion: the previous baseline serves again.",
    "stop": "End an experiment without a verdict.",
    "delete": "Delete an experiment or a target, or what files hold.",
    "sidecars": "List the sidecars and which configuration each one serves.",
    "completion": "Print a shell's completion script.",
}


class LazyGroup(TyperGroup):
    """A group of entry points, imported on use: `turnout sidecar` never imports scipy.

    An entry point is a Typer application or a function with Typer's annotations. Contexts and
    formatters are typed `Any` because Typer's releases differ in where they keep these classes.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all subcommands, in the order of `HELPS`."""
        found = _found()
        return [*(name for name in HELPS if name in found), *sorted(found.keys() - HELPS.keys())]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one subcommand; None when there is none of that name."""
        loaded = _loaded(cmd_name)
        if loaded is None:
            return None
        if not isinstance(loaded, typer.Typer):
            app = _application()
            app.command(name=cmd_name)(loaded)
            loaded = app
        command = typer.main.get_command(loaded)
        command.name = cmd_name
        settings.configure(command, (cmd_name,), _Names())
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the subcommands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, HELPS.get(name, "")) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Complete options, and subcommands without importing them."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            Completion(name, HELPS.get(name, ""))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run; when a shell asks for completions, with Typer's way of answering them."""
        if COMPLETE_VARIABLE in os.environ:
            from typer._completion_classes import completion_init

            completion_init()
        return super().main(*args, **extra)


class Completion(NamedTuple):
    """What a shell is offered: a word and what it means."""

    value: str
    help: str
    type: str = "plain"


class _Names(Set[str]):
    """Names of all commands; what is installed is looked through only when it matters."""

    def __contains__(self, name: object) -> bool:
        return name in HELPS or name in _found()

    def __iter__(self) -> Iterator[str]:
        return iter({*HELPS, *_found()})

    def __len__(self) -> int:
        return len({*HELPS, *_found()})


def _loaded(name: str) -> Any:
    """Import one subcommand; None when there is none of that name."""
    if name in DIRECT:
        module, attribute = DIRECT[name]
        return getattr(import_module(module), attribute)
    point = _found().get(name)
    return None if point is None else point.load()


def _found() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def _application() -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"turnout {__version__}")
        raise typer.Exit


main = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turnout: split, shadow and judge model versions on live traffic, beside every model pod.",
    epilog=settings.HELP,
)


@main.callback()
def _root(
    ctx: typer.Context,
    *,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="File with options; see below.")
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Hold the options that all subcommands share."""
    settings.remember(ctx, config)


if __name__ == "__main__":
    main()
