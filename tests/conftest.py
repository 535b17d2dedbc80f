"""Sets up every test run: eight virtual CPU devices, kept compiled programs, and an own cache."""

import os

import jax
import pytest
import submitit  # noqa: F401  It closes all log handlers at its first import. Here none exist yet.
import tiny_runs
from hypothesis import settings
from places import HELPERS

from tddpo_jax.losses.catalogue import LOSSES, shared_losses
from tddpo_jax.models.attention import kernels
from tddpo_jax.system.cache import cache_folder

XLA_CACHE = cache_folder() / "xla"
WITHOUT_TORCH = HELPERS / "without_torch"

# Tests spend most of their time compiling, so compiled programs are kept for later runs. The
# environment variable is for the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(XLA_CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# A collective blocks a thread for each of its devices. With one thread per device, eight devices on
# two cores have waited for each other for ever.
os.environ.setdefault("NPROC", "32")

# Arrays of different rank may fit by accident, so the axes that one of them lacks are written out,
# in the processes that tests start as well.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
jax.config.update("jax_numpy_rank_promotion", os.environ["JAX_NUMPY_RANK_PROMOTION"])

# This must come before anything asks for a device. Tests on several devices are never skipped.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# A first call compiles, so there is no deadline. Every run tests the same examples.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory):
    """Gives every run an empty cache, so that it uses no data or log-probs of earlier runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDDPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def commands_without_torch():
    """Hides PyTorch from the processes that tests start, because the commands do not need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(WITHOUT_TORCH), prepend=os.pathsep)
        yield


@pytest.fixture(autouse=True, scope="module")
def losses_of_one_module():
    """Forgets the losses that the tests of a module read from files or mixed."""
    yield
    for name in LOSSES.keys() - shared_losses().keys():
        del LOSSES[name]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny model and a few pairs, as files."""
    return tiny_runs.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def one_device(monkeypatch):
    """Makes runs without mesh settings use one device and not all eight."""
    tiny_runs.use_devices(monkeypatch, 1)


@pytest.fixture
def kernels_anywhere(monkeypatch):
    """Replaces both attention kernels by plain implementations, which take any dtype.

    Returns:
        The list of calls, each with the kernel's name and options.
    """
    tokamax = pytest.importorskip("tokamax")
    calls = []

    def plain(module, name, of):
        function = getattr(module, of)

        def attend(*args, **options):
            calls.append((name, options))
            return function(*args, **{**options, "implementation": "xla"})

        monkeypatch.setattr(module, of, attend)

    plain(tokamax, "tokamax", "dot_product_attention")
    plain(jax.nn, "cudnn", "dot_product_attention")
    monkeypatch.setattr(kernels, "_check_dtype", lambda kernel, dtype: None)
    return calls
