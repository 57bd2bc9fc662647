"""What compiles here runs once or twice: optimizing it would take longer than it saves."""

import jax
import pytest


@pytest.fixture(autouse=True)
def quick_compilation():
    names = (
        "jax_disable_most_optimizations",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
    )
    before = {name: jax.config.values[name] for name in names}
    jax.config.update(names[0], True)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
