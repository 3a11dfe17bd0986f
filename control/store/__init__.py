"""Durable state of the control plane: `base` says what a store is, `sqlite` is one."""

from control.store.base import Store
from control.store.sqlite import SqliteStore


async def open_store(url: str) -> Store:
    """Opens, or creates, and migrates the store that a URL names (`sqlite:PATH`).

    Raises:
        StoreOpenError: It cannot be opened; the message says why.
    """
    return await SqliteStore.open(url)
