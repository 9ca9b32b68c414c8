"""`ioptim compare RUN RUN...`: several runs side by side."""

from __future__ import annotations

import argparse

from ioptim.commands._common import home_of, print_json, writing
from ioptim.errors import ExitCode
from ioptim.report import compare, comparison_page
from ioptim.tracking import local


def main(args: argparse.Namespace) -> ExitCode:
    home = home_of(args)
    comparison = compare([local.read_run(home, run) for run in args.runs])
    if args.html:
        page = comparison_page(comparison)
        with writing(args.html):
            args.html.write_text(page, encoding="utf-8")
    if args.json:
        print_json(comparison.to_json())
    else:
        print(comparison.to_text())
    return ExitCode.PASS
