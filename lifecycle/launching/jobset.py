"""A job as a Kubernetes manifest: a JobSet, with one Job per slice and one pod per host.

The JobSet's headless service names every pod, so process 0's address is known beforehand, and each process finds its
number by its Job's index and its own. When one pod ends, its Job and so the JobSet fail, and all pods start again after
the last of the old ones is gone: a job's processes only make sense together. A pod that was asked to stop (status 75),
or whose node is taken away, restarts the job without counting as a failure.

References: github.com/kubernetes-sigs/jobset api/jobset/v1alpha2/jobset_types.go;
kubernetes.io/docs/concepts/workloads/controllers/job (pod failure policy);
docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus (privileged mode) and .../how-to/tpu-multislice.
"""

from typing import Any

from lifecycle.core.stopping import RESTART_STATUS
from lifecycle.launching.hosts import TPU
from lifecycle.launching.job import SHARED, Job

PORT = 8476  # of the coordinator; libtpu has 8471 and 8431, the network between slices 8080
WORKERS = "workers"  # the replicated job
CONTAINER = "lifecycle"
IMAGE_USER = 1000  # of launch/Dockerfile
NODE_POOL = "cloud.google.com/gke-nodepool"
SPOT = "cloud.google.com/gke-spot"
PROCESS_ID = "export LIFECYCLE_PROCESS_ID=$((SLICE_INDEX * HOSTS_PER_SLICE + JOB_COMPLETION_INDEX))"


def jobset(job: Job) -> dict[str, Any]:
    """The manifest, ready for a YAML writer."""
    metadata: dict[str, Any] = {"name": job.name}
    if job.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": job.queue}
    if job.hosts.resource == TPU and job.hosts.num_hosts > 1:
        # A slice of several hosts is a node pool of its own: no other job, or slice of this one, may have a part of it.
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": NODE_POOL}
    spec = {
        "network": {"enableDNSHostnames": True, "subdomain": job.name, "publishNotReadyAddresses": True},
        "failurePolicy": _failure_policy(job),
        "replicatedJobs": [
            {"name": WORKERS, "replicas": job.topology.num_slices, "template": {"spec": _slice(job)}},
        ],
    }
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def _failure_policy(job: Job) -> dict[str, Any]:
    return {
        "maxRestarts": job.max_restarts,
        "restartStrategy": "BlockingRecreate",  # two generations of processes would write to one run
        "rules": [
            {
                "name": "askedToStop",
                "action": "RestartJobSetAndIgnoreMaxRestarts",
                "onJobFailureReasons": ["PodFailurePolicy"],
            }
        ],
    }


def _slice(job: Job) -> dict[str, Any]:
    return {
        "parallelism": job.hosts.num_hosts,
        "completions": job.hosts.num_hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # a pod alone cannot rejoin the others
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [RESTART_STATUS]},
                },
            ]
        },
        "template": {"spec": _pod(job)},
    }


def _pod(job: Job) -> dict[str, Any]:
    tolerations = [{"key": job.hosts.resource, "operator": "Exists"}]
    selector = dict(job.hosts.node_selector)
    if job.is_spot:
        selector[SPOT] = "true"
        tolerations.append({"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"})
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_s,
        "hostNetwork": True,  # the pods' own network costs bandwidth between slices and hosts
        "dnsPolicy": "ClusterFirstWithHostNet",
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [_container(job)],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],  # the default of 64 MiB is too little for NCCL
    }
    if job.service_account is not None:
        pod["serviceAccountName"] = job.service_account
    if job.claim is not None:
        pod["volumes"].append({"name": "shared", "persistentVolumeClaim": {"claimName": job.claim}})
        pod["securityContext"] = {"fsGroup": IMAGE_USER}
    return pod


def _container(job: Job) -> dict[str, Any]:
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if job.claim is not None:
        mounts.append({"name": "shared", "mountPath": SHARED})
    prelude = [PROCESS_ID, 'exec "$@"']  # exec: the signal must reach the program
    container: dict[str, Any] = {"name": CONTAINER, "image": job.image}
    if job.hosts.resource == TPU:  # its driver pins host memory; to raise that limit takes a capability that root has
        prelude.insert(0, "ulimit -l unlimited")
        container["securityContext"] = {"runAsUser": 0, "capabilities": {"add": ["SYS_RESOURCE"]}}
    return container | {
        "command": [_literal(word) for word in ("sh", "-c", "; ".join(prelude), "sh")],
        "args": [_literal(word) for word in job.command],
        "env": _environment(job),
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {job.hosts.resource: job.hosts.chips_per_host}},
        "volumeMounts": mounts,
    }


def _environment(job: Job) -> list[dict[str, Any]]:
    index = "metadata.labels['jobset.sigs.k8s.io/job-index']"
    # where a run in object storage is worked on by all pods together; without, each has a folder (docs/storage.md)
    cache = [{"name": "XDG_CACHE_HOME", "value": f"{SHARED}/cache"}] if job.claim is not None else []
    return [
        *cache,
        {"name": "LIFECYCLE_COORDINATOR", "value": f"{job.name}-{WORKERS}-0-0.{job.name}:{PORT}"},
        {"name": "LIFECYCLE_NUM_PROCESSES", "value": str(job.num_processes)},
        {"name": "HOSTS_PER_SLICE", "value": str(job.hosts.num_hosts)},
        {"name": "SLICE_INDEX", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _literal(word: str) -> str:
    """Keeps Kubernetes from expanding `$(NAME)` in a container's command: `$$` stands for one `$`."""
    return word.replace("$", "$$")
