"""A run on an MLflow tracking server, by its REST API (mlflow.org/docs, REST API, version 2.0).

`sender` calls it in the thread of the tracker. Uses the standard library alone: MLflow's own client has thirty
dependencies, a web server among them, and six calls are needed here. Credentials are in MLFLOW_TRACKING_TOKEN, or in
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import base64
import json
import os
import time
from collections.abc import Mapping
from typing import Any
from urllib import error, parse, request

from finetune_api.output import MlflowSpec

from finetune_trainer.reporting.trackers.sender import Refused

TIMEOUT = 15.0
TAG = "finetune-operator.uid"
"""Tag of a run with the uid of its job. A later attempt finds the run by it."""


class Client:
    """The job's run in the experiment: the run of an earlier attempt, or a new run."""

    def __init__(self, spec: MlflowSpec, name: str, uid: str, settings: Mapping[str, object]) -> None:
        self._url = f"{spec.tracking_uri.rstrip('/')}/api/2.0/mlflow/"
        experiment = self._experiment(spec.experiment)
        self._run = self._find_run(experiment, uid) or self._create_run(experiment, name, uid, settings)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = _now()
        metrics = [{"key": key, "value": value, "timestamp": now, "step": step} for key, value in values.items()]
        self._call("runs/log-batch", {"run_id": self._run, "metrics": metrics})

    def close(self, done: bool) -> None:
        """An interrupted run keeps the state RUNNING."""
        if done:
            self._call("runs/update", {"run_id": self._run, "status": "FINISHED", "end_time": _now()})

    def _experiment(self, name: str) -> str:
        query = f"experiments/get-by-name?experiment_name={parse.quote(name, safe='')}"
        try:
            answer = self._call(query)
        except Refused as refused:
            if "RESOURCE_DOES_NOT_EXIST" not in str(refused):
                raise
            try:
                return str(self._call("experiments/create", {"name": name})["experiment_id"])
            except Refused as raced:
                if "RESOURCE_ALREADY_EXISTS" not in str(raced):
                    raise
                answer = self._call(query)  # another job has created it in the meantime
        return str(answer["experiment"]["experiment_id"])

    def _find_run(self, experiment: str, uid: str) -> str | None:
        query = {"experiment_ids": [experiment], "filter": f"tags.`{TAG}` = '{uid}'", "max_results": 1}
        runs = self._call("runs/search", query).get("runs") or []
        if not runs:
            return None
        run = str(runs[0]["info"]["run_id"])
        self._call("runs/update", {"run_id": run, "status": "RUNNING"})
        return run

    def _create_run(self, experiment: str, name: str, uid: str, settings: Mapping[str, object]) -> str:
        tags = [{"key": TAG, "value": uid}]
        body = {"experiment_id": experiment, "run_name": name, "start_time": _now(), "tags": tags}
        run = str(self._call("runs/create", body)["run"]["info"]["run_id"])
        params = [{"key": key, "value": str(value)} for key, value in settings.items()]
        self._call("runs/log-batch", {"run_id": run, "params": params})
        return run

    def _call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST with a body, GET without. Raises Refused for an error that a retry cannot change."""
        headers = {"Content-Type": "application/json", **_authorization()}
        call = request.Request(self._url + path, json.dumps(body).encode() if body is not None else None, headers)
        try:
            with request.urlopen(call, timeout=TIMEOUT) as response:
                answer = json.loads(response.read())
        except error.HTTPError as refused:
            details = refused.read().decode(errors="replace")[:400]
            if refused.code >= 500 or refused.code == 429:
                raise
            raise Refused(f"{refused.code} {details or refused.reason}") from refused
        return answer if isinstance(answer, dict) else {}


def _authorization() -> dict[str, str]:
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN", "").strip():  # files and `echo` end with a line break
        if not (token.isascii() and token.isprintable()):
            raise Refused("MLFLOW_TRACKING_TOKEN contains a line break or a character that is not ASCII")
        return {"Authorization": f"Bearer {token}"}
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    return {}


def _now() -> int:
    return time.time_ns() // 1_000_000
