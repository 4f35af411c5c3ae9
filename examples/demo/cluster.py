"""The demo on Kubernetes, top to bottom: cluster, images, operator, volumes, job, answers.

A second run finds most of this done. It only creates the job again, under the same name. Everything is in the
namespaces finetune-system (the operator) and finetune-demo.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from examples.demo import ending, volume
from examples.demo.kubectl import DemoError, Kubectl, Pod, helm
from examples.demo.view import View
from tests import cluster as local
from tests import images

OPERATOR_NAMESPACE = "finetune-system"
NAMESPACE = "finetune-demo"
RELEASE = "finetune-operator"
CHART = volume.CHECKOUT / "charts" / "finetune-operator"
CLAIMS_FILE = volume.CHECKOUT / "examples" / "claims.yaml"
RUN_AS = 10001
DEMO_MARK = "installed-by"
LOOK_SECONDS = 2
"""The time between two reads of the job. Each read takes CPU time that the training needs."""


def run(arguments: argparse.Namespace) -> None:
    """The whole demo. Raises DemoError; if the job fails, with the message of the job."""
    context: str | None = arguments.context
    if context is None:
        with step("The local Kubernetes"):
            own = local.up(arguments.name)
        env, place = own.env, volume.RESULTS / own.state.name
        with step("The images"):
            operator, trainer = (images.build_and_push(target, own.state.name) for target in ("operator", "trainer"))
    else:
        env, place = dict(os.environ), volume.RESULTS / f"context-{context.replace('/', '-')}"
        operator, trainer = arguments.operator_image, arguments.trainer_image
        if not operator or not trainer:
            raise DemoError(
                "Your cluster pulls images from a registry. Build them (`make images`), push them to that registry, and"
                "\nname them: make demo CONTEXT=... IMAGE_OPERATOR=registry/name:tag IMAGE_TRAINER=registry/name:tag"
            )
    with step("The operator, with helm"):
        if context is not None:
            refuse_to_overwrite(env, context)
        install(env, context, place, operator, trainer)

    kubectl = Kubectl(env, NAMESPACE, context)
    with step("The model and the data, on a volume"):
        print(f"  unpacking {volume.MODEL} (once)", flush=True)
        models = volume.make()
        prepare(kubectl)
        print(
            "  starting a pod that mounts the volume (the node first pulls the trainer's image: gigabytes)", flush=True
        )
        with kubectl.pod(files_pod(trainer)) as pod:
            load(pod, models)
            remove_earlier(kubectl, pod)

    job = volume.job()
    if arguments.cpu:
        job["spec"]["resources"]["gpusPerNode"] = 0
    name = job["metadata"]["name"]
    print(f"\n$ kubectl apply -f {os.path.relpath(volume.JOB_FILE)}\n", flush=True)
    kubectl.apply(job)
    status = follow(kubectl, name)
    if status["phase"] != "Succeeded":
        logs = by_hand(env, context, f"logs -l finetune-operator.io/job={name} --tail=-1")
        raise DemoError(f"{name} failed: {status.get('reason')}: {status.get('message')}\nShow its logs:\n{logs}")

    with kubectl.pod(files_pod(trainer)) as pod:
        pod.download(f"/workspace/jobs/{name}/reports", place)
        before, after = ask(pod)
    ending.show(place, before, after)
    print(f"\n  The adapter: {status['artifact']['uri']}")
    print(f"  Look around:\n{by_hand(env, context, 'get ftj --output wide')}")
    if context is None:
        print("  The local Kubernetes keeps running. `make cluster-down` stops it and removes its volumes.")


def by_hand(env: dict[str, str], context: str | None, arguments: str) -> str:
    """The command line that runs the same kubectl in a shell."""
    if context is not None:
        return f"  kubectl --context {context} --namespace {NAMESPACE} {arguments}"
    path = env["PATH"].partition(":")[0]
    export = f"  export KUBECONFIG={os.path.relpath(env['KUBECONFIG'])} PATH={path}:$PATH"
    return f"{export}\n  kubectl --namespace {NAMESPACE} {arguments}"


@contextmanager
def step(title: str) -> Iterator[None]:
    """Print a heading, and afterwards the time that the step took."""
    print(f"\n{title}", flush=True)
    began = time.monotonic()
    yield
    print(f"  done  {time.monotonic() - began:.0f} s", flush=True)


def install(env: dict[str, str], context: str | None, place: Path, operator: str, trainer: str) -> None:
    """Install the packed chart, as users do. The GPUs of the local Kubernetes are fake, so its pods may use the CPU."""
    place.mkdir(parents=True, exist_ok=True)
    packed = helm(env, None, "package", str(CHART), "--destination", str(place)).split()[-1]
    settings = {
        **image_values("image", operator),
        **image_values("trainer.image", trainer),
        "trainer.allowCpu": str(context is None).lower(),
        "trainer.progressIntervalSeconds": "5",
        f"podLabels.{DEMO_MARK}": "demo",
    }
    sets = [f"--set={key}={value}" for key, value in settings.items()]
    target = ["upgrade", RELEASE, packed, "--install", "--namespace", OPERATOR_NAMESPACE, "--create-namespace"]
    helm(env, context, *target, "--wait", "--timeout=5m", *sets)


def refuse_to_overwrite(env: dict[str, str], context: str) -> None:
    """Refuse to change an installation that the demo did not make: people may use it."""
    if not helm(env, context, "list", "--short", "--filter", f"^{RELEASE}$", "--namespace", OPERATOR_NAMESPACE).strip():
        return
    values = helm(env, context, "get", "values", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--output=json")
    if DEMO_MARK not in (json.loads(values) or {}).get("podLabels", {}):
        raise DemoError(
            f"{RELEASE} is already installed in namespace {OPERATOR_NAMESPACE} of {context}, and not by the demo."
            "\nApply examples/sft-lora.yaml there yourself, or uninstall it first."
        )


def image_values(key: str, image: str) -> dict[str, str]:
    """An image reference as values of the chart."""
    repository, at, digest = image.partition("@")
    if at:
        return {f"{key}.repository": repository, f"{key}.digest": digest}
    head, colon, tag = image.rpartition(":")
    if not colon or "/" in tag:
        raise DemoError(f"image {image!r} has neither tag nor digest")
    return {f"{key}.repository": head, f"{key}.tag": tag}


def prepare(kubectl: Kubectl) -> None:
    """Create the namespace and the claims. They stay after the demo, because the artifact is on a claim. An existing
    claim is not applied again: it may be larger, and a claim cannot shrink."""
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for claim in claims():
        if kubectl.get("pvc", claim["metadata"]["name"]) is None:
            kubectl.apply(claim)


def claims() -> list[dict[str, Any]]:
    """The claims in examples/claims.yaml."""
    return list(yaml.safe_load_all(CLAIMS_FILE.read_text()))


def files_pod(image: str) -> dict[str, Any]:
    """A pod that only mounts both volumes. It is short-lived, because it may keep other pods from mounting them."""
    names = [claim["metadata"]["name"] for claim in claims()]
    mounted = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in names]
    container = {
        "name": "files",
        "image": image,
        "command": ["sleep", "infinity"],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "models", "mountPath": "/volumes/models"},
            {"name": "workspace", "mountPath": "/workspace"},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    spec = {
        "automountServiceAccountToken": False,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": RUN_AS,
            "runAsGroup": RUN_AS,
            "fsGroup": RUN_AS,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [*mounted, {"name": "tmp", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "demo-files", "namespace": NAMESPACE}, "spec": spec}


def load(pod: Pod, models: Path) -> None:
    """Copy the data to the volume, and the model unless the volume has it."""
    target = f"/volumes/models/{volume.MODEL}"
    present = pod("sh", "-c", f"cat {target}/.complete 2>/dev/null || true")
    if present != volume.stamp(models / volume.MODEL):
        print(f"  copying {volume.MODEL} to the volume (once)", flush=True)
        pod.upload(models / volume.MODEL, target)
    pod.upload(models / "data", "/volumes/models/data")


def remove_earlier(kubectl: Kubectl, pod: Pod) -> None:
    """Delete the job and results of an earlier demo. Otherwise the new job would return them without training."""
    name = volume.job()["metadata"]["name"]
    kubectl("delete", "finetunejob", name, "--ignore-not-found", "--cascade=foreground", "--timeout=180s")
    pod("rm", "-rf", f"/workspace/jobs/{name}")


def follow(kubectl: Kubectl, name: str) -> dict[str, Any]:
    """Show the job until it has ended. Returns its last status."""
    view = View(name)
    while True:
        job = kubectl.get("finetunejob", name)
        if job is None:
            raise DemoError(f"{name} was deleted while it ran")
        status: dict[str, Any] = job.get("status", {})
        ended = status.get("phase") in ("Succeeded", "Failed")
        view.show(status, final=ended)
        if ended:
            return status
        time.sleep(LOOK_SECONDS)


def ask(pod: Pod) -> tuple[str, str]:
    """Ask the base model and the trained model the same question. Returns both answers."""
    pod("sh", "-c", "cat > /tmp/job.yaml", stdin=volume.JOB_FILE.read_bytes())
    command = ["python", "-m", "finetune_trainer", "generate", "--job", "/tmp/job.yaml", "--workspace", "/workspace"]
    command += ["--volume", "models=/volumes/models", "--prompt", volume.QUESTION, "--checkpoint"]
    return pod(*command, "base").strip(), pod(*command, "artifact").strip()
