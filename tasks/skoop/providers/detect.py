"""Which provider fits a collected cluster?"""

from tasks.skoop.ipcache import IPCache
from tasks.skoop.providers.generic import GenericProvider
from tasks.skoop.providers.protocol import Provider, Recognised

PROVIDERS: tuple[Provider, ...] = (GenericProvider(),)
"""Providers in the order in which they are asked; the generic one is last and always fits."""


def detect(ipcache: IPCache) -> tuple[Provider, Recognised]:
    """Return the first provider that recognises the cluster, and how it did."""
    for provider in PROVIDERS:
        recognised = provider.recognise(ipcache)
        if recognised is not None:
            return provider, recognised
    raise AssertionError("the last provider fits everything")
