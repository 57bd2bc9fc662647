"""Every test sees 8 simulated CPU devices, and XLA optimizes little; this runs before JAX does."""

import os
from importlib import metadata

import pytest

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
if metadata.version("jaxlib").startswith("0.10."):
    # XLA's older way to compile elementwise programs takes a third of the time. It ends a program
    # with flags that it does not know, as later versions do not know this one.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA's optimizations take longer than the tiny programs of most tests, also in processes of theirs.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Files whose tests take longest: they begin first, so that no worker is left alone with one.
_LONG = ["training/test_cluster", "training/test_loop", "test_errands", "training/test_sweep"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, all tests of a file go to one worker: what they share is compiled and made once."""
    from xdist.scheduler import LoadFileScheduling

    if config.getvalue("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items):
    def place(item):
        names = [i for i, name in enumerate(_LONG) if f"tests/{name}.py" in item.nodeid]
        return names[0] if names else len(_LONG)

    items.sort(key=place)


@pytest.fixture(scope="module")
def optimized():
    """XLA optimizes as it does in real runs: for programs that run longer than they compile."""
    import jax

    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """TFDS directory with ImageNet's data set, of 36 training and 12 validation photographs."""
    from samon_jax.data.photographs import prepare_photographs

    directory = tmp_path_factory.mktemp("photographs")
    prepare_photographs(directory, {"train": 12, "val": 4}, side=96)
    return directory


@pytest.fixture(scope="session")
def photograph_folders(tmp_path_factory):
    """The same photographs as files, one folder a class."""
    from samon_jax.data.photographs import write_folders

    directory = tmp_path_factory.mktemp("folders")
    write_folders(directory, {"train": 12, "val": 4}, side=96)
    return directory
