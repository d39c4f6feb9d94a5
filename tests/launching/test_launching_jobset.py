"""The manifest for a Kubernetes cluster: valid for Kubernetes and JobSet, and every word arrives as it was given."""

from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jobset_schema import JobSet
from manifests import expanded, pod_spec, started

from lifecycle.cli.launch import launch
from lifecycle.cli.main import app
from lifecycle.core.config import ConfigError
from lifecycle.core.stopping import RESTART_STATUS
from lifecycle.launching.job import Job, job_name
from lifecycle.launching.jobset import _literal, jobset
from lifecycle.planning.topology import parse_topology

CONFIGS = Path(__file__).parents[2] / "configs"
V5P, H100 = CONFIGS / "llama3_8b_v5p_128.yaml", CONFIGS / "llama3_8b_h100_8.yaml"
BUCKET = "root=gs://bucket/runs"
# what a shell, Kubernetes or YAML could take for its own
HOSTILE = (
    "a b", "it's", '"', "$(rm -rf /)", "$(LIFECYCLE_COORDINATOR)", "$$(HOME)", "`id`", "$HOME", "a\nb", "- x: y",
    "{a: 1}", "#", "&a *b", "!!python/object", "\\", "é→", "%s", "; exit 7", "--help", "", "|", "\ttab", "null", "1e3",
)  # fmt: skip


def a_job(topology: str, **changes: Any) -> Job:
    settings: dict[str, Any] = {"name": "job", "image": "i", "command": ("lifecycle", "run", "c.yaml")} | changes
    return Job(topology=parse_topology(topology), **settings)


