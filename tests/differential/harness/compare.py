"""Compares the two sides of a case, and holds the list of intended differences."""
import fnmatch
import json
import os
import re

LIST = os.path.join(os.path.dirname(__file__), "..", "differences.json")
DOC = os.path.join(os.path.dirname(__file__), "..", "..", "..", "docs", "envoy-differences.md")


def differing(envoy, nuncio, ignore, missing=None):
    """Aspects (or counters) that differ, with what differs of both values."""
    return [(aspect, *narrowed(envoy.get(aspect, missing), nuncio.get(aspect, missing))) for aspect in sorted(set(envoy) | set(nuncio))
            if not any(fnmatch.fnmatch(aspect, pattern) for pattern in ignore) and envoy.get(aspect, missing) != nuncio.get(aspect, missing)]


def brief(value, limit=6000):
    text = json.dumps(value) if not isinstance(value, str) else value
    return text if len(text) <= limit else text[:limit] + "..."


def narrowed(left, right):
    """Of two lists, only what one of them lacks or has at another place, to keep a line readable."""
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        if len(left) == 1:
            return narrowed(left[0], right[0])
        if all(isinstance(item, str) for item in [*left, *right]) and sorted(left) == sorted(right):
            return left, right
        pairs = [(one, two) for one, two in zip(left, right) if one != two]
        if len(pairs) == 1:
            return narrowed(*pairs[0])
        return [one for one, _ in pairs], [two for _, two in pairs]
    if isinstance(left, list) and isinstance(right, list) and all(isinstance(item, str) for item in [*left, *right]):
        return [item for item in left if item not in right], [item for item in right if item not in left]
    if isinstance(left, str) and isinstance(right, str) and "] " in left and "] " in right:
        one, two = left.split("] "), right.split("] ")
        if len(one) == len(two):
            pairs = [(a, b) for a, b in zip(one, two) if a != b]
            return "] ".join(a for a, _ in pairs), "] ".join(b for _, b in pairs)
    return left, right


def fits(expected, value):
    """Whether a value is the expected one. A string that begins with "~ " is a regular expression for the whole text of the value."""
    if isinstance(expected, str) and expected.startswith("~ "):
        return re.fullmatch(expected[2:], value if isinstance(value, str) else json.dumps(value), re.DOTALL) is not None
    return expected == value


class Differences:
    """The intended differences. An entry names its reason (a heading of docs/envoy-differences.md), its cases, and for each aspect or counter
    that differs what Envoy and what Nuncio does, narrowed to what differs; a case that does anything else fails. Every case differs in every
    aspect of its entry, or the entry is stale."""

    def __init__(self, bare=False):
        with open(LIST) as file:
            entries = [] if bare else json.load(file)
        with open(DOC) as file:
            headings = {line.strip("# \n") for line in file if line.startswith("#")}
        self.problems = [f"differences.json: {entry['reason']!r} is no heading of docs/envoy-differences.md"
                         for entry in entries if entry["reason"] not in headings]
        self.pairs = {}
        for entry in entries:
            for case in entry["cases"]:
                for aspect, pair in entry["differs"].items():
                    if (case, aspect) in self.pairs:
                        self.problems.append(f"differences.json: {case} [{aspect}] is there twice")
                    self.pairs[(case, aspect)] = pair
        self.ran_cases, self.used = set(), set()
        self.aspects = {}
        for case, aspect in self.pairs:
            self.aspects.setdefault(case, set()).add(aspect)

    def expected(self, case):
        """The aspects in which a case is to differ."""
        return self.aspects.get(case, set())

    def excuses(self, case, aspect, left, right):
        """Whether a difference is the one that is intended."""
        pair = self.pairs.get((case, aspect))
        return pair is not None and fits(pair[0], left) and fits(pair[1], right)

    def intended(self, case, aspect, left, right):
        """As `excuses`, and notes that the entry is in use."""
        # An aspect that differs in another way is told as a failure, not as an entry that is out of date.
        if (case, aspect) in self.pairs:
            self.used.add((case, aspect))
        return self.excuses(case, aspect, left, right)

    def ran(self, case):
        """Notes that a case ran, so that an entry for it that excuses nothing is known to be stale."""
        self.ran_cases.add(case)

    def stale(self):
        return sorted(pair for pair in set(self.pairs) - self.used if pair[0] in self.ran_cases)
