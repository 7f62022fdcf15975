"""The wire format: the messages between a training job and the service. Both sides import it.

It imports the standard library and numpy only. For any malformed input, every decoder raises
`WireError` and no other exception.
"""

from snc_service.wire.batch import (
    ABSENT,
    JSON_MEDIA_TYPE,
    MEDIA_TYPE,
    POLICY_VERSION_HEADER,
    Batch,
    absent,
    decode,
    encode,
)
from snc_service.wire.checks import (
    MAX_COLUMNS,
    MAX_STEP,
    MAX_STEPS,
    METRIC_NAME,
    RUN_NAME,
    WireError,
)
from snc_service.wire.command import COMMAND_ACTIONS, COMMANDS_SEEN_HEADER, Command, CommandAction
from snc_service.wire.layer_table import LayerSpec, LayerTable
from snc_service.wire.policy import ACTIONS, Action, Policy, PolicyEntry, Threshold, Unit
from snc_service.wire.rule_settings import SEVERITIES, RuleSetting, RuleSettings, Severity

__all__ = [
    "ABSENT",
    "ACTIONS",
    "COMMANDS_SEEN_HEADER",
    "COMMAND_ACTIONS",
    "JSON_MEDIA_TYPE",
    "MAX_COLUMNS",
    "MAX_STEP",
    "MAX_STEPS",
    "MEDIA_TYPE",
    "METRIC_NAME",
    "POLICY_VERSION_HEADER",
    "RUN_NAME",
    "SEVERITIES",
    "Action",
    "Batch",
    "Command",
    "CommandAction",
    "LayerSpec",
    "LayerTable",
    "Policy",
    "PolicyEntry",
    "RuleSetting",
    "RuleSettings",
    "Severity",
    "Threshold",
    "Unit",
    "WireError",
    "absent",
    "decode",
    "encode",
]
