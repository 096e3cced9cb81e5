"""What Python sees of the module that compiled code cimports."""

from typing import Any

_c_api: Any
ADDRESSES: dict[str, tuple[int, int]]
API_ADDRESS: int

def plan_sum(plan: bytes) -> int: ...
