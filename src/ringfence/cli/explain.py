"""``ringfence explain``: what a capability opens, what holds it on this host, and how to grant it."""

import json
import shlex
import sys
import textwrap
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ringfence.cli.ending import visible

if TYPE_CHECKING:
    from rich.console import Console

    from ringfence.sandbox.capabilities import Capability, Grant
    from ringfence.sandbox.doctor import CapabilityFinding
    from ringfence.sandbox.opens import Fact
    from ringfence.sandbox.runtime_paths import RuntimePaths

__all__ = ["register"]

_REFUSED: Final = 1
_USAGE: Final = 2
_LABELS: Final = 13  # columns, for the longest label and room


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("explain")(explain)


def explain(
    capabilities: Annotated[
        list[str] | None,
        typer.Argument(metavar="CAPABILITY", help="Such as fs:read, or with a scope fs:read=/data. None: all."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")] = False,
) -> None:
    """Say what a capability opens: system calls, rights and paths, what holds it here, and how to grant it.

    Exit code: 0, 1 a pool would refuse a grant as it is written, 2 usage, such as an unknown name.
    """
    from ringfence.cli.plugin_output import print_json
    from ringfence.cli.run import grant_of
    from ringfence.sandbox.capabilities import Capability, Grant
    from ringfence.sandbox.errors import PolicyError

    try:
        grants: list[Grant] = [grant_of(text) for text in capabilities or ()]
    except PolicyError as error:
        print(f"ringfence explain: {visible(str(error))}", file=sys.stderr)
        raise typer.Exit(_USAGE) from None
    host = _Host()
    if not grants:
        every = [host.explain(Grant(capability)) for capability in Capability]
        if as_json:
            print_json({"capabilities": every})
        else:
            _show_list(every)
        return
    found = [host.explain(grant) for grant in grants]
    if as_json:
        print_json({"capabilities": found})
    else:
        _show(found)
    raise typer.Exit(_REFUSED if any(each["refused"] for each in found) else 0)


class _Host:
    """This host, asked once for all that is to be explained."""

    def __init__(self) -> None:
        from ringfence.sandbox.doctor import assess
        from ringfence.sandbox.features import probe
        from ringfence.sandbox.runtime_paths import runtime_paths

        features = probe()
        self._findings: dict[Capability, CapabilityFinding] = {
            finding.capability: finding for finding in assess(features).capabilities
        }
        self._facts: tuple[Fact, ...] = _facts(features.namespaces, features.landlock_abi)
        self._runtime: RuntimePaths = runtime_paths()

    def explain(self, grant: "Grant") -> dict[str, Any]:
        """Return all there is to say about a grant, as dicts, lists and text only."""
        from ringfence.cli.plugin_words import meaning
        from ringfence.sandbox.capabilities import ALIASES, Capabilities
        from ringfence.sandbox.net_rules import NETWORK, needs_broker
        from ringfence.sandbox.opened import opened
        from ringfence.sandbox.opens import OPENS, brought_by, calls_of

        capability, finding = grant.capability, self._findings[grant.capability]
        alone = Capabilities([grant])
        # Whichever network grant names a host, all of a worker's network goes through the supervisor.
        brokered = NETWORK if needs_broker(alone) else ()
        here, refused = set(calls_of(alone, self._facts, brokered)), _refusal(grant)
        said = opened(capability)
        if brokered:
            said["landlock"]["on_each_port"] = []
        for each in said["system_calls"]:
            each["opens_here"] = each["set"] in here
        brought = set(brought_by(alone))
        said["paths"] = [
            {**path, "paths": list(getattr(self._runtime, path["runtime"]))}
            for path, brings in zip(said["paths"], OPENS[capability].paths, strict=True)
            if brings in brought
        ]
        return {
            "grant": str(grant),
            "capability": capability.value,
            "scope": grant.scope,
            "through_the_supervisor": bool(brokered),
            "aliases": [alias for alias, name in ALIASES.items() if name == capability.value],
            "risk": capability.risk.value,
            "means": meaning(grant),
            "refused": refused,
            "held_by": {
                "strength": finding.strength.value,
                "by": finding.by,
                "left": finding.gap,
                "fix": finding.fix,
            },
            "opens": {key: value for key, value in said.items() if key != "does_not_open"},
            "does_not_open": said["does_not_open"],
            "scopes": _scopes(capability),
            "how_to_grant": _ways(grant),
        }


def _facts(namespaces: Iterable[str], landlock_abi: int) -> "tuple[Fact, ...]":
    """Return what the layers of a host make true, when it gives workers all it has."""
    from ringfence.sandbox.opens import Fact

    answers = {
        Fact.PRIVATE_ROOT: "mnt" in namespaces,
        Fact.SIGNALS_INSIDE: "pid" in namespaces or landlock_abi >= 6,
        Fact.PATHS_INSIDE: "mnt" in namespaces or landlock_abi >= 1,
    }
    return tuple(fact for fact, holds in answers.items() if holds)


def _refusal(grant: "Grant") -> str | None:
    """Return why a pool of the default profile would refuse this grant, or None."""
    from ringfence.sandbox.errors import PolicyError
    from ringfence.sandbox.policy import Policy

    try:
        Policy.build("untrusted", [grant])
    except PolicyError as error:
        return str(error).replace(" (from the capabilities argument)", "")
    return None


def _scopes(capability: "Capability") -> dict[str, Any] | None:
    """Return how scopes are written, with examples that a pool takes; None where there are none."""
    from ringfence.cli.explain_words import SCOPES
    from ringfence.sandbox.capabilities import Grant
    from ringfence.sandbox.errors import PolicyError

    scoping = SCOPES.get(capability)
    if scoping is None:
        return None
    examples = []
    for scope in scoping.examples:
        try:
            grant = Grant(capability, scope)
        except PolicyError:
            continue
        if _refusal(grant) is None:
            examples.append(str(grant))
    return {"a_scope_is": scoping.scope, "without_one": scoping.without, "examples": examples}


def _ways(grant: "Grant") -> dict[str, str]:
    manifest = f"capabilities = [{json.dumps(grant.capability.value)}]"
    if grant.scope is not None:
        # A TOML string of this kind is written as JSON has it.
        manifest += f"\n[scopes]\n{json.dumps(grant.capability.value)} = [{json.dumps(grant.scope)}]"
    return {
        "command_line": f"ringfence run script.py --allow {shlex.quote(str(grant))}",
        "api": f"Pool(capabilities=[{json.dumps(str(grant))}])",
        "manifest": manifest,
    }


# --- for people ---------------------------------------------------------------------------------------------


def _show_list(every: list[dict[str, Any]]) -> None:
    from ringfence.cli.plugin_output import console, table

    shown = table("capability", "risk", "held by", "granted, code may")
    for each in every:
        shown.add_row(each["capability"], each["risk"], each["held_by"]["strength"], each["means"])
    out = console()
    out.print(shown)
    out.print("ringfence explain CAPABILITY says what one of them opens.", style="dim")


def _show(found: list[dict[str, Any]]) -> None:
    from ringfence.cli.plugin_output import console

    out = _Page(console())
    for position, each in enumerate(found):
        if position:
            out.blank()
        aliases = "".join(f", also {alias}" for alias in each["aliases"])
        out.title(each["grant"], f"{each['risk']} risk{aliases}")
        out.paragraph(f"Lets code {each['means']}.")
        out.blank()
        _about(out, each)
        out.blank()
        out.title("Opens")
        if each["through_the_supervisor"]:
            out.row("broker", _BROKER)
        _opens(out, each["opens"], each["scope"])
        out.blank()
        out.title("Written")
        _written(out, each)


class _Page:
    """Lines with a label each, folded beside it; what comes from outside can move no cursor."""

    def __init__(self, console: "Console") -> None:
        self._console = console

    def blank(self) -> None:
        self._console.print()

    def title(self, text: str, aside: str = "") -> None:
        from rich.text import Text

        words = Text.assemble((visible(text), "bold"), f"  ({aside})" if aside else "")
        self._console.print(words, soft_wrap=True)

    def paragraph(self, text: str) -> None:
        for line in self._folded(text, 0):
            self._console.print(line, soft_wrap=True)

    def row(self, label: str, text: str, style: str = "", name: str = "", indent: int = _LABELS) -> None:
        """Print a text beside its label; a name before the text stands out."""
        from rich.text import Text

        for position, line in enumerate(self._folded(f"{name}: {text}" if name else text, indent)):
            beside = Text(line, style)
            if name and not position:
                beside.stylize("bold", 0, len(name))
            first = "" if position else label
            self._console.print(Text.assemble((f"{first:{indent}}", "cyan"), beside), soft_wrap=True)

    def _folded(self, text: str, indent: int) -> list[str]:
        width = max(20, self._console.width - indent)
        fold = partial(textwrap.wrap, width=width, break_long_words=False, break_on_hyphens=False)
        return [part for line in text.split("\n") for part in fold(visible(line))]


_BROKER: Final = (
    "The supervisor looks names up, checks, connects or listens, and hands over the socket. Code in the worker opens "
    "none itself."
)
_COLOURS: Final = {"kernel": "green", "by construction": "green", "partly": "yellow", "not enforced": "red"}


def _about(out: _Page, each: dict[str, Any]) -> None:
    held = each["held_by"]
    if each["refused"]:
        out.row("refused", f"A pool takes no such grant: {each['refused']}", "red")
    by = f" ({held['by']})" if held["by"] not in ("", "convention") else ""
    out.row("held by", f"{held['strength']}{by}", _COLOURS.get(held["strength"], ""))
    for label, text in (("left", held["left"]), ("to fix", held["fix"]), ("why", each["opens"]["reason"])):
        if text:
            out.row(label, text)
    if each["does_not_open"]:
        out.row("not", each["does_not_open"])


def _opens(out: _Page, opens: dict[str, Any], scope: str | None) -> None:
    rights, ports = opens["landlock"]["below_each_path"], opens["landlock"]["on_each_port"]
    if rights:
        out.row("Landlock", f"{', '.join(rights)} below {scope or 'each path of its scopes'}")
    if ports:
        out.row("Landlock", f"{', '.join(ports)} for each port of its scopes; without a scope, for every port")
    for path in opens["paths"]:
        # Every worker reads these; it would be a list of a dozen.
        places = "what every worker may read" if path["runtime"] == "read" else ", ".join(path["paths"])
        out.row("paths", f"{places} ({path['rights']})")
    shown: set[str] = set()
    for each in opens["system_calls"]:
        if each["opens_here"] and each["set"] not in shown:
            shown.add(each["set"])
            out.row("calls", each["reason"], name=each["set"])
            for rule in each["rules"]:
                out.row("", _rule(rule), indent=_LABELS + 2)
    for each in opens["system_calls"]:
        if each["set"] not in shown:
            shown.add(each["set"])
            out.row("not here", f"opens {each['when']}", name=each["set"])
    if not (rights or ports or opens["paths"] or shown):
        out.row("", "No system call, no right, no path.")


def _rule(rule: dict[str, Any]) -> str:
    """Return one rule as a line: the calls, what is asked of their arguments, and the answer if it is no yes."""
    text = ", ".join(rule["calls"])
    if rule["words"]:
        text += f" ({rule['words']})"
    return text if rule["answer"] == "allowed" else f"{text}: {rule['answer']}"


def _written(out: _Page, each: dict[str, Any]) -> None:
    scopes, ways = each["scopes"], each["how_to_grant"]
    if scopes is None:
        out.row("scope", "It takes none.")
    else:
        out.row("scope", scopes["a_scope_is"])
        out.row("without", scopes["without_one"])
        if scopes["examples"]:
            out.row("examples", "  ".join(scopes["examples"]))
    if not each["refused"]:
        out.row("script", ways["command_line"])
        out.row("pool", ways["api"])
        out.row("plugin.toml", ways["manifest"])
