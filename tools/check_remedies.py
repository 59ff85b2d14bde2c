#!/usr/bin/env python3
"""Takes the remedies out of the ledger, one at a time, and sees that a test fails for each.

    tools/check_remedies.py [NAME...]

A remedy is a line or two of csrc/core that keeps a trap from snapping; each is described in the
table below with what the code would be without it, and the test program of tests/core that must
notice. Works on copies; ends with a table, and with 1 if a test did not notice. What lies in the
order of steps between processes is not here: tests/model has broken variants of its own.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300


@dataclass(frozen=True)
class Remedy:
    """What the code has, what it would be without, and who notices."""

    trap: str
    file: str
    remedy: str
    without: str
    test: str


REMEDIES = {
    "dont-fork": Remedy(
        "a forked child keeps its dead parent's lock alive",
        "ledger_file.c",
        "madvise(base, map->size, MADV_DONTFORK) < 0",
        "false",
        "test_ledger_processes",
    ),
    "wipe-on-fork": Remedy(
        "a forked child takes its parent's holds for its own",
        "ledger_attach.c",
        "madvise(memory, sizeof(pm_ledger_state), MADV_WIPEONFORK) == 0;",
        "true;",
        "test_ledger_processes",
    ),
    "no-fork-while-attaching": Remedy(
        "a child that is forked while a slot is taken keeps the lock's descriptor",
        "ledger_attach.c",
        "pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0",
        "((void)before_fork, (void)after_fork_in_parent, (void)after_fork_in_child, true)",
        "test_ledger_processes",
    ),
    "retired-slots": Remedy(
        "a generation that wraps brings dead holders back to life",
        "ledger_attach.c",
        "if (generation >= PM_GENERATION_MAX) {",
        "if (false) {",
        "test_ledger_processes",
    ),
    "heirs": Remedy(
        "whoever lent on loses the port when its heir is gone",
        "ledger.c",
        "return pm_ledger_is_other(state, heir) ? heir : find_other_heir(state, entry);",
        "return pm_ledger_is_other(state, heir) ? heir : 0 * find_other_heir(state, entry);",
        "test_ledger_lend",
    ),
    "heirs-are-kin": Remedy(
        "a port is lent beside somebody who lent on to another child",
        "ledger_lend.c",
        "if (!pm_ledger_is_ancestor(state, halves[i])) {\n                return false;",
        "if (!pm_ledger_is_ancestor(state, halves[i])) {\n                continue;",
        "test_ledger_lend",
    ),
    "owner-left": Remedy(
        "an heir cannot lend on when its owner gave the port back",
        "ledger.c",
        "owner == state->half ? owner | PM_LEFT : owner",
        "owner == state->half ? 0 : owner",
        "test_ledger_lend",
    ),
    "tag-of-owner": Remedy(
        "a port is lent under a name that a dead owner had for it",
        "ledger.c",
        "uint64_t tag = key ^ ((owner & ~PM_LEFT) * UINT64_C(0x9e3779b97f4a7c15));",
        "uint64_t tag = key + 0 * owner;",
        "test_ledger_lend",
    ),
    "unknown-lives": Remedy(
        "a query that fails passes for a death",
        "ledger_attach.c",
        "return true; /* not known */",
        "return false;",
        "test_ledger_processes",
    ),
    "our-descriptor": Remedy(
        "a descriptor that was closed and is another file's says that nobody lives",
        "ledger_attach.c",
        "if (locked || pm_ledger_file_state(&state->map, asking.fd, NULL) <= PM_FILE_CHANGED) {",
        "if (true) {",
        "test_ledger_processes",
    ),
    "allocated-blocks": Remedy(
        "a full disk is a signal at the first access",
        "ledger_file.c",
        "error = posix_fallocate(fd, 0, (off_t)ledger_size(slots));",
        "error = ftruncate(fd, (off_t)ledger_size(slots)) < 0 ? errno : 0;",
        "test_ledger_file",
    ),
    "size": Remedy(
        "a file that was cut short is a signal at the next access",
        "ledger_attach.c",
        "size >= 0 && (size_t)size == state->map.size",
        "size > -2",
        "test_ledger_file",
    ),
    "identity": Remedy(
        "a process goes on with a file that others do not find",
        "ledger_file.c",
        "return status.st_nlink > 0 && (size_t)status.st_size == map->size",
        "return (size_t)status.st_size == map->size",
        "test_ledger_file",
    ),
    "name": Remedy(
        "a process goes on with a file that was renamed",
        "ledger_attach.c",
        "if (!pm_ledger_file_is_named(&state->map)) {",
        "if (false) {",
        "test_ledger_file",
    ),
    "published-again": Remedy(
        "what is held is not in the ledger that takes a removed one's place",
        "ledger_attach.c",
        "        pm_ledger_publish_all(state);\n",
        "",
        "test_ledger_file",
    ),
    "name-in-new-ledger": Remedy(
        "after a loss one port is held under two names in a family",
        "ledger_reclaim.c",
        "tag == pm_ledger_tag(state->locals[port].key, pm_owner_of(word));",
        "tag + port != 0;",
        "test_ledger_lend",
    ),
    "inherited-descriptor": Remedy(
        "a forked child keeps its parent's lost file open",
        "ledger_attach.c",
        "    close_kept(&asking);\n    pm_status status",
        "    pm_status status",
        "test_ledger_processes",
    ),
    "given-up-rights": Remedy(
        "a daemon that closes everything and gives up its rights lets its ports go",
        "ledger_file.c",
        "return status == PM_FORBIDDEN || status == PM_EXHAUSTED ? status : PM_BUSY;",
        "return status == PM_EXHAUSTED ? status : PM_BUSY;",
        "test_ledger_processes",
    ),
    "other-root": Remedy(
        "a process that changes its root lets its ports go",
        "ledger_file.c",
        "return same_root ? PM_BUSY : PM_FORBIDDEN;",
        "return same_root ? PM_BUSY : PM_BUSY;",
        "test_ledger_processes",
    ),
    "header": Remedy(
        "any file of the right size passes for a ledger",
        "ledger_file.c",
        "got < (ssize_t)sizeof header || memcmp(header.magic, MAGIC, sizeof MAGIC) != 0",
        "got < (ssize_t)sizeof header",
        "test_ledger_file",
    ),
    "slots-checked": Remedy(
        "garbage in a word is an access behind the slots",
        "ledger_attach.c",
        "slot > state->map.slot_count ||",
        "",
        "test_ledger_file",
    ),
    "no-links": Remedy(
        "a planted link leads to another's file",
        "ledger_file.c",
        "*fd = openat(folder, name_in(map->path), O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);",
        "*fd = openat(folder, name_in(map->path), O_RDWR | O_CLOEXEC | O_NONBLOCK);",
        "test_ledger_file",
    ),
    "own-folder": Remedy(
        "a folder that others can write into is trusted",
        "ledger_file.c",
        "if ((status.st_mode & 07777) != 0700) {",
        "if (false) {",
        "test_ledger_file",
    ),
    "settling": Remedy(
        "a service whose process died a moment ago wanders to the next port",
        "take.c",
        "status == PM_BUSY && claim.inherited && taker->settles",
        "false",
        "test_take",
    ),
}


def make(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Build one test program in a copy of the tree, and run it."""
    return subprocess.run(
        ["make", "--no-print-directory", "-C", folder / "tests/core", "run", f"TESTS={test}.c"],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env={**os.environ, "CFLAGS": "-Wno-unused"},
    )


