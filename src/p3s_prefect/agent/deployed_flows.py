"""Deployments of flows, with the events on which they run."""

from __future__ import annotations

import os
import uuid
from typing import Any

from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.events import DeploymentTriggerTypes
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.templating import apply_values
from pydantic import TypeAdapter, ValidationError

from p3s_prefect.agent.deployed_server import DeployedServer, became
from p3s_prefect.core.deployment import Applied, Deployment, differences
from p3s_prefect.core.errors import ServiceError

_TRIGGER: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)
# In a dry run there may be no deployment yet, and its triggers are checked all the same.
_NOT_YET = str(uuid.UUID(int=0))
_TIMES = ("cron", "interval", "rrule", "timezone", "anchor_date", "day_or")


def apply_flow(server: DeployedServer, deployment: Deployment) -> Applied:
    """A deployment, and its triggers.

    Raises:
        ServiceError: its flow cannot be loaded, or its schedules or triggers are not what Prefect takes.
    """
    try:
        flow: Flow[..., Any] = load_flow_from_entrypoint(deployment.entrypoint)
    except Exception as error:  # the module's own code may raise anything
        raise ServiceError(
            f"the flow of the deployment {deployment.name} cannot be loaded from {deployment.entrypoint}: {error}",
            fix="Correct the entrypoint, or install what it needs.",
        ) from error
    chosen = {"deployments": {"name": {"any_": [deployment.name]}}, "flows": {"name": {"any_": [flow.name]}}}
    found = server.one("/deployments/filter", chosen)
    wanted = _wanted(deployment) | {"parameter_openapi_schema": parameter_schema(flow).model_dump(exclude_unset=True)}
    changes = differences(wanted, None if found is None else _comparable(found, wanted))
    if found is None or changes:
        made = server.change("POST", "/flows/", {"name": flow.name})
        content = wanted | {"name": deployment.name, "flow_id": made and made["id"]}
        # There is one of that name: then this changes it.
        found_now = server.change("POST", "/deployments/", content) or found
    else:
        found_now = found
    triggers = _apply_triggers(server, deployment, found_now)
    changes += triggers if found is not None else ()
    return Applied(
        kind="deployment", name=f"{flow.name}/{deployment.name}", became=became(found, changes), changes=changes
    )


def _wanted(deployment: Deployment) -> dict[str, Any]:
    """By the names of Prefect's API. What environment variables name is filled in, as `prefect deploy` does it."""
    filled = apply_values(deployment.model_dump(exclude={"triggers"}), dict(os.environ))
    pool = filled["work_pool"]
    return {
        "entrypoint": filled["entrypoint"],
        "description": filled["description"],
        "tags": filled["tags"],
        "parameters": filled["parameters"],
        "work_pool_name": pool["name"],
        "work_queue_name": pool.get("work_queue_name") or "default",
        "job_variables": pool["job_variables"],
        "concurrency_limit": filled["concurrency_limit"],
        "schedules": [_schedule(deployment, given) for given in filled["schedules"]],
        "pull_steps": [],
    }


def _schedule(deployment: Deployment, given: dict[str, Any]) -> dict[str, Any]:
    times = {key: value for key, value in given.items() if key in _TIMES}
    others = {key: value for key, value in given.items() if key not in _TIMES}
    wrong = f"a schedule of the deployment {deployment.name} is not what Prefect takes"
    fix = "Give each one of cron, interval (seconds) or rrule, and perhaps timezone, slug, active, parameters."
    if not {"cron", "interval", "rrule"} & times.keys():
        raise ServiceError(wrong, fix=fix)
    try:
        made = DeploymentScheduleCreate.model_validate({"schedule": times, **others})
    except ValidationError as errors:
        raise ServiceError(f"{wrong}: {errors.errors()[0]['msg']}", fix=fix) from errors
    return made.model_dump(mode="json", exclude_unset=True)


def _comparable(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """What the server has, without what it fills in by itself."""
    limit = found.get("global_concurrency_limit") or {}
    schedules = [
        {key: _like(schedule.get(key), value) for key, value in like.items()}
        for schedule, like in zip(found["schedules"], wanted["schedules"], strict=False)
    ]
    extra = found["schedules"][len(schedules) :]
    return found | {"concurrency_limit": limit.get("limit"), "schedules": schedules + extra}


def _like(found: Any, wanted: Any) -> Any:
    if isinstance(found, dict) and isinstance(wanted, dict):
        return {key: _like(found.get(key), value) for key, value in wanted.items()}
    # Prefect puts a beginning before a recurrence that has none.
    begun = isinstance(found, str) and isinstance(wanted, str) and found.startswith("DTSTART")
    return wanted if begun and found.endswith(wanted) else found


def _apply_triggers(server: DeployedServer, deployment: Deployment, found: dict[str, Any] | None) -> tuple[str, ...]:
    """Makes a deployment's triggers anew if they are not as they are declared; Prefect cannot tell them apart."""
    deployment_id = _NOT_YET if found is None else str(found["id"])
    owner = f"prefect.deployment.{deployment_id}"
    wanted = [_automation(deployment, number, deployment_id) for number in range(1, len(deployment.triggers) + 1)]
    # Others that run this deployment are related too; Prefect does not say whose one is.
    related = server.ask(f"/automations/related-to/{owner}")
    there = [one for one in related if str(one["name"]).startswith(deployment.name)]
    if _told(there) == _told(wanted):
        return ()
    server.change("DELETE", f"/automations/owned-by/{owner}")
    for one in wanted:
        server.change("POST", "/automations/", one)
    return (f"triggers {len(there)} -> {len(wanted)}",)


def _told(automations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a file can say about automations, in one order; whether one is enabled is left to people."""
    told = [
        {"name": one["name"], "trigger": _plain(one["trigger"]), "actions": _plain(one["actions"])}
        for one in automations
    ]
    return sorted(told, key=lambda one: str(one["name"]))


def _plain(value: Any) -> Any:
    """Without the ids that Prefect gives at random, and what is empty."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if key not in ("id", "owner_resource") and one}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _automation(deployment: Deployment, number: int, deployment_id: str) -> dict[str, Any]:
    given = {"name": f"{deployment.name}__automation_{number}"} | deployment.triggers[number - 1]
    try:
        trigger = _TRIGGER.validate_python(given)
    except ValidationError as errors:
        first = errors.errors()[0]
        raise ServiceError(
            f"trigger {number} of the deployment {deployment.name} is not what Prefect takes: {first['msg']}",
            fix="See https://docs.prefect.io/v3/concepts/event-triggers for its keys.",
        ) from errors
    if not str(given["name"]).startswith(deployment.name):
        fix = f"Begin it with {deployment.name}, by which it is known again."
        raise ServiceError(f"trigger {number} of the deployment {deployment.name} is named {given['name']!r}", fix=fix)
    trigger.set_deployment_id(uuid.UUID(deployment_id))
    return dict(trigger.as_automation().model_dump(mode="json"))
