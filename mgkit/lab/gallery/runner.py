"""Execution of notebooks, by nbclient."""

import asyncio
from queue import Empty
from typing import Any

from nbclient import NotebookClient

# Seconds after which the client looks for a reply of the kernel by itself
LOOK = 1.0


class Runner(NotebookClient):
    """A `NotebookClient` that does not miss a reply.

    Widgets send messages through the socket on which the client awaits the reply to a cell. A reply that
    arrives at that moment may not be announced (jupyter/nbclient#312), and the client would wait until its
    time limit for a kernel that has long finished. It therefore looks by itself as well.
    """

    async def async_start_new_kernel_client(self) -> Any:
        """Start the kernel's client, as nbclient does; see the class."""
        client = await super().async_start_new_kernel_client()
        client.shell_channel.get_msg = _looking(client.shell_channel.get_msg)
        return client


def _looking(get_msg: Any) -> Any:
    """`get_msg(timeout)` of a channel, awaited in turns of at most LOOK seconds. Raises: Empty, as it."""

    async def get(timeout: float | None = None) -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        end = None if timeout is None else clock() + timeout
        while True:
            left = LOOK if end is None else max(0.0, end - clock())
            try:
                return await get_msg(timeout=min(LOOK, left))
            except Empty:
                if left < LOOK:
                    raise

    return get