def check(remedy: Remedy) -> str:
    """Without the remedy a test must fail: what it said, or what is wrong with the table."""
    with tempfile.TemporaryDirectory(prefix="remedy-") as name:
        folder = Path(name)
        for part in ("csrc", "tests/core"):
            shutil.copytree(ROOT / part, folder / part)
        source = folder / "csrc/core" / remedy.file
        text = source.read_text()
        if text.count(remedy.remedy) != 1:
            return f"MISSING from {remedy.file}, or there twice"
        source.write_text(text.replace(remedy.remedy, remedy.without))
        try:
            done = make(folder, remedy.test)
        except subprocess.TimeoutExpired:
            return "noticed: the test hung"
        output = done.stdout + done.stderr
        if "[==========]" not in output:
            return "DOES NOT COMPILE without it"
        failed = [line for line in output.splitlines() if line.startswith("[  FAILED  ]")]
        if done.returncode == 0:
            return f"NOT NOTICED by {remedy.test}"
        return f"noticed by {remedy.test}: {failed[0][12:].strip() if failed else 'it crashed'}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(REMEDIES))
    wanted = parser.parse_args().names or list(REMEDIES)
    if unknown := set(wanted) - set(REMEDIES):
        parser.error(f"no such remedy: {', '.join(sorted(unknown))}")
    outcomes = {}
    for name in wanted:
        outcomes[name] = check(REMEDIES[name])
        print(f"{name:<24} {REMEDIES[name].trap}: {outcomes[name]}", flush=True)
    return int(not all(outcome.startswith("noticed") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
