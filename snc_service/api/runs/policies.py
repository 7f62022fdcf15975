"""Routes for the policy in force of a run or a project: read, change, list versions."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from snc_service.api.runs.versioned_documents import DocumentKind, document_router
from snc_service.store.types.documents import DocumentScope
from snc_service.wire import Action, Policy
from snc_service.wire.policy import MAX_ENTRIES

# Checked by the wire, whose error states the allowed forms in one sentence.
Limit = Annotated[
    Any,
    WithJsonSchema(
        {
            "anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}],
            "examples": [2.5, "3x init", "3x rms", "auto", None],
        }
    ),
]


class PolicyEntryBody(BaseModel):
    """Layers whose name matches the glob ``pattern`` get this threshold and action."""

    model_config = ConfigDict(extra="forbid")
    pattern: str
    threshold: Limit
    action: Action = "rescale"


class PolicyBody(BaseModel):
    """Entries in order; the first that matches a layer wins."""

    model_config = ConfigDict(extra="forbid")
    entries: list[PolicyEntryBody] = Field(max_length=MAX_ENTRIES)


class PolicyAnswer(BaseModel):
    """A policy and its origin; version 0 is the empty default."""

    policy: PolicyBody
    policy_version: int
    scope: DocumentScope
    author: str
    at: str | None


class PolicyVersions(BaseModel):
    """A page of versions, the newest first."""

    items: list[PolicyAnswer]
    next: str | None


POLICY_EXAMPLE = {"entries": [{"pattern": "*", "threshold": "3x init", "action": "rescale"}]}
POLICY: Final = DocumentKind(
    noun="policy",
    singular="policy",
    documents=lambda store: store.policies,
    parse=Policy.parse,
    as_dict=lambda policy: {"policy": policy.as_dict()},
    body_model=PolicyBody,
    answer_model=PolicyAnswer,
    versions_model=PolicyVersions,
    example=POLICY_EXAMPLE,
    descriptions={
        "get_policy": "Return the policy in force: the run's own, else its project's, else none.",
        "put_policy": "Set a run's policy. "
        "Its job obeys a few steps later: the policy rides in the next answer.",
        "list_policy_versions": "List every version of a run's own policy.",
        "get_project_policy": "Return the policy of a project's runs that have none of their own.",
        "put_project_policy": "Set a project's policy.",
        "list_project_policy_versions": "List every version of a project's policy.",
    },
)
router = document_router(POLICY)
