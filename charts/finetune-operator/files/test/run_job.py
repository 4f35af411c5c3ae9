"""Creates the FineTuneJob of `helm test`, prints each change of its status, and deletes it with all that it left.

Runs in the operator's image. The exit code is 0 only if the job has Succeeded.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client import ApiException

GROUP, VERSION, JOBS = "finetune-operator.io", "v1alpha1", "finetunejobs"
ACCOUNT = "finetune-trainer"
OPERATOR = "finetune-operator"
LOOK_SECONDS = 2.0
Place = tuple[str, str, str, str]
"""Group, version, namespace and resource, as the client wants them."""


def main(manifest: Path) -> int:
    """Run the job; 0 if it has Succeeded."""
    config.load_incluster_config()
    job = yaml.safe_load(manifest.read_text(encoding="utf-8"))
    namespace, name = os.environ["NAMESPACE"], job["metadata"]["name"]
    jobs: Any = client.CustomObjectsApi()
    place = (GROUP, VERSION, namespace, JOBS)
    delete(jobs, place, name)
    try:
        jobs.create_namespaced_custom_object(*place, job)
    except ApiException as error:
        print(f"The API server refuses FineTuneJob {namespace}/{name}: {words(error)}", flush=True)
        return 1
    print(f"FineTuneJob {namespace}/{name} is created", flush=True)
    try:
        return 0 if follow(jobs, place, name) == "Succeeded" else 1
    finally:
        delete(jobs, place, name)
        if not jobs.list_namespaced_custom_object(*place)["items"]:
            delete_identity(namespace)


def words(error: ApiException) -> str:
    """What the API server says."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, TypeError, KeyError):
        return str(error)


def follow(jobs: Any, place: Place, name: str) -> str:
    """Print each change until the job has ended. Returns its last phase."""
    shown = ""
    while True:
        status = jobs.get_namespaced_custom_object(*place, name).get("status", {})
        phase: str = status.get("phase", "Pending")
        words = (phase, status.get("reason", ""), status.get("message", ""))
        if (line := ": ".join(word for word in words if word)) != shown:
            print(line, flush=True)
            shown = line
        if phase in ("Succeeded", "Failed"):
            return phase
        time.sleep(LOOK_SECONDS)


def delete(jobs: Any, place: Place, name: str) -> None:
    """Delete the job with its children, and wait until they are gone."""
    try:
        jobs.delete_namespaced_custom_object(*place, name, propagation_policy="Foreground")
        while True:
            jobs.get_namespaced_custom_object(*place, name)
            time.sleep(LOOK_SECONDS)
    except ApiException as error:
        if error.status != 404:
            raise


def delete_identity(namespace: str) -> None:
    """Delete what the operator made for the first job of the namespace."""
    core, rbac = client.CoreV1Api(), client.RbacAuthorizationV1Api()
    for read, remove in (
        (rbac.read_namespaced_role_binding, rbac.delete_namespaced_role_binding),
        (core.read_namespaced_service_account, core.delete_namespaced_service_account),
    ):
        try:
            found: Any = read(ACCOUNT, namespace)
            if (found.metadata.labels or {}).get("app.kubernetes.io/managed-by") == OPERATOR:
                remove(ACCOUNT, namespace)
        except ApiException as error:
            if error.status != 404:
                raise


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
