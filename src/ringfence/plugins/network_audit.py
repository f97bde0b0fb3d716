"""What a plugin's workers did on the network, as events of its host's audit log."""

from collections.abc import Callable
from typing import Final

from ringfence.plugins.audit import AuditLog
from ringfence.plugins.audit_events import AuditEvent
from ringfence.pool.network_events import NetworkEvent

__all__ = ["recorder"]

_OPERATIONS: Final = {"lookup": "look up", "connect": "connect", "listen": "listen"}


def recorder(audit: AuditLog, plugin: str) -> Callable[[NetworkEvent], None]:
    """Return what puts each `NetworkEvent` of this plugin's pool into `audit`."""

    def record(event: NetworkEvent) -> None:
        where = f"[{event.host}]" if ":" in event.host else event.host
        led = f"-> {event.address}" if event.address not in (None, event.host) else ""
        needs = "" if event.allowed else f"needs {event.needs}"
        audit.record(
            AuditEvent(
                plugin=plugin,
                capability=event.grant if event.allowed else event.needs,
                operation=_OPERATIONS[event.kind],
                target=f"{where}:{event.port}" if event.port else where,
                allowed=event.allowed,
                detail="; ".join(filter(None, (needs, led, event.detail))),
            )
        )

    return record
