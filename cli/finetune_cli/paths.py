"""Paths of the API server, and the labels of the operator's objects."""

GROUP = "finetune-operator.io"
API_VERSION = f"{GROUP}/v1alpha1"
LABEL_JOB = f"{GROUP}/job"
LABEL_KIND = f"{GROUP}/kind"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_READS = f"{GROUP}/reads"
"""Label of the pods that this program creates: the job whose workspace they read. They have none of the operator's."""
CONTAINER = "trainer"


def jobs(namespace: str | None, name: str = "") -> str:
    """FineTuneJobs of a namespace, or of all namespaces."""
    return _path(f"/apis/{API_VERSION}", namespace, "finetunejobs", name)


def pods(namespace: str | None, name: str = "") -> str:
    """Pods."""
    return _path("/api/v1", namespace, "pods", name)


def core(resource: str, namespace: str | None = None, name: str = "") -> str:
    """Any other resource of the core group."""
    return _path("/api/v1", namespace, resource, name)


def _path(prefix: str, namespace: str | None, resource: str, name: str) -> str:
    inside = f"/namespaces/{namespace}" if namespace else ""
    return f"{prefix}{inside}/{resource}" + (f"/{name}" if name else "")
