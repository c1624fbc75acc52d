"""See the head of `unalike.scenes`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .. import pretrained
from ..errors import InputError
from ..multimodal import MADE_HERE
from . import __doc__ as about
from . import folders, model, real, two_tower


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m unalike.scenes", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    for what in ("domains", "functions", "reports", "easy-vqa", "blood"):
        command = commands.add_parser(what)
        command.add_argument("folder", type=Path)
        command.add_argument("--seed", type=int, default=0)
        if what == "domains":
            command.add_argument("--strength", type=float, default=1.0, help="of the styles, 0 to 1")
        if what == "blood":
            command.add_argument("source", type=Path, help="folder with the images and a .csv of boxes")
        else:
            rows = real.EASY_ROWS if what == "easy-vqa" else folders.SHARES
            for part, count in rows.items():
                command.add_argument(f"--{part}", type=int, default=count, help="rows of each client")
        if what != "easy-vqa":
            side = 128 if what == "blood" else model.SIDE
            command.add_argument("--side", type=int, default=side, help="pixels of an image's side")
    for what in ("model", "two-tower"):
        commands.add_parser(what).add_argument("folder", type=Path, nargs="?")
    return parser


def main(arguments: Sequence[str]) -> None:
    """See the head of this package."""
    given = vars(_parser().parse_args(arguments))
    what = given.pop("what")
    if not 0 <= given.get("strength", 0) <= 1:
        raise InputError(f"--strength {given['strength']} is out of range: give 0 to 1")
    for name in ("train", "test", "side"):
        if given.get(name, 1) < 1:
            raise InputError(f"--{name} {given[name]} is out of range: give 1 or more")
    if what in ("model", "two-tower"):
        folder = given["folder"] or pretrained.cache() / MADE_HERE[{"model": "tiny"}.get(what, what)][0]
        (model.write if what == "model" else two_tower.write)(folder)
        return
    write: Mapping[str, Callable[..., Path]] = {
        "domains": folders.write_domains,
        "functions": folders.write_functions,
        "reports": folders.write_reports,
        "easy-vqa": real.write_easy,
        "blood": real.write_blood,
    }
    write[what](**given)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"unalike: {error}")
