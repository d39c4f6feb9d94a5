"""One environment for the whole suite: the CPU as eight virtual devices, and as many processes as the machine feeds.

JAX reads the environment when it is first imported, and every process that a test starts inherits it.

LLVM's optimiser is off: on the suite's tiny arrays it saves nothing and takes half of all CPU time (a training run of
10 steps: 6.7 CPU seconds with it, 3.1 without). XLA's own passes, the partitioner among them, are those of any run.
"""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
PROCESS_BYTES = 4 << 30  # what one of the suite's processes and its children hold at most
MANY_MAPPINGS = 30_000
MAX_PROCESSES = 8  # more of them wait for the longest file
BYTECODE = Path(__file__).parents[1] / ".pytest_cache" / "bytecode"
# What starts first: a whole life cycle, which others wait for; then the rooms whose files take longest,
# or one process ends long after the others.
FIRST = ("endtoend/test_endtoend_chain.py", "multidevice", "planning", "endtoend", "training", "kernels")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if FLAGS not in os.environ.get("XLA_FLAGS", ""):  # a worker has its parent's
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):  # every child would compile JAX's sources anew
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(BYTECODE)
    sys.dont_write_bytecode = False
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a session's processes compile a program once between them
    compiled = tempfile.TemporaryDirectory(prefix="lifecycle-compiled-")  # removed when this process ends
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
gc.set_threshold(50_000)  # tracing makes many objects that stay: collecting was 3 % of the suite's CPU time
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("suite", deadline=None)  # wall time on a busy machine says nothing of the code
settings.load_profile("suite")

pytest_plugins = ("tests.array_shapes", "tests.artifacts", "tests.object_stores", "tests.website")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For the whole suite, one process per core that memory allows; none but this one for files named by hand.

    One more than cores is no faster: the gate took 982 s with three on two cores, 939 with two.
    """
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return 0
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    processes = min(os.cpu_count() or 1, memory_bytes // PROCESS_BYTES, MAX_PROCESSES)
    return processes if processes > 1 else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps a file's tests in one process, where they share compiled programs, but not slow life cycles, which share
    none; and starts with the longest rooms."""
    items.sort(key=_rank)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            is_alone = item.get_closest_marker("slow") is not None and item.path.parent.name == "endtoend"
            item.add_marker(pytest.mark.xdist_group(item.nodeid if is_alone else item.path.name))


def pytest_collection_finish(session: pytest.Session) -> None:
    """pytest 9.2 ignores the groups of pytest-xdist 3.8: a file's tests would compile everything in each process."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert all("@" in item.nodeid for item in session.items), "pytest-xdist does not group tests by their marks"


def _rank(item: pytest.Item) -> int:
    """The place in `FIRST` of what an item belongs to."""
    path = item.path.relative_to(Path(__file__).parent).as_posix()
    return next((rank for rank, start in enumerate(FIRST) if path.startswith(start)), len(FIRST))


@pytest.fixture(scope="module")
def layers_in_a_loop() -> Iterator[None]:
    """In a whole file, layers are a loop, as on accelerators; a CPU's unrolled ones take twice as long to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifecycle.model.decoder.CPU_UNROLLED_LAYERS", 0)
        yield


@pytest.fixture(scope="session", autouse=True)
def chunks_of_one_size() -> Iterator[None]:
    """An engine compiles one prefill program, not three: each takes more than a second, and chunks of one size are
    computed as those of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifecycle.inference.chunks.CPU_BUCKETS", (128,))
        if "lifecycle.inference.state" in sys.modules:
            patch.setattr("lifecycle.inference.state.CPU_BUCKETS", (128,))
        yield


@pytest.fixture(scope="module")
def chunks_of_two_sizes(chunks_of_one_size: None) -> Iterator[None]:
    """In a whole file, an engine cuts prompts into chunks of two sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifecycle.inference.state.CPU_BUCKETS", (16, 128))
        yield


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
    """Forgets compiled programs once there are many: each has mappings of its own, of which Linux allows a process
    65,530 (`vm.max_map_count`), and with the next one LLVM aborts."""
    yield
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > MANY_MAPPINGS:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this session share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long bytes are named after their argument: archives and mails have times and random marks in them, and the
    processes that run the tests have to agree on their names."""
    return argname if isinstance(val, bytes) and len(val) > 40 else None
