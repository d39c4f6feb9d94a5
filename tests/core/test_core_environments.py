"""A process's place in its job, from the variables that real launchers set; each set was printed by the launcher itself
or is in the documentation that the comment names."""

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core import tpu_metadata
from lifecycle.core.config import ConfigError
from lifecycle.core.environments import Place, find_place, node_names, tpu_vm
from lifecycle.core.tpu_metadata import fetch_attribute, has_tpu
from tests.web_server import QuietHandler, answering

# Slurm 24.11's `env` in a task of `srun` in a batch script of 2 nodes
SLURM_BATCH = {
    "ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2", "SLURM_NODEID": "0", "SLURM_NPROCS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0", "SLURM_SUBMIT_HOST": "vm", "SLURM_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
SLURM_STEP = SLURM_BATCH | {
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.11", "SLURM_PROCID": "1", "SLURM_SRUN_COMM_HOST": "10.0.0.11",
    "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
# Open MPI 5.0.7's `mpirun -np 2 env`
OPEN_MPI_5 = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2", "OMPI_VERSION": "5.0.7", "PMIX_NAMESPACE": "prterun-vm-3525@1", "PMIX_RANK": "1",
    "PMIX_SERVER_URI41": "prterun-vm-3525@0.0;tcp4://192.0.2.2:53567",
}  # fmt: skip
# Open MPI 4, whose URIs are those in the comment of jax/_src/clusters/ompi_cluster.py
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1,10.108.0.1:34911",
}  # fmt: skip
# GKE's webhook for TPU pods, jax/_src/clusters/cloud_tpu_cluster.py; names of a JobSet's pods in its headless service
TPU_PODS = {
    "TPU_WORKER_HOSTNAMES": "run-slice-1-0.run,run-slice-1-1.run", "TPU_WORKER_ID": "1", "JOB_COMPLETION_INDEX": "1",
    "MEGASCALE_COORDINATOR_ADDRESS": "run-slice-0-0.run:8080", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_NUM_SLICES": "2",
}  # fmt: skip


def place(variables: Mapping[str, str]) -> Place:
    found = find_place({"TPU_SKIP_MDS_QUERY": "1"} | dict(variables))
    assert found is not None
    return found


def at(host: str, job: str) -> str:
    """The address of a job whose launcher tells no port: below the kernel's own ports, and by the job's name."""
    return f"{host}:{20000 + zlib.crc32(job.encode()) % 12000}"


@pytest.mark.parametrize("variables", [
    {}, SLURM_BATCH,  # what a batch script runs without `srun` works alone
    SLURM_STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_NODES": "1"},
    {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"},  # one TPU host on GKE
    {"TPU_WORKER_HOSTNAMES": "WARNING: could not", "TPU_WORKER_ID": "WARNING: could not"},  # after libtpu without TPUs
    {"JOB_COMPLETION_INDEX": "3"},  # of an indexed Job that may be anything
    OPEN_MPI_5 | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    SLURM_STEP | {"LIFECYCLE_DISTRIBUTED": "off"},
    {"LIFECYCLE_COORDINATOR": "10.0.0.1:20000", "LIFECYCLE_NUM_PROCESSES": "1", "LIFECYCLE_PROCESS_ID": "0"},
])  # fmt: skip
def test_these_work_alone(variables: Mapping[str, str]) -> None:
    assert find_place({"TPU_SKIP_MDS_QUERY": "1"} | dict(variables)) is None


def test_slurm() -> None:
    assert place(SLURM_STEP) == Place(at("10.0.0.11", "1.0"), 2, 1, "slurm", {0: "node1", 1: "node2"})
    other = place(SLURM_STEP | {"SLURM_STEP_ID": "1"})
    assert other.address != place(SLURM_STEP).address  # two steps of a job
    without = {name: value for name, value in SLURM_STEP.items() if name != "ENVIRONMENT"}
    assert place(without).address == at("node1", "1.0")  # srun on a login node: its address is not the first node's
    part = place(SLURM_STEP | {"SLURM_JOB_NODELIST": "node[0-2]"})
    assert part.address == at("node1", "1.0")  # a step without the node of the batch script
    one = SLURM_STEP | {"SLURM_STEP_NODELIST": "node1", "SLURM_STEP_NUM_NODES": "1"}
    assert place(one) == Place(at("127.0.0.1", "1.0"), 2, 1, "slurm")
    ours = place(SLURM_STEP | {"LIFECYCLE_COORDINATOR": "10.0.0.11:21000"})  # as launch/slurm.sbatch says
    assert (ours.address, ours.count, ours.index) == ("10.0.0.11:21000", 2, 1)


@pytest.mark.parametrize(("nodes", "names"), [  # the forms in Slurm's manual, checked with `scontrol show hostnames`
    ("node1", ["node1"]), ("n1,n7", ["n1", "n7"]), ("n[001-003,10],m2", ["n001", "n002", "n003", "n10", "m2"]),
    ("r[1-2]n[08-09]", ["r1n08", "r1n09", "r2n08", "r2n09"]), ("gpu-a[3]-x", ["gpu-a3-x"]), ("n[98-101]",
    ["n98", "n99", "n100", "n101"]),
])  # fmt: skip
def test_lists_of_nodes(nodes: str, names: list[str]) -> None:
    assert node_names(nodes) == names


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 7))
def test_a_range_of_nodes_has_each_node_once_in_order(first: int, count: int, width: int) -> None:
    names = node_names(f"n[{first:0{width}}-{first + count - 1:0{width}}]")
    assert [int(name[1:]) for name in names] == list(range(first, first + count))


