"""Ingest: layer tables, and batches in both forms. Status 200 means that the data is on disk."""

from __future__ import annotations

import json
import time
import zlib
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from snc_service.api.conventions.parameters import RunName
from snc_service.api.ingest.body import BODY_PROBLEMS, media_type, off_loop, read_body
from snc_service.api.ingest.json_batch import JSON_EXAMPLE, JsonBatch, decode_json
from snc_service.api.runs.commands import AckCommand, as_ack
from snc_service.api.runs.policies import POLICY_EXAMPLE, PolicyBody
from snc_service.api.state import InService, Service
from snc_service.api.system.openapi import responses
from snc_service.group_commit import Closed, QueueFull
from snc_service.problems import Problem, from_wire
from snc_service.store.types import LayerTableUnknown, Outcome, StoreError, Submission
from snc_service.wire import (
    JSON_MEDIA_TYPE,
    MAX_STEP,
    MEDIA_TYPE,
    Batch,
    LayerTable,
    WireError,
    decode,
)

router = APIRouter(prefix="/api/v1", tags=["ingest"])

TABLE_EXAMPLE = {"layers": [{"name": "fc1.weight", "kind": "linear", "shape": [64, 32]}]}
_TABLE_BODY = {
    "required": True,
    "content": {
        JSON_MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["layers"],
                "properties": {
                    "layers": {
                        "type": "array",
                        "maxItems": 65_536,
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {
                                "name": {"type": "string", "minLength": 1, "maxLength": 256},
                                "kind": {"type": "string", "minLength": 1, "maxLength": 32},
                                "shape": {
                                    "type": "array",
                                    "maxItems": 8,
                                    "items": {"type": "integer", "minimum": 0},
                                },
                            },
                        },
                    }
                },
            },
            "example": TABLE_EXAMPLE,
        }
    },
}
_BATCH_BODY = {
    "required": True,
    "content": {
        JSON_MEDIA_TYPE: {"schema": JsonBatch.model_json_schema(), "example": JSON_EXAMPLE},
        MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}},
    },
}


class Ack(BaseModel):
    """The result of a batch.

    ``policy`` is present if the client's version is older, ``commands`` if any wait, the oldest
    first; they are repeated until SNC-Commands-Seen names the last of them.
    """

    accepted: int
    duplicate: bool
    policy_version: int
    policy: PolicyBody | None = None
    commands: list[AckCommand] | None = None


ACK_EXAMPLE = {
    "accepted": 12,
    "duplicate": False,
    "policy_version": 1,
    "policy": POLICY_EXAMPLE,
    "commands": [{"id": 1, "action": "checkpoint", "reason": "before the cluster goes down"}],
}


@router.put(
    "/runs/{run}/layer-tables/{table_hash}",
    status_code=204,
    responses=responses(*BODY_PROBLEMS, "run-unknown", "run-full", "invalid", "store-unavailable"),
    openapi_extra={"requestBody": _TABLE_BODY},
)
async def put_layer_table(
    request: Request,
    service: InService,
    run: RunName,
    table_hash: Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", examples=["0" * 32])],
) -> Response:
    """Register the layer table of batches. Immutable; registering it again changes nothing.

    The hash is that of the table's canonical JSON, as defined by the wire format.
    """
    media_type(request, JSON_MEDIA_TYPE)
    async with read_body(request, service, service.limits.body_bytes) as body:
        table = await off_loop(len(body), _parse_table, body)
        if table.hash != table_hash:
            raise Problem(
                "invalid", f"the hash of this table must be {table.hash}", field="table_hash"
            )
        await run_in_threadpool(service.store.batches.put_layer_table, run, table)
    return Response(status_code=204)


