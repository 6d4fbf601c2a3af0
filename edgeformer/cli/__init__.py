"""The command line. Each module here is one command, found by its file name and imported on demand."""

from __future__ import annotations

import io
import signal
import sys
from typing import Any, NoReturn

import click

from edgeformer import __version__, discover
from edgeformer.cli import _crash as crash
from edgeformer.errors import EdgeformerError, PluginError
from edgeformer.files.quoting import MAX_MESSAGE, plain


class Commands(click.Group):
    """Finds commands by file name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Sorted names of all commands."""
        return [name.replace("_", "-") for name in discover.names("edgeformer.cli")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The `command` of the module with this name; None if there is none."""
        name = cmd_name.replace("-", "_")
        try:
            module = None if name.startswith("_") else discover.find("edgeformer.cli", name)
            return None if module is None else discover.declared(module, "command", click.Command)
        except PluginError as e:
            return _broken(cmd_name, e)


def _broken(name: str, fault: PluginError) -> click.Command:
    """A stand-in for a broken command: running it raises the fault, and the other commands stay usable."""

    def refuse(**_: Any) -> NoReturn:
        raise fault

    return click.Command(name, callback=refuse, short_help="(broken)", params=[click.Argument(["words"], nargs=-1)])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="MODEL is a Hugging Face folder, an edgeformer folder, a spec file, a named spec, or a hub id (owner/name).",
)
@click.version_option(__version__, prog_name="edgeformer")
def cli() -> None:
    """One transformer spec: export it to ONNX, verify its outputs, measure it on every runtime.

    \b
    Examples:
      edgeformer compare models/stdlib-5m
      edgeformer export models/stdlib-5m -o build/stdlib-5m
      edgeformer verify build/stdlib-5m --against models/stdlib-5m
    """


def main() -> Any:
    """Run the command line; an `EdgeformerError` exits with its class's exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that can't encode ± must not abort a measurement
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up as for Ctrl-C
    try:
        return cli(standalone_mode=False)
    except EdgeformerError as e:
        _fail(str(e), e.exit_code)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.ClickException as e:
        e.show(shown := io.StringIO())
        click.echo(plain(shown.getvalue(), limit=MAX_MESSAGE), nl=False, err=True)
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader closed the pipe (`| head`)
        sys.stderr.close()
        sys.exit(0)
    except MemoryError as e:
        _fail(f"out of memory{f': {e}' if str(e) else ''}", 2)
    except OSError as e:
        at = f" ({e.filename})" if e.filename is not None else ""
        _fail(f"{e.strerror or e}{at}", 2)
    except SystemExit:
        raise
    except BaseException as e:  # panics in Rust extensions are not Exceptions
        _fail(
            f"{type(e).__name__}: {e}. This is a bug in edgeformer; please report it with {crash.write(e)}",
            crash.EXIT_CODE,
        )


def _fail(message: str, code: int) -> NoReturn:
    click.echo(plain(f"error: {message}", limit=MAX_MESSAGE), err=True)
    sys.exit(code)
