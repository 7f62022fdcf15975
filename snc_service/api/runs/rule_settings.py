"""Routes for the rule settings in force of a run or a project: read, change, list versions."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from snc_service.api.runs.versioned_documents import DocumentKind, document_router
from snc_service.store.types.documents import DocumentScope
from snc_service.wire import SEVERITIES, RuleSettings, Severity
from snc_service.wire.rule_settings import MAX_ARMED, MAX_FOR_ROWS, MAX_LIMIT

# Checked by `RuleSettings.parse`, which names the wrong key.
RuleBody = Annotated[
    Any,
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "limit": {"type": "number", "minimum": 0, "maximum": MAX_LIMIT},
                "for_rows": {"type": "integer", "minimum": 1, "maximum": MAX_FOR_ROWS},
                "armed": {"type": "integer", "minimum": 0, "maximum": MAX_ARMED},
                "severity": {"enum": list(SEVERITIES)},
                "on": {"type": "boolean"},
            },
        }
    ),
]


class RulesBody(BaseModel):
    """Settings by rule; an omitted rule or key keeps its shipped value."""

    model_config = ConfigDict(extra="forbid")
    rules: dict[str, RuleBody] = Field(default_factory=dict)


class RuleItem(BaseModel):
    """One rule: it fires after ``for_rows`` rows above ``limit``, once armed."""

    limit: float
    for_rows: int
    armed: int
    severity: Severity
    on: bool


class RulesAnswer(BaseModel):
    """Every rule in force, and the origin of the settings; version 0 is as shipped."""

    rules: dict[str, RuleItem]
    rules_version: int
    scope: DocumentScope
    author: str
    at: str | None


class RulesVersions(BaseModel):
    """A page of versions, the newest first."""

    items: list[RulesAnswer]
    next: str | None


BODY_EXAMPLE: dict[str, Any] = {
    "rules": {
        "sigma_growth": {"limit": 0.5, "for_rows": 3, "severity": "critical"},
        "lr_jump": {"on": False},
    }
}
RULES: Final = DocumentKind(
    noun="rules",
    singular="rule",
    documents=lambda store: store.rule_settings,
    parse=RuleSettings.parse,
    as_dict=RuleSettings.as_dict,
    body_model=RulesBody,
    answer_model=RulesAnswer,
    versions_model=RulesVersions,
    example=BODY_EXAMPLE,
    descriptions={
        "get_rules": "Return the settings in force: the run's own, else its project's, "
        "else as shipped.",
        "put_rules": "Set a run's rules: the whole of them, from the next batch on, "
        "whichever service stores it.",
        "list_rule_versions": "List every version of a run's own settings.",
        "get_project_rules": "Return the settings of a project's runs that have none of their own.",
        "put_project_rules": "Set a project's rules.",
        "list_project_rule_versions": "List every version of a project's settings.",
    },
)
router = document_router(RULES)
