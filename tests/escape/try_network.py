"""Attempts on the network: every family, type, protocol and call that gets a byte out or a peer in."""
# ruff: noqa: D103 - what is attempted stands in the decorator

import array
import ctypes
import os
import socket
import struct
import time

from breakout import Facts, attempts, call, libc, raw

attempt = attempts("network")

_OUT = ("net:request",)
_DNS = ("net:dns",)
_IN = ("net:listen",)
_FASTOPEN = 0x20000000


@attempt("TCP to a port of the host's", opens=_OUT)
def tcp_connect(w: Facts) -> bool:
    with socket.create_connection(("127.0.0.1", w.tcp), 2) as made:
        return made.send(b"x") == 1


@attempt("TCP over IPv6", opens=_OUT, needs=("tcp6",))
def tcp6_connect(w: Facts) -> bool:
    with socket.create_connection(("::1", w.tcp6), 2) as made:
        return made.send(b"x") == 1


@attempt("connect_ex, which raises nothing", opens=_OUT)
def tcp_connect_ex(w: Facts) -> bool:
    with socket.socket() as made:
        return made.connect_ex(("127.0.0.1", w.tcp)) == 0


@attempt("a non-blocking connect", opens=_OUT)
def tcp_nonblocking(w: Facts) -> bool:
    with socket.socket() as made:
        made.setblocking(False)
        made.connect_ex(("127.0.0.1", w.tcp))
        time.sleep(0.05)
        return made.send(b"x") == 1


@attempt("http, as a library does it", opens=_OUT)
def tcp_urllib(w: Facts) -> bool:
    import urllib.request

    try:
        urllib.request.urlopen(f"http://127.0.0.1:{w.tcp}/", timeout=0.1)
    except TimeoutError:
        return True  # it was connected
    return True


@attempt("TCP Fast Open by sendto: a connection without connect()", opens=_OUT)
def fastopen_sendto(w: Facts) -> bool:
    with socket.socket() as made:
        return made.sendto(b"x", _FASTOPEN, ("127.0.0.1", w.tcp)) == 1


@attempt("TCP Fast Open by sendmsg", opens=_OUT)
def fastopen_sendmsg(w: Facts) -> bool:
    with socket.socket() as made:
        return made.sendmsg([b"x"], [], _FASTOPEN, ("127.0.0.1", w.tcp)) == 1


@attempt("TCP Fast Open by sendmmsg", opens=_OUT)
def fastopen_sendmmsg(w: Facts) -> bool:
    with socket.socket() as made:
        return _sendmmsg(w, made, struct.pack("=HHI8x", 2, socket.htons(w.tcp), 0x0100007F), _FASTOPEN) == 1


@attempt("TCP Fast Open by a socket option", opens=_OUT)
def fastopen_connect(w: Facts) -> bool:
    with socket.socket() as made:
        made.setsockopt(6, 30, 1)
        made.connect(("127.0.0.1", w.tcp))
        return made.send(b"x") == 1


def _sendmmsg(w: Facts, made: socket.socket, address: bytes, flags: int = 0) -> int:
    to = ctypes.create_string_buffer(address)
    data = ctypes.create_string_buffer(b"x")
    vector = ctypes.create_string_buffer(struct.pack("PN", ctypes.addressof(data), 1))
    message = struct.pack(
        "PI4xPNPNi4xI4x", ctypes.addressof(to), len(address), ctypes.addressof(vector), 1, 0, 0, 0, 0
    )
    return call(w, "sendmmsg", made.fileno(), ctypes.create_string_buffer(message), 1, flags)


def _opens(family: int, kind: int, protocol: int = 0) -> bool:
    with socket.socket(family, kind, protocol):
        return True