@router.post(
    "/runs/{run}/batches",
    response_model=Ack,
    responses=responses(
        *BODY_PROBLEMS,
        "run-unknown",
        "layer-table-unknown",
        "sequence-gap",
        "sequence-conflict",
        "run-full",
        "invalid",
        "draining",
        "store-unavailable",
        example=ACK_EXAMPLE,
    ),
    openapi_extra={"requestBody": _BATCH_BODY},
)
async def post_batch(
    request: Request,
    service: InService,
    run: RunName,
    snc_policy_version: Annotated[
        int, Header(ge=0, le=MAX_STEP, description="The version that the client obeys.")
    ] = 0,
    snc_commands_seen: Annotated[
        int, Header(ge=0, le=MAX_STEP, description="The newest command that the client has.")
    ] = 0,
) -> Response:
    """Store a batch once: a repeated (run, writer, seq) is acknowledged but not stored again.

    The answer is sent only when the batch is durable.
    """
    kind = media_type(request, MEDIA_TYPE, JSON_MEDIA_TYPE)
    return await acknowledged(
        request,
        service,
        run,
        ClientState(snc_policy_version, snc_commands_seen),
        kind == JSON_MEDIA_TYPE,
    )


class ClientState(NamedTuple):
    """The state that a client sends with a batch: its policy version and newest command."""

    policy_version: int = 0
    commands_seen: int = 0


async def acknowledged(
    request: Request, service: Service, run: str, told: ClientState, is_json: bool
) -> Response:
    """Store the batch in a request and return its acknowledgement. Raises refusals."""
    if service.draining:
        raise Problem("draining", "the service is stopping: send the batch again later")
    limit = service.limits.json_bytes if is_json else service.limits.body_bytes
    result, values, num_bytes, start = "refused", 0, 0, time.perf_counter()
    try:
        async with read_body(request, service, limit) as body:
            num_bytes = len(body)
            batch, table, crc = await off_loop(num_bytes, _decode, body, is_json)
            submission = Submission(run, batch, crc, service.clock(), told.commands_seen)
            outcome = await _commit(service, submission, table, num_bytes)
        result = "duplicate" if outcome.duplicate else "accepted"
        values = 0 if outcome.duplicate else batch.num_values
    finally:
        seconds = time.perf_counter() - start
        service.exposition.observe_batch(result, values, num_bytes, seconds)
    ack: dict[str, Any] = {
        "accepted": batch.num_values,
        "duplicate": outcome.duplicate,
        "policy_version": outcome.policy_version,
    }
    if outcome.policy_version > told.policy_version:
        stored = await run_in_threadpool(service.store.policies.of_run, run)
        ack |= {"policy_version": stored.version, "policy": stored.content.as_dict()}
    if outcome.commands:
        ack |= {"commands": [as_ack(command) for command in outcome.commands]}
    return Response(to_json(ack), media_type="application/json")


def _parse_table(body: bytes) -> LayerTable:
    try:
        return LayerTable.parse(body)
    except WireError as error:
        raise from_wire(error) from None


def _decode(body: bytes, is_json: bool) -> tuple[Batch, LayerTable | None, int]:
    try:
        batch, table = decode_json(body) if is_json else (decode(body), None)
    except WireError as error:
        raise from_wire(error) from None
    return batch, table, fingerprint(batch)


def fingerprint(batch: Batch) -> int:
    """Return the CRC-32 of the content of a batch, equal for both forms.

    Fields that may differ between retries (`skipped`, `dropped`) are left out.
    """
    head = [batch.layers, batch.steps, batch.metrics, batch.scalars, batch.times, batch.attempt]
    crc = zlib.crc32(json.dumps(head).encode())
    for values in (batch.values, batch.scalar_values):
        crc = zlib.crc32(np.ascontiguousarray(values, "<f4").data, crc)
    return crc


async def _commit(
    service: Service, submission: Submission, table: LayerTable | None, num_bytes: int
) -> Outcome:
    """Return the outcome of a stored submission, or raise its refusal.

    A table of inline names is registered only when it is missing, so most batches need one write.
    """
    try:
        outcome = await service.commits.submit(submission, num_bytes)
        if isinstance(outcome.error, LayerTableUnknown) and table is not None:
            await run_in_threadpool(service.store.batches.put_layer_table, submission.run, table)
            outcome = await service.commits.submit(submission, num_bytes)
    except QueueFull:
        raise Problem("overloaded", "too many batches wait to be stored") from None
    except Closed:
        raise Problem("draining", "the service is stopping: send the batch again later") from None
    if isinstance(outcome.error, StoreError):
        raise outcome.error
    return outcome
