"""The `turnout` command: finds its subcommands by entry point and loads only the one that is called."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points

import click
import typer

from turnout import __version__

# Commands that hold state or start servers come first in the help.
GROUP = "turnout.commands"


class LazyGroup(click.Group):
    """A group whose commands are entry points, imported on use: `turnout sidecar` never imports scipy."""

    def _found(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=GROUP)}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all subcommands, sorted."""
        return sorted(self._found())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one subcommand; an entry point is a Typer application or a click command."""
        point = self._found().get(cmd_name)
        if point is None:
            return None
        loaded = point.load()
        if isinstance(loaded, typer.Typer):
            loaded = typer.main.get_command(loaded)
        loaded.name = cmd_name
        return loaded  # type: ignore[no-any-return]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands with the short help that their entry points' modules declare."""
        super().format_commands(ctx, formatter)


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turnout: split, shadow and judge model versions on live traffic, beside every model pod.",
)
@click.version_option(__version__, prog_name="turnout")
def main() -> None:
    """Run the command line."""


if __name__ == "__main__":
    sys.exit(main())
