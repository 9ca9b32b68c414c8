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
    rows = [
        {"key": r.key, "step": r.step, "computed": r.computed, "seconds": r.seconds, "model": r.model, "size_bytes": _size(store, r.model)}
        for r in results
    ]
    if args.json:
        print_json(rows)
        return ExitCode.PASS
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:8.1f} MB" if row["model"] else f"{'-':>11}"
        print(f"{row['key'][:12]}  {row['computed'][:19]}  {row['step']:<10} {row['seconds']:8.1f} s {size}")
    print(f"{len(rows)} results in {store.root}")
    return ExitCode.PASS


def _size(store: Store, digest: str | None) -> int:
    return store.model(digest).size_bytes if digest else 0


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