def printed(config: Path, *words: str, capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    options.setdefault("claim", "disk")
    launch(config.relative_to(CONFIGS.parent), *words, image="reg/lifecycle:1", **options)
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("config", "words", "options"),
    [
        (V5P, ("topology=v5p:4x4x4", BUCKET), {"claim": None}),
        (V5P, ("topology=v5p:4x4x4*2", "mesh.replica=2", BUCKET), {"claim": None, "spot": True, "queue": "queue"}),
        (V5P, ("topology=v5p:4x4x4", BUCKET), {}),
        (H100, ("topology=h100:8", "root=/shared/runs"), {"claim": "disk", "service_account": "trainer"}),
    ],
)
def test_kubernetes_and_jobset_accept_what_launch_prints(
    config: Path, words: tuple[str, ...], options: dict[str, Any], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(CONFIGS.parent)
    manifest = printed(config, *words, capsys=capsys, **options)
    typed = JobSet.model_validate(manifest)
    assert len(typed.longest_pod_name()) <= 63
    for replicated in typed.spec.replicatedJobs:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": replicated.template.spec}
        for version in ("1.31", "1.34"):
            assert kubernetes_validate.validate(job, version, strict=True) == version
    (container,) = pod_spec(manifest)["containers"]
    given_words = [word for word in words if not word.startswith("topology=")]
    assert container["args"] == ["lifecycle", "run", f"configs/{config.name}", *given_words]


def test_the_validators_find_what_is_wrong() -> None:
    manifest = jobset(a_job("v5p:4x4x4"))
    manifest["spec"]["failurePolicy"]["rules"][0]["name"] = "asked to stop"
    with pytest.raises(ValueError, match="pattern"):
        JobSet.model_validate(manifest)
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["paralellism"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="paralellism"):
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": job}
        kubernetes_validate.validate(whole, "1.34", strict=True)


def test_each_process_has_its_own_number_and_all_the_same_coordinator(tmp_path: Path) -> None:
    manifest = jobset(a_job("v6e:2x4*3"))
    pods = [started(manifest, *pod, tmp_path)[1] for pod in product(range(3), range(2))]
    assert [pod["LIFECYCLE_PROCESS_ID"] for pod in pods] == ["0", "1", "2", "3", "4", "5"]
    assert {pod["LIFECYCLE_NUM_PROCESSES"] for pod in pods} == {"6"}
    # <jobset>-<replicated job>-<job>-<pod>.<subdomain>: the name that JobSet's service gives to process 0
    assert {pod["LIFECYCLE_COORDINATOR"] for pod in pods} == {"job-workers-0-0.job:8476"}
    assert manifest["spec"]["network"]["subdomain"] == "job"


def test_every_word_arrives_as_it_was_given(tmp_path: Path) -> None:
    manifest = jobset(a_job("v6e:2x2", command=("lifecycle", "run", *HOSTILE)))
    again = yaml.safe_load(yaml.safe_dump(manifest, allow_unicode=True))
    assert started(again, 0, 0, tmp_path)[0] == ["run", *HOSTILE]


def test_a_setting_is_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    root = """root='/shared/"$(id)" `id` $(LIFECYCLE_COORDINATOR) $$;
      - #'"""
    manifest = printed(V5P, "topology=v5p:4x4x4", root, capsys=capsys)
    assert started(manifest, 0, 0, tmp_path)[0] == ["run", "configs/llama3_8b_v5p_128.yaml", root]


@given(st.text("$()aA_ b"), st.dictionaries(st.text("aA_", min_size=1), st.text("$(x)"), max_size=3))
def test_kubernetes_expands_nothing_in_a_literal(word: str, variables: dict[str, str]) -> None:
    assert expanded(_literal(word), variables) == word


def test_being_stopped_or_preempted_restarts_everything_without_counting() -> None:
    spec = jobset(a_job("v5p:4x4x4", max_restarts=3))["spec"]
    (job,) = spec["replicatedJobs"]
    fails = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in fails] == ["FailJob", "FailJob"]
    assert fails[0]["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert fails[1]["onExitCodes"]["values"] == [RESTART_STATUS]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    assert spec["failurePolicy"]["maxRestarts"] == 3  # any other failure


def test_spot_nodes_are_asked_for_and_tolerated() -> None:
    spot, plain = (pod_spec(jobset(a_job("v6e:4x4", is_spot=is_spot))) for is_spot in (True, False))
    assert spot["nodeSelector"] == plain["nodeSelector"] | {"cloud.google.com/gke-spot": "true"}
    assert {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"} in spot[
        "tolerations"
    ]


def test_the_grace_time_covers_a_save() -> None:
    """8 billion parameters with AdamW are 96 GB: 6 GB for each of 16 hosts, a minute at 100 MB/s."""
    assert a_job("v5p:4x4x4", state_bytes=12 * 8_000_000_000).grace_s == 60 + 60
    assert a_job("v5p:4x4x4*2", state_bytes=12 * 8_000_000_000).grace_s == 60 + 60  # each slice has a replica
    assert a_job("v6e:1x1").grace_s == 60


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ((BUCKET,), {}, "needs one topology="),
        (("topology=v5p:4x4x8", BUCKET), {}, "mesh.fsdp=128"),
        (("topology=v5p:4x4x4*2", "mesh.fsdp=128", BUCKET), {}, "mesh.replica=2"),
        (("topology=v5p:2x4x8", BUCKET), {}, "no node pool has this shape; there are 2x2x1"),
        (("topology=v6e:8x4", "mesh.fsdp=32", BUCKET), {}, "there are 1x1, 2x2, 2x4"),
        (("topology=v5p:4x4x4",), {}, "root=gs://BUCKET/FOLDER, or root=/shared/FOLDER"),
        (("topology=v6e:1x1", "mesh.fsdp=1"), {"claim": None}, "FOLDER, or --claim CLAIM and root=/shared/FOLDER"),
        (("topology=v5p:4x4x4", "root=/shared/runs"), {"claim": None}, "--claim CLAIM"),
        (("topology=v5p:4x4x4", "root=/shared/../runs"), {"claim": "disk"}, "disk of its own"),
        (("topology=v5p:4x4x4", "pretrain", BUCKET), {}, "expected key=value"),
        (("topology=v5p:4x4x4", BUCKET, "train.pretrain.stepz=1"), {}, "did you mean 'steps'"),
        (("topology=v5p:4x4x4", BUCKET), {"name": "My_job"}, "choose one with --name"),
        (("topology=v5p:4x4x4", BUCKET), {"name": "x" * 45}, "at most 44"),
        (("topology=v5p:4x4x4", BUCKET), {"restarts": -1}, "expected 0 or more"),
    ],
)
def test_what_cannot_run_is_refused_with_the_fix(
    words: tuple[str, ...], options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(ConfigError, match=message):
        printed(V5P, *words, capsys=capsys, **options)
    assert not capsys.readouterr().out


def test_the_command_line_has_the_options_of_the_documentation() -> None:
    words = [
        "launch",
        "c.yaml",
        "topology=v6e:1x1",
        "a=b",
        "--image",
        "i",
        "--spot",
        "--restarts",
        "3",
        "--verb",
        "export",
    ]
    _, bound, _ = app.parse_args([*words, "--claim", "c", "--service-account", "s", "--queue", "q", "--name", "n"])
    assert bound.args == (Path("c.yaml"), "topology=v6e:1x1", "a=b")
    assert bound.kwargs == {
        "image": "i", "spot": True, "restarts": 3, "verb": "export", "claim": "c", "service_account": "s",
        "queue": "q", "name": "n",
    }  # fmt: skip


def test_hosts_are_complete() -> None:
    assert a_job("h100:4").hosts.chips_per_host == 4  # a machine with four
    with pytest.raises(ConfigError, match="topology=h100:16"):
        a_job("h100:12")


@pytest.mark.parametrize("image", ["", "a b", "a\nb"])
def test_an_image_is_one_word(image: str) -> None:
    with pytest.raises(ConfigError, match="--image"):
        a_job("v5p:4x4x4", image=image)


def test_a_config_outside_the_image_is_refused(tmp_path: Path) -> None:
    config = tmp_path / V5P.name
    config.write_bytes(V5P.read_bytes())
    (tmp_path / "models").symlink_to(CONFIGS / "models")
    with pytest.raises(ConfigError, match="name it as in the image"):
        launch(config, "topology=v5p:4x4x4", BUCKET, image="i")


def test_a_runs_name_becomes_a_jobs_name() -> None:
    assert job_name("Llama3_8B run/2") == "llama3-8b-run-2"
