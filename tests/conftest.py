"""Eight simulated devices, shape checks on every annotated function, and no rank promotion.

Most of the time of a test goes into compiling: what was compiled is kept on disk for the next run, and
in memory until the end of a module.
"""

import ctypes
import gc
import os
import signal
import sys

from compiling import XLA_FLAGS, devices

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {devices(8)}"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR",
    os.path.join(os.path.dirname(__file__), "../.pytest_cache/compiled"),
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest
from jaxtyping import install_import_hook

jax.devices()  # reads XLA_FLAGS, once and for all
# The TPU's compiler, which may come later, ends a process for flags that it does not know.
os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(XLA_FLAGS, "")
jax.config.update("jax_numpy_rank_promotion", "raise")
install_import_hook("dit", "beartype.beartype")
gc.freeze()  # what is imported stays, and tracing makes many small objects and little garbage
gc.set_threshold(100_000, 50, 50)

# A shell starts what it puts in the background with SIGINT ignored, which its children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("first") and any(item.callspec.indices.values()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    gc.freeze()  # nor need the modules of all tests be searched at the end of each


@pytest.fixture(scope="module")
def optimised():
    """For modules that train at length."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def _let_go_of_programs():
    """Compiled programs take gigabytes by the end of the suite; few serve two modules.

    What is freed goes back to the system: ``malloc`` of its own accord keeps nearly all of it.
    """
    yield
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
