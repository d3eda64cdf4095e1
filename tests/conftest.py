"""Tests run on eight virtual CPU devices, with a persistent compilation cache."""

import importlib.metadata
import os
import pathlib
import signal


def xla_flags(devices: int) -> str:
    """XLA's flags for so many virtual devices. LLVM optimises nothing: most of the tests' time goes
    into compiling programs that run for milliseconds, and this halves it. The older emitters of
    fusions take another third away; XLA ends where it does not know a flag, so they are asked for
    in the versions that are known to have them."""
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    flags.append("--xla_backend_optimization_level=0")
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    return " ".join(flags)


# Before jax starts. NPROC sizes XLA:CPU's thread pool: with more virtual devices than cores, a
# callback can otherwise deadlock with a collective (docs/architecture.md, "Callbacks").
os.environ.setdefault("XLA_FLAGS", xla_flags(8))
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZES = {"train": 30, "val": 7, "test": 8}
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# PyTorch's threads wait for each other by spinning: where cores are shared, most of its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Property tests draw the same examples in every run, so that a red run means a red change; `make
# fuzz` draws others.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, max_examples=100)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("same")


def shared_data() -> pathlib.Path:
    """Real captions, photographs and tokenizers that do not belong in the repository."""
    return pathlib.Path(os.environ.get("HAR_SHARED", ROOT.parent / "shared")) / "data"


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    path = shared_data()
    if not path.is_dir():
        pytest.skip(f"real data is absent: no directory {path} (set HAR_SHARED)")
    return path


@pytest.fixture
def untyped(monkeypatch) -> None:
    """No annotation is checked, as outside of `make types`: of tests that give what is no such
    value, to be refused by our own line."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> pathlib.Path:
    """A small dataset (`data`) and random miniature models (`models/…`) on disk; read only."""
    from tests import workspace

    root = tmp_path_factory.mktemp("workspace")
    workspace.build(root)
    return root


@pytest.fixture
def on_one_device(monkeypatch):
    """For runs and captions whose subject is no mesh: it compiles in a third of the time."""
    from har_jax.loading import captioner
    from har_jax.sessions import assemble
    from har_jax.sharding import MESH_AXES

    auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    one = jax.make_mesh((1, 1, 1), MESH_AXES, axis_types=auto, devices=jax.devices()[:1])
    monkeypatch.setattr(assemble, "choose_mesh", lambda *of: one)
    monkeypatch.setattr(captioner, "make_mesh", lambda: one)


@pytest.fixture
def signals_are_heard():
    """Also where the tests themselves run in the background, which ignores some."""
    names = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in names[1:]:
        signal.signal(name, signal.SIG_DFL)
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture(scope="session")
def small_scenes():
    """[(split, Example)] of seed 3, as many as `SIZES` says."""
    from har_jax.miniature import scenes

    return list(scenes.generate(3, SIZES))
