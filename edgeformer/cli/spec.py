"""`edgeformer spec`."""

from __future__ import annotations

import click

from edgeformer.cli._common import allow_unread, as_json, load_model, print_json, without_head_option


@click.command(name="spec", epilog="Example:  edgeformer spec models/stdlib-5m > my-model.json")
@click.argument("model")
@allow_unread
@without_head_option
@as_json
def command(model: str, allow_unread_config: bool, without_head: bool, as_json: bool) -> None:
    """Print a model's spec as JSON: a file that every other command takes as MODEL. (--json has no effect here.)"""
    from edgeformer.spec.serialization import to_json

    print_json(to_json(load_model(model, allow_unread_config, without_head=without_head).spec))
