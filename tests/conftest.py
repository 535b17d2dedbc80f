"""Every test run: eight virtual CPU devices, programs kept between runs, a cache of its own."""

import os

import jax
import pytest
import submitit  # noqa: F401  When first imported it closes all log handlers, here still none.
import tiny_runs
from hypothesis import settings
from places import HELPERS

from tddpo_jax.models.attention import kernels
from tddpo_jax.system.cache import cache_folder

XLA_CACHE = cache_folder() / "xla"
WITHOUT_TORCH = HELPERS / "without_torch"

# Compilation is most of the time of the tests, so its results outlive the run. The environment is
# for the processes that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(XLA_CACHE))
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

# A thread that takes part in a collective is blocked; with one for each device, eight devices on
# two cores have been seen to wait for each other for ever.
os.environ.setdefault("NPROC", "32")

# Before anything asks for a device: what is tested on several is never skipped.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# A first call compiles, so time says nothing; the same examples every time.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def empty_cache(tmp_path_factory):
    """Tokenised data and reference log-probs of earlier runs must not answer for this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TDDPO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def commands_without_torch():
    """The commands need no PyTorch: what tests start as processes does not find it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(WITHOUT_TORCH), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny model and few pairs, as files."""
    return tiny_runs.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def one_device(monkeypatch):
    """A run that does not say how it is sharded uses one device, not all eight."""
    tiny_runs.use_devices(monkeypatch, 1)


@pytest.fixture
def kernels_anywhere(monkeypatch):
    """The functions of both kernels of attention with plain implementations in the kernels' place.

    They take any dtype. Gives the calls, by kernel and options.
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
