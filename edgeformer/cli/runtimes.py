"""`edgeformer runtimes`."""

from __future__ import annotations

import click

from edgeformer.cli._common import as_json, echo, print_json, text_table


@click.command(name="runtimes", epilog="Example:  edgeformer runtimes --json")
@as_json
def command(as_json: bool) -> None:
    """List runtimes: installed ones with their versions, missing ones with the exact line that installs them."""
    from edgeformer.backends.native.library import status
    from edgeformer.inference import lookup

    rows = []
    for name in lookup.names():
        runtime, _ = lookup.get(name)
        missing = runtime.unavailable()
        rows.append(
            {
                "runtime": name,
                "installed": missing is None,
                "versions": {} if missing else runtime.versions(),
                "opens": ", ".join((runtime.opens, *runtime.also_opens)),
                "variants": list(runtime.variants),
                "missing": missing,
            }
        )
    library = status()
    if as_json:
        print_json({"runtimes": rows, "native": library})
        return
    from rich.console import Console
    from rich.text import Text

    table = text_table("runtime", "state", "opens", "variants")
    for row in rows:
        state = ", ".join(f"{k} {v}" for k, v in row["versions"].items()) or "built in"
        table.add_row(
            row["runtime"],
            Text(state, "green") if row["installed"] else Text("not installed", "yellow"),
            row["opens"],
            ", ".join(f"{row['runtime']}:{v}" for v in row["variants"]),
        )
    Console().print(table)
    for row in rows:
        if not row["installed"]:  # not in the table, which would truncate the install line
            echo(f"{row['runtime']}: {row['missing']}")
    echo(f"native library (native, onnxruntime:kernels): {library}")
