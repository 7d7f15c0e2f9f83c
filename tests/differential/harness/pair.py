"""Runs a setup on both proxies side by side, case by case, and reads what is only true after a while until both say the same."""
import concurrent.futures
import time
import traceback

from . import compare
from .observe import Side
from .validate import Validation

SIDES = ("envoy", "nuncio")
# Seconds that two sides have to come to the same. They only pass where something is wrong.
PATIENCE = 15.0


class Pair:
    """Two sides of one setup; `run` once."""

    def __init__(self, family, setup, differences):
        self.family, self.setup, self.differences, self.patience = family, setup, differences, PATIENCE

    def run(self):
        """{side: ({case name: {aspect: value}}, {counter: value}) or the exception that ended it}."""
        with concurrent.futures.ThreadPoolExecutor(len(SIDES)) as self.pool:
            if isinstance(self.setup, Validation):
                return self.both(self.setup.observe, dict(zip(SIDES, SIDES)))
            sides = {}
            try:
                for name in SIDES:
                    sides[name] = Side(self.setup, name)
                return self.cases(sides)
            finally:
                for side in sides.values():
                    side.stop()

    def both(self, what, sides):
        futures = {name: self.pool.submit(what, side) for name, side in sides.items()}
        results = {}
        for name, future in futures.items():
            try:
                results[name] = future.result()
            except (TypeError, KeyError, AttributeError):
                results[name] = RuntimeError(traceback.format_exc())
            except Exception as error:  # noqa: BLE001  a side that fails is a result
                results[name] = error
        return results

    def cases(self, sides):
        def step(what):
            results = self.both(what, sides)
            return any(isinstance(result, Exception) for result in results.values()), results
        broken, results = step(Side.start)
        for case in self.setup.cases:
            if broken:
                return results
            broken, results = step(lambda side, case=case: side.run(case))
            if not broken and case.close:
                self.agree(case, sides, Side.client)
                broken, results = step(lambda side, case=case: side.close(case))
            if not broken:
                self.agree(case, sides, Side.upstream)
                if any(callable(value) for side in sides.values() for value in side.values[case.name].values()):
                    self.agree(case, sides, Side.client)
                broken, results = step(lambda side, case=case: side.keep(case))
        if not broken:
            broken, results = step(Side.linger)
        if broken:
            return results
        results = self.wait(lambda: self.both(Side.seen, sides), self.same)
        broken, left = step(Side.leave)
        if broken or any(isinstance(result, Exception) for result in results.values()):
            return left if broken else results
        for name, lines in self.wait(lambda: self.both(Side.logs, sides), self.same_logs).items():
            for case, values in lines.items():
                results[name][0][case].update(values)
        return results

    def agree(self, case, sides, read):
        """Waits until both sides of a case are the same in what `read` gives, but for intended differences."""
        name = f"{self.family}/{self.setup.name}/{case.name}"
        ignore = (*self.setup.ignore, *case.ignore)
        self.wait(lambda: self.both(lambda side: read(side, case), sides),
                  lambda values: self.fits(name, values["envoy"], values["nuncio"], ignore))

    def wait(self, read, good):
        deadline = time.monotonic() + self.patience
        while True:
            values = read()
            if any(isinstance(value, Exception) for value in values.values()) or good(values):
                return values
            if time.monotonic() > deadline:
                # What differs will mostly go on differing.
                self.patience = max(self.patience / 4, 0.5)
                return values
            time.sleep(0.03)

    def same(self, values):
        (envoy, envoy_stats), (nuncio, nuncio_stats) = values["envoy"], values["nuncio"]
        return self.same_cases(envoy, nuncio, {"log"}) and self.fits(f"{self.family}/{self.setup.name}/stats", envoy_stats, nuncio_stats, (), (), 0)

    def same_logs(self, values):
        return self.same_cases(values["envoy"], values["nuncio"], ())

    def same_cases(self, envoy, nuncio, later):
        return all(self.fits(f"{self.family}/{self.setup.name}/{case.name}", envoy.get(case.name, {}), nuncio.get(case.name, {}),
                             (*self.setup.ignore, *case.ignore), later) for case in self.setup.cases)

    def fits(self, name, envoy, nuncio, ignore, later=None, missing=None):
        """Whether nothing differs but what is intended. Unless `later` is None, all that is intended must differ, but for the aspects in it
        and those that are not there yet."""
        found = compare.differing(envoy, nuncio, ignore, missing)
        expected = set() if later is None else self.differences.expected(name) - set(later)
        return (all(self.differences.excuses(name, *entry) for entry in found)
                and {aspect for aspect in expected if aspect in envoy or aspect in nuncio} <= {entry[0] for entry in found})
