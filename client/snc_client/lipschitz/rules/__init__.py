"""The rules: what is known of each operation as a map. Any other operation is refused."""

from snc_client.lipschitz.rules.rule import Call, Factors, Rule
from snc_client.lipschitz.rules.table import APART, FIRST_ONLY, RULES

__all__ = ["APART", "FIRST_ONLY", "RULES", "Call", "Factors", "Rule"]
