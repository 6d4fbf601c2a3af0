"""`edgeformer cache`."""

from __future__ import annotations

import datetime

import click

from edgeformer.cli._common import as_json, echo, print_json, size


@click.command(
    name="cache",
    epilog="Examples:  edgeformer cache  ·  edgeformer cache --clean --older-than 30 --dry-run  ·  edgeformer cache --json",
)
@click.option("--clean", is_flag=True, help="Delete the entries; unfinished runs only with --part runs.")
@click.option("--dry-run", is_flag=True, help="With --clean: show what would be deleted without deleting it.")
@click.option(
    "--older-than",
    type=click.FloatRange(0, 1e6),
    default=0.0,
    metavar="DAYS",
    help="Only entries unused for this long.",
)
@click.option("--part", "parts", multiple=True, help="Only this part: artefacts, kernels, runs, models, web, crashes.")
@as_json
def command(clean: bool, dry_run: bool, older_than: float, parts: tuple[str, ...], as_json: bool) -> None:
    """List the entries of the cache folder, or delete them.

    EDGEFORMER_CACHE moves the cache to another folder.
    """
    import time

    from edgeformer.errors import InputError
    from edgeformer.files import cache

    if unknown := sorted(set(parts) - cache.PARTS.keys()):
        raise InputError(f"the cache has no part {', '.join(unknown)}; its parts are {', '.join(cache.PARTS)}")
    # unfinished runs are the only entries that can't be recreated: they are deleted only when named
    wanted = parts or tuple(p for p in cache.PARTS if not (clean and p == "runs"))
    limit = time.time() - older_than * 86400
    found = [e for e in cache.entries() if e.part in wanted and e.used <= limit]
    if dry_run and not clean:
        raise InputError("--dry-run needs --clean")
    if clean and not dry_run:
        try:
            found = cache.clean(parts=wanted, older_than_days=older_than)
        except OSError as e:
            raise InputError(f"can't delete {e.filename}: {e.strerror}") from e
    total = sum(e.bytes for e in found)
    if as_json:
        rows = [{"part": e.part, "path": str(e.path), "bytes": e.bytes, "used": e.used} for e in found]
        print_json(
            {
                "folder": str(cache.cache_folder("artefacts").parent),
                "entries": rows,
                "bytes": total,
                "deleted": clean and not dry_run,
            }
        )
        return
    for entry in found:
        used = datetime.datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        echo(f"{entry.part:<10} {size(entry.bytes):>10}  {used}  {entry.path}")
    verb = "would be deleted" if dry_run else "deleted" if clean else "in"
    echo(f"{len(found)} entries, {size(total)} {verb} {cache.cache_folder('artefacts').parent}")
