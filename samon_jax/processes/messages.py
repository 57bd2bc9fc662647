"""What the processes of a cluster tell each other, through the coordinator's key-value store."""

import json
import time
from typing import Any

import jax
from jax._src import distributed  # the store has no public name

from samon_jax.processes.watch import PREFIX


def tell(what: str, value: Any) -> None:
    """Process 0 gives all others a value, and waits until they have `hear`d it.

    Args:
      what: it is; the same name can be used again.
      value: as JSON can hold it.
    """
    others = range(1, jax.process_count())
    if not others:
        return
    put(f"tell/{what}", json.dumps(value))
    for process in others:
        wait_for(f"heard/{what}/{process}")
    for process in others:
        client().key_value_delete(f"{PREFIX}/heard/{what}/{process}")
    client().key_value_delete(f"{PREFIX}/tell/{what}")


def hear(what: str) -> Any:
    """What process 0 tells."""
    value = json.loads(wait_for(f"tell/{what}"))
    put(f"heard/{what}/{jax.process_index()}", "")
    while _has(f"tell/{what}"):  # or the next one of this name would be this one
        time.sleep(0.005)
    return value


def collect(what: str, value: Any) -> list[Any] | None:
    """Every process gives process 0 a value; the values of all there, None elsewhere."""
    if jax.process_index() > 0:
        put(f"collect/{what}/{jax.process_index()}", json.dumps(value))
        return None
    values = [value]
    for process in range(1, jax.process_count()):
        values.append(json.loads(wait_for(f"collect/{what}/{process}")))
        client().key_value_delete(f"{PREFIX}/collect/{what}/{process}")
    return values


def client() -> Any:
    """Of the store."""
    return distributed.global_state.client


def put(key: str, value: str) -> None:
    """Writes a value, over an older one if need be."""
    client().key_value_set(f"{PREFIX}/{key}", value, allow_overwrite=True)


def _has(key: str) -> bool:
    try:
        client().key_value_try_get(f"{PREFIX}/{key}")
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" not in str(error):
            raise
        return False
    return True


def wait_for(key: str) -> str:
    """The value of a key as soon as there is one; whoever watches ends the program if need be."""
    while True:
        try:
            return client().blocking_key_value_get(f"{PREFIX}/{key}", 5000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