def test_open_mpi() -> None:
    assert place(OPEN_MPI_5) == Place(at("127.0.0.1", "prterun-vm-3525@1"), 2, 1, "open_mpi")
    assert place(OPEN_MPI_5 | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}).address == at("vm", "prterun-vm-3525@1")
    assert place(OPEN_MPI_4) == Place(at("10.96.0.1", "1531576320.0"), 4, 3, "open_mpi")
    six = "1314521088.0;tcp6://[fe80::b9b:ac5d:9cf0:b858,2620:10d:c083:150e::3000:2]:43370"
    assert place(OPEN_MPI_4 | {"OMPI_MCA_orte_hnp_uri": six}).address.startswith("[fe80::b9b:ac5d:9cf0:b858]:")
    assert place(SLURM_STEP | OPEN_MPI_4).environment == "open_mpi"  # `mpirun` starts its daemons by srun
    unknown = {name: value for name, value in OPEN_MPI_4.items() if name != "OMPI_MCA_orte_hnp_uri"}
    with pytest.raises(ConfigError, match=r"part of a job \(open_mpi\): set LIFECYCLE_COORDINATOR too"):
        place(unknown)


def test_tpu_pods() -> None:
    known = {2: "run-slice-1-0.run", 3: "run-slice-1-1.run"}
    assert place(TPU_PODS) == Place("run-slice-0-0.run:8482", 4, 3, "tpu_pods", known)
    one = {name: value for name, value in TPU_PODS.items() if not name.startswith("MEGASCALE")}
    assert place(one) == Place("run-slice-1-0.run:8482", 2, 1, "tpu_pods", dict(enumerate(known.values())))


# The attributes of a slice's VM: the newer list of addresses, the older one with names; MEGASCALE's lines as JAX reads
# them, jax/_src/clusters/cloud_tpu_cluster.py
VM = {"agent-worker-number": "1", "worker-network-endpoints": "10.128.0.5,10.128.0.6"}
SLICES = {"tpu-env": "ZONE: 'us'\nMEGASCALE_COORDINATOR_ADDRESS: '10.128.0.2:8080'\nMEGASCALE_NUM_SLICES: '2'\n"
          "MEGASCALE_SLICE_ID: '1'\nWORKER_ID: '1'"}  # fmt: skip


def test_tpu_vms() -> None:
    told = tpu_vm({}, VM.get)
    assert told is not None and (told.host, told.port, told.count, told.index) == ("10.128.0.5", 8482, 2, 1)
    named = VM | {"worker-network-endpoints": "t1v-n-0:123:10.128.0.5,t1v-n-1:124:10.128.0.6"}
    assert tpu_vm({}, named.get) == told
    slices = tpu_vm({}, (VM | SLICES).get)
    assert slices is not None and (slices.host, slices.count, slices.index) == ("10.128.0.2", 4, 3)
    assert slices.hosts == {2: "10.128.0.5", 3: "10.128.0.6"}
    assert tpu_vm({}, {}.get) is None
    assert tpu_vm({"TPU_SKIP_MDS_QUERY": "1"}, VM.get) is None


