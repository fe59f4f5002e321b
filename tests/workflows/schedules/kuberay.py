"""What a RayJob may say, as JSON Schema: names and types of the fields of KubeRay v1.7.0 (ray.io/v1).

There is no package that brings KubeRay's own definitions, whose file is over a megabyte, most of it
pod templates written out. Here are the fields of its reference (docs/reference/api.md at that tag), each
with its type, and nothing beside them is taken. Pod templates are judged by Kubernetes' own schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SWITCH: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
LIST: Schema = {"type": "array"}
ANY: Schema = {"type": "object"}


def record(*required: str, **fields: Schema) -> Schema:
    """An object with these fields and no other."""
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def one_of(*values: str) -> Schema:
    """One of these texts."""
    return {"enum": list(values)}


MANAGERS = one_of("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
HEAD = record(
    "template",
    template=ANY,
    headService=ANY,
    enableIngress=SWITCH,
    ingressOptions=ANY,
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
)
WORKERS = record(
    *("groupName", "template", "minReplicas", "maxReplicas"),
    suspend=SWITCH,
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    priority={"type": "integer"},
    resources=TEXTS,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=ANY,
    scaleStrategy=record(workersToDelete={"type": "array", "items": TEXT}),
    numOfHosts=COUNT,
)
AUTOSCALER = record(
    resources=ANY,
    image=TEXT,
    imagePullPolicy=one_of("Always", "Never", "IfNotPresent"),
    securityContext=ANY,
    idleTimeoutSeconds=COUNT,
    upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    version=one_of("v1", "v2"),
    env=LIST,
    envFrom=LIST,
    volumeMounts=LIST,
    command={"type": "array", "items": TEXT},
    args={"type": "array", "items": TEXT},
)
CLUSTER = record(
    "headGroupSpec",
    upgradeStrategy=record(type=one_of("Recreate", "None")),
    authOptions=record(
        enableK8sTokenAuth=SWITCH, secretName=TEXT, mode=one_of("disabled", "token")
    ),
    suspend=SWITCH,
    managedBy=MANAGERS,
    autoscalerOptions=AUTOSCALER,
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=SWITCH,
    gcsFaultToleranceOptions=ANY,
    historyServerOptions=ANY,
    networkPolicy=ANY,
    tlsOptions=record(enabled=SWITCH),
    headGroupSpec=HEAD,
    rayVersion=TEXT,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
SPEC = record(
    activeDeadlineSeconds={**COUNT, "minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=ANY,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=record(backoffLimit=COUNT),
    managedBy=MANAGERS,
    deletionStrategy=ANY,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    entrypointResources=TEXT,
    entrypointNumCpus=NUMBER,
    entrypointNumGpus=NUMBER,
    ttlSecondsAfterFinished=COUNT,
    preRunningDeadlineSeconds={**COUNT, "minimum": 1},
    shutdownAfterJobFinishes=SWITCH,
    suspend=SWITCH,
)
# A time to live is of a cluster that is shut down.
SPEC["if"] = {
    "properties": {"ttlSecondsAfterFinished": {"minimum": 1}},
    "required": ["ttlSecondsAfterFinished"],
}
SPEC["then"] = {
    "properties": {"shutdownAfterJobFinishes": {"const": True}},
    "required": ["shutdownAfterJobFinishes"],
}
RAY_JOB = record(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayJob"),
    metadata=ANY,
    spec=SPEC,
)


def pod_templates(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates of a RayJob, each as a PodTemplate of Kubernetes' own."""
    cluster = job["spec"].get("rayClusterSpec", {})
    groups = [cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", ())]
    found = [group.get("template") for group in groups]
    for template in (*found, job["spec"].get("submitterPodTemplate")):
        if template is not None:
            named = {"name": "of-a-group"}
            kind = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": named}
            yield {**kind, "template": template}
