"""How many gradients were taken."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass
class Counts:
    """Work done, one per task and branch: gradients of each loss, in one piece or several, Hessian-vector products."""

    support_gradients: int = 0
    query_gradients: int = 0
    hessian_vector_products: int = 0

    @classmethod
    def total(cls, parts: Sequence["Counts"]) -> "Counts":
        return cls(*(sum(getattr(part, field.name) for part in parts) for field in fields(cls)))

    def took(self, evaluations: int, support: int, query: int) -> None:
        """So many of all tasks and steps, of ``support`` and ``query`` branches each."""
        self.support_gradients += evaluations * support
        self.query_gradients += evaluations * query