def test_explicit_variables_come_first_and_are_completed() -> None:
    explicit = {"LIFECYCLE_COORDINATOR": "a:1", "LIFECYCLE_NUM_PROCESSES": "8", "LIFECYCLE_PROCESS_ID": "7"}
    assert place(SLURM_STEP | explicit) == Place("a:1", 8, 7, "variables")
    pod = {"LIFECYCLE_COORDINATOR": "run-0-0.run:1", "LIFECYCLE_NUM_PROCESSES": "8", "JOB_COMPLETION_INDEX": "6"}
    assert place(pod) == Place("run-0-0.run:1", 8, 6, "indexed_job")  # of a GPU or CPU JobSet


@pytest.mark.parametrize(("variables", "problem"), [
    ({"LIFECYCLE_COORDINATOR": "a:1"}, "set LIFECYCLE_NUM_PROCESSES and LIFECYCLE_PROCESS_ID too"),
    ({"LIFECYCLE_NUM_PROCESSES": "2", "LIFECYCLE_PROCESS_ID": "0"}, "set LIFECYCLE_COORDINATOR too"),
    ({"LIFECYCLE_COORDINATOR": "a:1", "LIFECYCLE_NUM_PROCESSES": "two"}, "LIFECYCLE_NUM_PROCESSES must be a number"),
    (SLURM_STEP | {"LIFECYCLE_COORDINATOR": "a"}, "LIFECYCLE_COORDINATOR must be HOST:PORT"),
    (SLURM_STEP | {"SLURM_PROCID": "2"}, "process 2 of 2: indices start at 0"),
    ({"LIFECYCLE_DISTRIBUTED": "slrum"}, "no environment 'slrum'; did you mean 'slurm'?"),
    ({"LIFECYCLE_DISTRIBUTED": "slurm"}, "LIFECYCLE_DISTRIBUTED is slurm, whose variables are not set"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused(variables: Mapping[str, str], problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        place(variables)
    assert problem in str(error.value)


def test_one_environment_may_be_chosen() -> None:
    both = SLURM_STEP | OPEN_MPI_4 | {"LIFECYCLE_DISTRIBUTED": "slurm"}
    assert place(both).environment == "slurm"
    explicit = {"LIFECYCLE_COORDINATOR": "10.0.0.1:21000", "LIFECYCLE_NUM_PROCESSES": "2", "LIFECYCLE_PROCESS_ID": "1"}
    assert place(explicit | {"LIFECYCLE_DISTRIBUTED": "slurm"}).environment == "variables"


class Metadata(QuietHandler):
    """A metadata server: as Google's, it wants the header."""

    def do_GET(self) -> None:
        is_asked_well = self.headers.get("Metadata-Flavor") == "Google"
        value = VM.get(self.path.removeprefix("/computeMetadata/v1/instance/attributes/")) if is_asked_well else None
        self.send_response(404 if value is None else 200)
        self.end_headers()
        self.wfile.write((value or "").encode())


@pytest.fixture
def metadata_server() -> Iterator[str]:
    with answering(Metadata) as url:
        yield url.removeprefix("http://")


def test_the_metadata_server_is_asked(metadata_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch_attribute(metadata_server, "agent-worker-number") == "1"
    assert fetch_attribute(metadata_server, "tpu-env") is None


def test_a_metadata_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(ConfigError, match=r"its metadata server 127\.0\.0\.1:9 does not answer"):
        fetch_attribute("127.0.0.1:9", "agent-worker-number")


def test_only_machines_with_a_tpu_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tpu_metadata, "fetch_attribute", lambda *_: pytest.fail("asked"))
    for name, ids in {"network": ("0x1ae0", "0x0042"), "gpu": ("0x10de", "0x0062")}.items():
        (tmp_path / name).mkdir()
        for file, value in zip(("vendor", "device"), ids, strict=True):
            (tmp_path / name / file).write_text(value + "\n")
    assert not has_tpu(tmp_path)
    monkeypatch.setattr(tpu_metadata, "PCI", tmp_path)
    (tmp_path / "network" / "device").write_text("0x0063\n")
    assert has_tpu(tmp_path)
