"""`edgeformer new`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeformer.cli._common import SIZE, as_json, echo, load_model, print_json
from edgeformer.files.limits import MAX_LAYERS


@click.command(
    name="new",
    epilog="Examples:  edgeformer new my-model --like qwen3-0.6b --layers 12  ·  edgeformer new tiny --like smollm2-135m"
    " --width 384 --vocab 16384",
)
@click.argument("name", type=click.Path(path_type=Path))
@click.option("--like", required=True, help="MODEL to start from: a named spec, a spec file, a config or checkpoint.")
@click.option(
    "--layers",
    type=click.IntRange(1, MAX_LAYERS),
    default=None,
    help="Number of blocks; additional ones continue the pattern.",
)
@click.option("--width", type=SIZE, default=None, help="Hidden size; heads and FFN scale with it unless given.")
@click.option("--heads", type=SIZE, default=None, help="Query heads.")
@click.option("--kv-heads", type=SIZE, default=None, help="Key and value heads.")
@click.option("--head-dim", type=SIZE, default=None, help="Width of a head.")
@click.option("--ffn", type=SIZE, default=None, help="Hidden width of the feed-forward networks.")
@click.option("--vocab", type=SIZE, default=None, help="Size of the vocabulary.")
@click.option("--context", type=SIZE, default=None, help="Maximum sequence length.")
@click.option("--tied/--untied", default=None, help="Whether head and embedding share one table.")
@click.option(
    "--rope-theta", type=click.FloatRange(0, 1e30, min_open=True), default=None, help="Base of the RoPE frequencies."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@as_json
def command(name: Path, like: str, force: bool, as_json: bool, **sizes: object) -> None:
    """Write the spec NAME.json: the architecture of another MODEL with other sizes. Prints remarks for each target."""
    import json

    from edgeformer.advise.advice import advise
    from edgeformer.errors import InputError
    from edgeformer.files.atomic import write_output
    from edgeformer.spec import Sizes, check
    from edgeformer.spec.derive import derive
    from edgeformer.spec.inspection import tree
    from edgeformer.spec.serialization import digest, from_json, to_json
    from edgeformer.weights.costs import costs

    if str(name) == "-":
        raise InputError("NAME must be a file name; `edgeformer spec MODEL` prints a spec on standard output")
    file = name if name.suffix == ".json" else name.with_name(name.name + ".json")
    if file.exists() and not force:
        raise InputError(f"{file} already exists; give another name, or --force to replace it")
    spec = derive(load_model(like, False).spec, Sizes(**sizes))  # type: ignore[arg-type]
    check(spec)
    from_json(to_json(spec))  # checks the limits of a spec file
    found, count = advise(spec), costs(spec)
    write_output(file, json.dumps(to_json(spec), indent=1) + "\n", folders=True)
    if as_json:
        remarks = [{"target": r.target, "remark": r.text} for r in found]
        print_json({"file": str(file), "digest": digest(spec), "parameters": count.parameters, "remarks": remarks})
        return
    echo("\n".join(tree(spec)))
    echo(f"\n{file} written: {count.parameters / 1e6:.1f} M parameters")
    for remark in found:
        echo(f"  {remark.target}: {remark.text}")
    echo(f"train it: edgeformer.build_torch(edgeformer.load({str(file)!r}).spec)")
