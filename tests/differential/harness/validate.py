"""Configurations that both proxies must refuse, or both accept, in `--mode validate`."""
import copy
import tempfile
from dataclasses import dataclass

from .config import bootstrap
from .proxy import MEMORY, Proxy
from .setup import Setup


@dataclass
class Offer:
    """One configuration: the arguments of a Setup."""
    name: str
    arguments: dict
    ignore: tuple = ()


class Validation:
    """A table of configurations under one name."""

    def __init__(self, name):
        self.name, self.cases, self.stats, self.ignore = name, [], [], ("words",)

    def offer(self, name, **arguments):
        self.cases.append(Offer(name, arguments))

    def observe(self, side):
        results = {}
        for offer in self.cases:
            proxy = Proxy(side, bootstrap(Setup(offer.name, **copy.deepcopy(offer.arguments))), tempfile.mkdtemp(prefix="nuncio-diff-", dir=MEMORY),
                          Ports(), ())
            try:
                accepted, words = proxy.validate()
                # Words are never the same; they are there to be read beside a difference.
                results[offer.name] = {"accepted": True} if accepted else {"accepted": False, "words": words}
            finally:
                proxy.stop()
        return results, {}


class Ports(dict):
    """Any upstream's port: nothing connects in validation."""

    def __missing__(self, _):
        return 1
