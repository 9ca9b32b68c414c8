"""`ioptim cache ls|verify|prune`: look after the store."""

from __future__ import annotations

import argparse
from datetime import timedelta

from ioptim.cache import Store
from ioptim.commands._common import home_of, print_json
from ioptim.errors import ExitCode, UnavailableError


def main(args: argparse.Namespace) -> ExitCode:
    root = home_of(args) / "store"
    if not root.is_dir():
        raise UnavailableError(f"there is no store in {root.parent}; a first `ioptim run` makes it, or name its folder with --home")
    return {"ls": _ls, "verify": _verify, "prune": _prune}[args.action](Store(root).create(), args)


def _ls(store: Store, args: argparse.Namespace) -> ExitCode:
    results = list(store.results())
    sizes = [store.model(result.model).size_bytes if result.model else None for result in results]
    if args.json:
        kept = {"key", "step", "computed", "seconds", "model"}
        print_json([r.model_dump(mode="json", include=kept) | {"size_bytes": size} for r, size in zip(results, sizes, strict=True)])
        return ExitCode.PASS
    for result, size in zip(results, sizes, strict=True):
        shown = f"{size / 1e6:8.1f} MB" if size is not None else f"{'-':>11}"
        print(f"{result.key[:12]}  {result.computed[:19]}  {result.step:<10} {result.seconds:8.1f} s {shown}")
    print(f"{len(results)} results in {store.root}")
    return ExitCode.PASS


def _verify(store: Store, args: argparse.Namespace) -> ExitCode:
    wrong = store.verify()
    if args.json:
        print_json({"damaged": wrong})
    for key, problem in wrong.items():
        if not args.json:
            print(f"{key[:12]}: {problem}")
    if not args.json:
        print(f"{len(wrong)} damaged results in {store.root}" + ("; the next run computes them again" if wrong else ""))
    return ExitCode.STEP if wrong else ExitCode.PASS


def _prune(store: Store, args: argparse.Namespace) -> ExitCode:
    count, size = store.prune(timedelta(days=args.older_than), args.dry_run)
    if args.json:
        print_json({"results": count, "bytes": size, "dry_run": args.dry_run})
    else:
        print(f"{'would remove' if args.dry_run else 'removed'} {count} results and {size / 1e6:.1f} MB")
    return ExitCode.PASS
