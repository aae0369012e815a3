"""`ppap jobs`."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from ppap_framework.cli.output import json_option, print_json, print_table
from ppap_framework.errors import UsageError

__all__ = ["command"]


@click.command("jobs")
@click.argument("folders", metavar="FOLDER...", nargs=-1, type=click.Path(path_type=Path))
@json_option
def command(folders: tuple[Path, ...], as_json: bool) -> None:
    """Show how far jobs are, how fast, and the time that is left.

    These are synthetic sets, trainings and runs in FOLDER, by default runs, and below it. Sets may
    be drawn by several machines; their speeds are added up.

    \b
    ppap jobs runs/synthetic
    """
    import attrs

    from ppap_plugin_machines.jobs import jobs_in

    places = [folder.expanduser() for folder in folders or (Path("runs"),)]
    if missing := [str(place) for place in places if not place.is_dir()]:
        raise UsageError(f"{missing[0]!r} is no folder", hint="give a folder with jobs")
    found = [job for place in places for job in jobs_in(place)]
    if as_json:
        print_json([attrs.asdict(job) for job in found])
        return
    rows = []
    for job in found:
        done = None if job.total is None else f"{job.done} of {job.total} {job.unit}"
        speed = None if job.per_second is None else f"{job.per_second:.3g}"
        left = job.seconds_left and datetime.timedelta(seconds=round(job.seconds_left))
        at_work = sum(worker["lives"] is not False for worker in job.workers) or None
        rows.append((job.folder, job.kind, job.fault or job.status, done, at_work, speed, left))
    print_table(("folder", "job", "status", "done", "workers", "a second", "time left"), rows)
    if not rows:
        click.echo(f"There are no jobs in {' or '.join(map(str, places))}.")
