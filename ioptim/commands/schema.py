"""`ioptim schema`: the JSON schema that editors complete and check recipes with."""

from __future__ import annotations

import argparse
import json

from ioptim.commands._common import writing
from ioptim.errors import ExitCode
from ioptim.recipe import schema


def main(args: argparse.Namespace) -> ExitCode:
    text = json.dumps(schema(), indent=1) + "\n"
    if args.output:
        with writing(args.output):
            args.output.write_text(text)
    else:
        print(text, end="")
    return ExitCode.PASS
