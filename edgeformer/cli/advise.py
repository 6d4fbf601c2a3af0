"""`edgeformer advise`."""

from __future__ import annotations

import click

from edgeformer.cli._common import allow_unread, as_json, echo, load_model, print_json


@click.command(
    name="advise", epilog="Examples:  edgeformer advise smollm2-135m  ·  edgeformer advise my-model.json --json"
)
@click.argument("model")
@allow_unread
@as_json
def command(model: str, allow_unread_config: bool, as_json: bool) -> None:
    """Report what MODEL's sizes cost on each target, and which sizes would be better: before it is trained."""
    from edgeformer.advise.advice import advise

    found = advise(load_model(model, allow_unread_config).spec)
    if as_json:
        print_json([{"target": r.target, "remark": r.text} for r in found])
        return
    for target in dict.fromkeys(r.target for r in found):
        echo(target)
        for remark in found:
            if remark.target == target:
                echo(f"  - {remark.text}")
    if not found:
        echo("no remarks: every target has fast kernels for these sizes")