_FAMILIES: dict[str, tuple[str, int, int, int, dict[str, object]]] = {
    "mptcp": ("multipath TCP, which port rules do not see", 2, 1, 262, {}),
    "mptcp6": ("multipath TCP over IPv6", 10, 1, 262, {}),
    "udp": ("UDP", 2, 2, 0, {"opens": _DNS}),
    "udp6": ("UDP over IPv6", 10, 2, 17, {"opens": _DNS}),
    "udplite": ("UDP-Lite", 2, 2, 136, {"needs": ("udplite",)}),
    "sctp": ("SCTP", 2, 1, 132, {"needs": ("sctp",)}),
    "sctp_packets": ("SCTP by packets", 2, 5, 132, {"needs": ("sctp",)}),
    "dccp": ("DCCP", 2, 6, 33, {"needs": ("dccp",)}),
    "ping": ("ICMP as an ordinary user", 2, 2, 1, {"needs": ("ping",)}),
    "raw_ip": ("raw IP", 2, 3, 255, {"root": True}),
    "raw_icmp": ("raw ICMP", 2, 3, 1, {"root": True}),
    "packet": ("whole frames", 17, 3, 0x0300, {"root": True}),
    "netlink_route": ("netlink: addresses and routes", 16, 3, 0, {}),
    "netlink_audit": ("netlink: the audit log", 16, 3, 9, {}),
    "netlink_diag": ("netlink: others' sockets", 16, 3, 4, {}),
    "netlink_netfilter": ("netlink: the packet filter", 16, 3, 12, {}),
    "netlink_uevent": ("netlink: devices", 16, 2, 15, {}),
    "netlink_crypto": ("netlink: crypto", 16, 3, 21, {"needs": ("crypto",)}),
    "alg": ("AF_ALG, the kernel's crypto (Copy Fail)", 38, 5, 0, {"needs": ("alg",)}),
    "vsock": ("AF_VSOCK, to the hypervisor", 40, 1, 0, {"needs": ("vsock",)}),
    "unix_socket": ("a unix socket", 1, 1, 0, {}),
    "unix_datagram": ("a unix datagram socket", 1, 2, 0, {}),
    "unix_packet": ("a unix packet socket", 1, 5, 0, {}),
    "bluetooth": ("bluetooth", 31, 3, 1, {"needs": ("bluetooth",)}),
    "can": ("a CAN bus", 29, 3, 1, {"needs": ("can",)}),
    "xdp": ("AF_XDP", 44, 3, 0, {"root": True, "needs": ("xdp",)}),
    "kcm": ("AF_KCM", 41, 2, 0, {"needs": ("kcm",)}),
    "tipc": ("TIPC", 30, 1, 0, {"needs": ("tipc",)}),
    "smc": ("SMC, which turns into TCP", 43, 1, 0, {"needs": ("smc",)}),
    "rds": ("RDS", 21, 5, 0, {"needs": ("rds",)}),
    "qipcrtr": ("AF_QIPCRTR", 42, 2, 0, {"needs": ("qipcrtr",)}),
}
FAMILIES = {name: row[1:4] for name, row in _FAMILIES.items()}
for _name, (_what, _family, _kind, _protocol, _details) in _FAMILIES.items():

    @attempt(f"socket: {_what}", name=f"socket_{_name}", **_details)
    def _socket(w: Facts, family=_family, kind=_kind, protocol=_protocol) -> bool:
        return _opens(family, kind, protocol)


@attempt("a socket type with bits above those of types", opens=_OUT)
def socket_type_bits(w: Facts) -> bool:
    return call(w, "socket", 2, 1 | 0x80000 | (1 << 32), 0) >= 0


@attempt("a family with bits above the 32nd", opens=())
def socket_family_bits(w: Facts) -> bool:
    return call(w, "socket", 1 | 1 << 32, 1, 0) >= 0


@attempt("UDP to a port of the host's", opens=_DNS)
def udp_sendto(w: Facts) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        return made.sendto(b"x", ("127.0.0.1", w.udp)) == 1


@attempt("a name looked up", opens=("net:dns", "net:request", "net:listen"))
def name_lookup(w: Facts) -> bool:
    return bool(socket.getaddrinfo("localhost", 80))


@attempt("a unix socket by path, as docker.sock and systemd are reached")
def unix_path(w: Facts) -> bool:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(w.unix)
        return made.send(b"x") == 1


@attempt("an abstract unix socket")
def unix_abstract(w: Facts) -> bool:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect("\0" + w.abstract_name)
        return made.send(b"x") == 1


@attempt("a datagram to a unix socket by path")
def unix_datagram(w: Facts) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        return made.sendto(b"x", w.unix_datagram) == 1


@attempt("one end of a datagram pair, which can be sent anywhere")
def pair_datagram(w: Facts) -> bool:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, two:
        return one.sendto(b"x", w.unix_datagram) == 1


@attempt("a datagram pair, reconnected")
def pair_reconnected(w: Facts) -> bool:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, two:
        one.connect(w.unix_datagram)
        return one.send(b"x") == 1


@attempt("a pair of packets")
def pair_packets(w: Facts) -> bool:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        return True


@attempt("a stream pair whose type has the datagram's bit above the 32nd")
def pair_type_bits(w: Facts) -> bool:
    fds = (ctypes.c_int * 2)()
    call(w, "socketpair", 1, 2 | 1 << 33, 0, fds)
    return libc.sendto(fds[0], b"x", 1, 0, _unix_address(w.unix_datagram), 2 + len(w.unix_datagram) + 1) == 1


def _unix_address(path: str) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(struct.pack("H", 1) + path.encode() + b"\0")


@attempt("an abstract name, taken by one end of a stream pair")
def pair_bound(w: Facts) -> bool:
    one, two = socket.socketpair()
    with one, two:
        one.bind("\0ringfence-escape-squatter-of-a-name")
        return True


@attempt("the same with a name that makes it as long as an internet address", opens=_IN)
def pair_bound_to_size(w: Facts) -> bool:
    one, two = socket.socketpair()
    with one, two:
        one.bind("\0" + f"escape-{os.getpid()}-".ljust(25, "x"))
        return True


