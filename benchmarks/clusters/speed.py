"""Examples per second of two processes of one device, and of one with two."""

import json
import tempfile
from pathlib import Path

from benchmarks.clusters.small import finish, in_cluster


def speed(epochs: int) -> None:
    """Prints both and their ratio."""
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for processes in (1, 2):
            folder = Path(temporary, str(processes))
            work = ["train", f"--folder={folder}", f"--epochs={epochs}"]
            assert not any(finish(in_cluster(work, processes, 2 // processes)))
            found[processes] = json.loads((folder / "summary.json").read_text())
    one, two = (found[n]["examples_per_second"] for n in (1, 2))
    print(f"1 x 2: {one:.0f}, 2 x 1: {two:.0f} examples/s, {two / one:.0%}")
