"""JobSet's own fields (jobset.x-k8s.io/v1alpha2), typed from their published Go source, read in November 2026 at commit
08dfbdfd: github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go, and pkg/webhooks/jobset_webhook.go for
what the API server checks beyond types. Fields that the Go types do not have are rejected; a Job's own are checked by
`kubernetes-validate`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

type DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]  # RFC 1035
type RuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", max_length=128)]
type Action = Literal[
    "FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob", "RestartJobAndIgnoreMaxRestarts"
]
type JobFailureReason = Literal[
    "BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"
]
type Int32 = Annotated[int, Field(ge=0, lt=2**31)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Strict):
    name: DnsLabel
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Network(Strict):
    enableDNSHostnames: bool | None = None
    subdomain: DnsLabel = "x"
    publishNotReadyAddresses: bool | None = None


class FailurePolicyRule(Strict):
    name: RuleName
    action: Action
    onJobFailureReasons: list[JobFailureReason] = []
    onJobFailureMessagePatterns: list[str] = []
    targetReplicatedJobs: list[str] = []


class FailurePolicy(Strict):
    maxRestarts: Int32 = 0
    restartStrategy: Literal["Recreate", "BlockingRecreate", "InPlaceRestart"] = "Recreate"
    rules: list[FailurePolicyRule] = []


class SuccessPolicy(Strict):
    operator: Literal["All", "Any"]
    targetReplicatedJobs: list[str] = []


class DependsOn(Strict):
    name: str
    status: Literal["Ready", "Complete"]


class Coordinator(Strict):
    replicatedJob: str
    jobIndex: int = 0
    podIndex: int = 0


class JobTemplate(Strict):
    metadata: dict[str, Any] = {}
    spec: dict[str, Any]  # batch/v1 JobSpec


class ReplicatedJob(Strict):
    name: DnsLabel
    groupName: DnsLabel = "default"
    template: JobTemplate
    replicas: Int32 = 1
    dependsOn: list[DependsOn] = []


class Spec(Strict):
    replicatedJobs: list[ReplicatedJob] = Field(min_length=1)
    network: Network | None = None
    successPolicy: SuccessPolicy | None = None
    failurePolicy: FailurePolicy | None = None
    suspend: bool | None = None
    coordinator: Coordinator | None = None
    managedBy: str | None = None
    ttlSecondsAfterFinished: Int32 | None = None


class JobSet(Strict):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: Spec

    def longest_pod_name(self) -> str:
        """The name of the last pod, with the random suffix that the API server checks for."""
        job = self.spec.replicatedJobs[-1]
        return f"{self.metadata.name}-{job.name}-{job.replicas - 1}-{job.template.spec['completions'] - 1}-abcde"
