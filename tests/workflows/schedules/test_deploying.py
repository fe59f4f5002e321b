"""The files for other schedulers: valid by their schemas, and commands that this command line takes."""

from __future__ import annotations

import configparser
import copy
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from stillroom.workflows.cli import app
from stillroom.workflows.schedules.schedule import cron_trigger
from stillroom.workflows.schedules.ticks import next_tick
from tests.workflows.schedules.kuberay import RAY_JOB, pod_templates

DEPLOY = Path(__file__).parents[3] / "docs" / "deploy"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def parsed(line: str) -> Any:
    """The command line as this command line understands it; what it does not take is an error."""
    program, command, *arguments = shlex.split(line)
    assert Path(program).name == "stillroom"
    group: Any = get_command(app)
    context = group.commands[command].make_context(command, arguments)
    assert not [left for left in context.args if left.startswith("-")]
    return context


def at(value: Any, path: str) -> Any:
    """What lies at a path such as spec.template; an AssertionError names what is missing."""
    for part in path.split("."):
        assert part in value, path
        value = value[part]
    return value


KUBERNETES = ("1.30", "1.37")


def must_be_valid(manifest: dict[str, Any], version: str) -> None:
    """By the schemas of that Kubernetes, unknown fields refused, and of KubeRay for its RayJob."""
    if manifest["kind"] != "RayJob":
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    jsonschema.Draft202012Validator(RAY_JOB).validate(manifest)
    for template in pod_templates(manifest):
        kubernetes_validate.validate(template, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", ["rayjob.yaml", "cronjob.yaml", "scheduler.yaml"])
def test_manifests_are_valid_by_their_schemas(name: str, version: str) -> None:
    found = manifests(name)
    assert found
    for manifest in found:
        must_be_valid(manifest, version)


JOB, CLUSTER = "rayjob.yaml", ("spec", "rayClusterSpec")
HEAD = (*CLUSTER, "headGroupSpec")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)
CONTAINER = ("spec", "template", "spec", "containers", 0)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        (JOB, ("spec", "submissionMode"), "JobMode"),
        (JOB, ("spec", "entryPoint"), "stillroom run flow.py"),
        (JOB, ("spec", "backoffLimit"), "2"),
        (JOB, ("spec", "shutdownAfterJobFinishes"), False),  # with a time to live
        (JOB, (*CLUSTER, "workerGroupSpec"), []),
        (JOB, (*CLUSTER, "rayVersion"), 2.6),
        (JOB, (*HEAD, "rayStartParams", "num-cpus"), 0),
        (JOB, (*HEAD, "template", "spec", "container"), []),
        (JOB, (*HEAD, *CONTAINER[1:], "env", 0, "value"), 1),
        (JOB, (*WORKERS, "maxReplicas"), "8"),
        (JOB, (*WORKERS, "minReplicas"), -1),
        (JOB, (*WORKERS, *CONTAINER[1:], "resources", "limit"), {"cpu": "8"}),
        (JOB, (*WORKERS, *CONTAINER[1:], "volumeMounts"), [{"name": "work"}]),
        ("cronjob.yaml", ("spec", "timezone"), "UTC"),
        ("cronjob.yaml", ("spec", "schedule"), 2),
        ("cronjob.yaml", ("spec", "jobTemplate", "spec", "template", "restartPolicy"), "Never"),
        ("scheduler.yaml", ("spec", "replicas"), "1"),
        ("scheduler.yaml", ("spec", "selector", "matchLabel"), {"app": "stillroom"}),
        ("scheduler.yaml", (*CONTAINER, "arguments"), ["serve"]),
    ],
)
def test_what_a_cluster_would_refuse_is_not_valid(
    name: str, path: tuple[str | int, ...], value: Any
) -> None:
    manifest: Any = copy.deepcopy(manifests(name)[0])  # aliases in the file are one object
    at_it = manifest
    for part in path[:-1]:
        at_it[part] = copy.deepcopy(at_it[part])
        at_it = at_it[part]
    at_it[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        must_be_valid(manifest, KUBERNETES[-1])


def test_a_rayjob_runs_the_workflow_on_its_own_cluster() -> None:
    (job,) = manifests("rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert "name" in job["metadata"] or "generateName" in job["metadata"]
    context = parsed(at(job, "spec.entrypoint"))
    assert (context.params["address"], context.params["workers"]) == ("auto", "0-8")
    assert at(job, "spec.shutdownAfterJobFinishes") is True
    assert at(job, "spec.submissionMode") in ("K8sJobMode", "HTTPMode", "SidecarMode")
    cluster = at(job, "spec.rayClusterSpec")
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pins = (DEPLOY.parents[1] / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins
    out = Path(context.params["out"])
    for group in groups:
        assert isinstance(group["rayStartParams"], dict)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = at(group, "template.spec.containers")
        must_be_a_container(container, at(group, "template.spec.volumes"))
        # Every node sees the folder of the run, and the state.
        places = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
        assert any(place in out.parents for place in places)
    (worker,) = cluster["workerGroupSpecs"]
    assert re.fullmatch(r"[a-z0-9-]+", worker["groupName"])
    assert 0 <= worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
    # A pool that grows to N workers needs that many places.
    assert worker["maxReplicas"] >= int(context.params["workers"].split("-")[1])


def must_be_a_container(container: dict[str, Any], volumes: list[dict[str, Any]]) -> None:
    assert container["name"]
    assert container["image"]
    for variable in container.get("env", ()):
        assert isinstance(variable["value"], str), variable  # Kubernetes refuses numbers
    assert {m["name"] for m in container["volumeMounts"]} <= {v["name"] for v in volumes}


def test_a_cronjob_submits_it_and_never_twice() -> None:
    cron, account, role, binding = manifests("cronjob.yaml")
    assert (cron["apiVersion"], cron["kind"]) == ("batch/v1", "CronJob")
    trigger = cron_trigger(at(cron, "spec.schedule"), at(cron, "spec.timeZone"))
    assert next_tick(trigger, 0.0, 0.0) > 0
    assert at(cron, "spec.concurrencyPolicy") == "Forbid"
    pod = at(cron, "spec.jobTemplate.spec.template.spec")
    assert pod["restartPolicy"] in ("Never", "OnFailure")
    (container,) = pod["containers"]
    must_be_a_container(container, pod["volumes"])
    assert container["command"] == ["kubectl", "create", "-f", "/manifest/rayjob.yaml"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert role["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]


def test_the_scheduler_as_a_deployment() -> None:
    (there,) = manifests("scheduler.yaml")
    assert (there["apiVersion"], there["kind"]) == ("apps/v1", "Deployment")
    assert (at(there, "spec.replicas"), at(there, "spec.strategy.type")) == (1, "Recreate")
    labels = at(there, "spec.template.metadata.labels")
    assert at(there, "spec.selector.matchLabels").items() <= labels.items()
    (container,) = at(there, "spec.template.spec.containers")
    must_be_a_container(container, at(there, "spec.template.spec.volumes"))
    parsed(shlex.join(["stillroom", *container["args"]]))


def test_a_systemd_unit() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((DEPLOY / "stillroom.service").read_text())
    service = unit["Service"]
    parsed(service["ExecStart"])
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert unit["Install"]["WantedBy"] == "multi-user.target"
    assert service["Environment"].startswith("STILLROOM_STATE=/")


def test_a_line_for_plain_cron() -> None:
    lines = [
        line for line in (DEPLOY / "crontab").read_text().splitlines() if not line.startswith("#")
    ]
    variable, line = lines
    assert variable.startswith("STILLROOM_STATE=/")
    fields, command = line.split(maxsplit=5)[:5], line.split(maxsplit=5)[5]
    cron_trigger(" ".join(fields), "UTC")
    assert "%" not in command  # cron takes it for the end of the line
    folder, _, run = command.partition(" && ")
    assert folder.startswith("cd /")
    parsed(run.partition(" >>")[0])


@pytest.mark.parametrize("instruction", ["FROM", "RUN", "ENTRYPOINT", "CMD", "STOPSIGNAL"])
def test_a_container(instruction: str) -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{instruction} ")]
    if instruction == "RUN":
        assert ".[report,schedule]" in line
    if instruction == "CMD":
        (entry,) = [line for line in lines if line.startswith("ENTRYPOINT ")]
        parsed(shlex.join([*yaml.safe_load(entry[11:]), *yaml.safe_load(line[4:])]))