@attempt("a descriptor passed to oneself over a stream pair (SCM_RIGHTS)", opens=_OUT + _IN + _DNS)
def pair_passes_descriptors(w: Facts) -> bool:
    one, two = socket.socketpair()
    with one, two:
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))])
        return bool(two.recvmsg(1, 1000)[1])


@attempt("out-of-band data on a stream pair, whose code in the kernel was exploited")
def pair_out_of_band(w: Facts) -> bool:
    one, two = socket.socketpair()
    with one, two:
        return one.send(b"x", socket.MSG_OOB) == 1


@attempt("reading out of band from a stream pair")
def pair_receives_out_of_band(w: Facts) -> bool:
    one, two = socket.socketpair()
    with one, two:
        if not w.inside:
            one.send(b"x", socket.MSG_OOB)
        try:
            two.recv(1, socket.MSG_OOB | socket.MSG_DONTWAIT)
        except OSError as error:
            if error.errno == 1:
                raise
        return True


@attempt("credentials of others over a stream pair", opens=())
def pair_passcred(w: Facts) -> bool:
    one, two = socket.socketpair()
    with one, two:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return True


@attempt("listening at a port", opens=_IN)
def listen_bound(w: Facts) -> bool:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        return True


@attempt("listening without bind, at a port of the kernel's choice", opens=_IN)
def listen_unbound(w: Facts) -> bool:
    with socket.socket() as made:
        made.listen()
        return made.getsockname()[1] > 0


@attempt("bind of UDP at every address", opens=_IN)
def bind_udp(w: Facts) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("0.0.0.0", 0))
        return True


@attempt("a filter attached to a socket", opens=())
def socket_filter(w: Facts) -> bool:
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    one, two = socket.socketpair()
    with one, two:
        one.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxP", 1, ctypes.addressof(program)))
        return True


@attempt("TLS in the kernel (TCP_ULP), which loads a module")
def socket_ulp(w: Facts) -> bool:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as made:
        try:
            made.setsockopt(6, 31, b"tls")
        except FileNotFoundError:
            return True  # the kernel has looked for it
        return True


@attempt("whom the channel leads to: pid and uid of its other end (SO_PEERCRED)")
def peer_credentials(w: Facts) -> bool:
    _pair = None if w.inside else socket.socketpair()
    for fd in range(256):
        value = ctypes.create_string_buffer(12)
        size = ctypes.c_uint(12)
        if libc.getsockopt(fd, 1, 17, value, ctypes.byref(size)) == 0:
            return True
    return False


@attempt("a pidfd of the other end of the channel (SO_PEERPIDFD)")
def peer_pidfd(w: Facts) -> bool:
    _pair = None if w.inside else socket.socketpair()
    for fd in range(256):
        value = ctypes.c_int()
        size = ctypes.c_uint(4)
        if libc.getsockopt(fd, 1, 77, ctypes.byref(value), ctypes.byref(size)) == 0:
            return True
    return False


@attempt("io_uring: sockets and files by a ring that no filter sees")
def io_uring(w: Facts) -> bool:
    return call(w, "io_uring_setup", 4, ctypes.create_string_buffer(120)) >= 0


@attempt("io_uring_register without a ring")
def io_uring_register(w: Facts) -> bool:
    try:
        return raw(427, -1, 0, 0, 0) >= 0
    except OSError as error:
        if error.errno in (1, 38):
            raise
        return True


@attempt("accept on any descriptor that is there", opens=_IN)
def accept_any(w: Facts) -> bool:
    for fd in range(64):
        try:
            call(w, "accept4", fd, 0, 0, 0x800)
        except OSError as error:
            if error.errno in (9, 22, 88, 95, 11):  # the kernel has looked at it
                return True
            raise
    return False


@attempt("an address for what is there (bind of the channel)", opens=_IN)
def bind_channel(w: Facts) -> bool:
    for fd in range(3, 64):
        try:
            call(w, "bind", fd, _unix_address("ringfence-escape"), 2)
            return True
        except OSError as error:
            if error.errno in (1, 13):
                raise
    return not w.inside


@attempt("sendto with an address on whatever is there", opens=_DNS)
def sendto_any(w: Facts) -> bool:
    done = False
    for fd in range(3, 64):
        try:
            to = _unix_address(w.unix_datagram)
            done |= call(w, "sendto", fd, ctypes.create_string_buffer(b"x"), 1, 0, to, 110) > 0
        except OSError as error:
            if error.errno == 1:
                raise
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        return done or made.sendto(b"x", w.unix_datagram) == 1


@attempt("descriptors lent by the host: any directory, file or device that leads out", alone=True)
def inherited_descriptors(w: Facts) -> list[int]:
    if not w.inside:
        return [os.open(w.folder, os.O_RDONLY)]
    found = []
    for fd in range(1024):
        try:
            kind = os.fstat(fd).st_mode & 0o170000
        except OSError:
            continue
        if kind in (0o040000, 0o060000) or (kind == 0o100000 and fd > 2):
            found.append(fd)
    return found
