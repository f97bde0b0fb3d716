"""Who may speak with whom: the network grants of one policy, asked for names, addresses and ports."""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final, final

from ringfence.records import dataclass
from ringfence.sandbox.addresses import address_contains, is_public, network_of, split_scope
from ringfence.sandbox.capabilities import Capabilities, Capability, Grant, GrantLike

if TYPE_CHECKING:
    from ringfence.sandbox.addresses import Address

__all__ = ["NETWORK", "NetRules", "Verdict", "needs_broker"]

NETWORK: Final = (Capability.NET_REQUEST, Capability.NET_LISTEN, Capability.NET_DNS)
_LOCALHOST: Final = "localhost"
_UNPRIVILEGED: Final = 1024


def needs_broker(capabilities: Iterable[Grant]) -> bool:
    """Whether one of these grants names a host, which the kernel alone does not hold anybody to."""
    return any(
        grant.capability in NETWORK and grant.scope is not None and bool(split_scope(grant.scope)[0])
        for grant in capabilities
    )


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one question: the grant that allows it, or why there is none and which would.

    Attributes:
        grant: the grant as text, or `None` for a refusal.
        needs: for a refusal, the grant that would have allowed it.
        why: for a refusal that such a grant alone does not explain, one more sentence.
    """

    grant: str | None
    needs: str = ""
    why: str = ""

    @property
    def allowed(self) -> bool:
        """Whether it may be."""
        return self.grant is not None


@final
class NetRules:
    """The network grants of one policy. What no grant clearly allows is refused.

    Names go by names, addresses by addresses. A granted name may lead to public addresses of other hosts; elsewhere
    only where an address or range is granted that holds them (``localhost``, granted by that name, is loopback).
    """

    def __init__(self, capabilities: Iterable[GrantLike]) -> None:
        granted = Capabilities(capabilities)
        self._request = [g for g in granted if g.capability is Capability.NET_REQUEST]
        self._listen = [g for g in granted if g.capability is Capability.NET_LISTEN]
        self._dns = [g for g in granted if g.capability is Capability.NET_DNS]

    @property
    def listens(self) -> bool:
        """Whether anything may be listened to."""
        return bool(self._listen)

    def held(self, capability: str) -> tuple[str, ...]:
        """Return the grants of one capability, as text."""
        grants = {Capability.NET_LISTEN: self._listen, Capability.NET_DNS: self._dns}
        return tuple(map(str, grants.get(Capability(capability), self._request)))

    def look_up(self, name: str, port: int = 0) -> Verdict:
        """Judge a look-up of a canonical name; `port` is what it is said to be for, which only words a refusal."""
        for grant in self._dns:
            if grant.scope is None or address_contains(grant.scope, name):
                return Verdict(str(grant))
        for grant in self._request:
            host = _host(grant)
            if host and network_of(host) is None and address_contains(host, name):
                return Verdict(str(grant))
        if name == _LOCALHOST and any(_host(grant) == _LOCALHOST for grant in self._listen):
            return Verdict(next(str(grant) for grant in self._listen if _host(grant) == _LOCALHOST))
        return Verdict(None, f"net:request={name}:{port}" if port else f"net:dns={name}")

    def may_tell(self, name: str, address: "Address") -> Verdict:
        """Judge whether an address that an allowed name has may be told to the worker."""
        for grant in self._dns:
            if grant.scope is None or address_contains(grant.scope, name):
                return Verdict(str(grant))
        if _may_lead(name, address):
            return self.look_up(name)
        for grant in self._request:
            if _holds(grant, address, None):
                return Verdict(str(grant))
        return _not_public(name, address, 0)

    def connect(
        self,
        address: "Address",
        port: int,
        names: Collection[str] = (),
        *,
        ours: bool = False,
        by_name: bool = False,
    ) -> Verdict:
        """Judge a connection.

        Args:
            address: where to; as `plain_address` returns it.
            port: to which port.
            names: canonical names that were looked up for this worker and led to this address.
            ours: whether it is one of this host's own, at which services may listen that no firewall lets others reach.
            by_name: whether one of them was asked for, and not the address; this only words a refusal.
        """
        for grant in self._request:
            if _holds(grant, address, port):
                return Verdict(str(grant))
        refused = None
        for name in names:
            found = next((g for g in self._request if _names(g, name, port)), None)
            if found is None and name == _LOCALHOST and not by_name:
                # Whoever asks for the address again, without having looked up the name, is helped by the address only.
                why = f"where it was looked up as localhost, net:request=localhost:{port} allows it as well"
                refused = refused or Verdict(None, f"net:request={_bracketed(address)}:{port}", why)
            elif found is None:
                refused = refused or Verdict(None, f"net:request={name}:{port}")
            elif _may_lead(name, address) and (name == _LOCALHOST or not ours):
                return Verdict(str(found))
            else:
                refused = _not_public(name, address, port, ours=ours)
        return refused or Verdict(None, f"net:request={_bracketed(address)}:{port}")

    def listen(self, address: "Address", port: int) -> Verdict:
        """Judge listening at an address of this host; port 0 is any free one."""
        for grant in self._listen:
            host, its_port = split_scope(grant.scope or "")
            if its_port and int(its_port) != port:
                continue
            # Below lies what the worker's user may not bind to; the supervisor, who does it for him, may be root.
            if not its_port and 0 < port < _UNPRIVILEGED:
                continue
            if not host or (host == _LOCALHOST and address.is_loopback) or _within(host, address):
                return Verdict(str(grant))
        return Verdict(None, f"net:listen={_bracketed(address)}:{port}")


def _host(grant: Grant) -> str:
    return split_scope(grant.scope or "")[0]


def _holds(grant: Grant, address: "Address", port: int | None) -> bool:
    """Whether a grant without a name allows an address; with no port given, whatever its ports."""
    host, its_port = split_scope(grant.scope or "")
    if its_port and port is not None and int(its_port) != port:
        return False
    return not host or _within(host, address)


def _within(host: str, address: "Address") -> bool:
    network = network_of(host)
    return network is not None and network.version == address.version and address in network


def _names(grant: Grant, name: str, port: int) -> bool:
    return bool(_host(grant)) and address_contains(grant.scope or "", f"{name}:{port}")


def _may_lead(name: str, address: "Address") -> bool:
    return address.is_loopback if name == _LOCALHOST else is_public(address)


def _not_public(name: str, address: "Address", port: int, *, ours: bool = False) -> Verdict:
    where = f"{_bracketed(address)}:{port}" if port else _bracketed(address)
    what = "an address of this host" if ours else "no public address"
    why = f"{name} leads to {address}, which is {what}: such a one has to be granted itself"
    return Verdict(None, f"net:request={where}", why)


def _bracketed(address: "Address") -> str:
    return f"[{address}]" if address.version == 6 else str(address)
