"""Compares the two sides of a case, and holds the list of intended differences."""
import fnmatch
import json
import os

LIST = os.path.join(os.path.dirname(__file__), "..", "differences.json")
DOC = os.path.join(os.path.dirname(__file__), "..", "..", "..", "docs", "envoy-differences.md")


def differing(envoy, nuncio, ignore):
    """Aspects that differ, with both values."""
    return [(aspect, envoy.get(aspect), nuncio.get(aspect)) for aspect in sorted(set(envoy) | set(nuncio))
            if not any(fnmatch.fnmatch(aspect, pattern) for pattern in ignore) and envoy.get(aspect) != nuncio.get(aspect)]


def brief(value, limit=900):
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


class Differences:
    """The intended differences. An entry names its reason (a heading of docs/envoy-differences.md), aspects and cases; every case differs in
    every aspect of its entry, or the entry is stale."""

    def __init__(self):
        with open(LIST) as file:
            entries = json.load(file)
        with open(DOC) as file:
            headings = {line.strip("# \n") for line in file if line.startswith("#")}
        self.problems = [f"differences.json: {entry['reason']!r} is no heading of docs/envoy-differences.md"
                         for entry in entries if entry["reason"] not in headings]
        self.pairs = {(case, aspect) for entry in entries for case in entry["cases"] for aspect in entry["aspects"]}
        self.ran_cases, self.used = set(), set()

    def intended(self, case, aspect):
        if (case, aspect) in self.pairs:
            self.used.add((case, aspect))
            return True
        return False

    def ran(self, case):
        """Notes that a case ran, so that an entry for it that excuses nothing is known to be stale."""
        self.ran_cases.add(case)

    def stale(self):
        return sorted(pair for pair in self.pairs - self.used if pair[0] in self.ran_cases)
