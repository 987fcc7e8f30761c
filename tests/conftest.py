"""Eight simulated devices, shape checks on every annotated function, and no rank promotion.

Most of the time of a test goes into compiling: what was compiled is kept on disk for the next run, and
in memory until the end of a module.
"""

import os
import signal

from commands import QUICK  # what several rooms share is beside this file, where pytest looks

os.environ["XLA_FLAGS"] = (
    f"{QUICK} {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.dirname(__file__), "../.pytest_cache/compiled"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("dit", "beartype.beartype")

# A shell starts what it puts in the background with SIGINT ignored, which its children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs():
    """Compiled programs take gigabytes by the end of the suite; few serve two modules."""
    yield
    jax.clear_caches()
