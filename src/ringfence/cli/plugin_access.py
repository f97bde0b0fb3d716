"""What a plugin started from the command line may do: --profile, --allow, and the answers of whoever sits there."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from ringfence.cli.plugin_home import Home

if TYPE_CHECKING:
    from ringfence.plugins.approval import Approval, ApprovalRequest
    from ringfence.plugins.config import LoaderConfig, RuntimeConfig
    from ringfence.plugins.manifest import Manifest
    from ringfence.plugins.profiles import HostProfile
    from ringfence.sandbox.capabilities import Grant

__all__ = ["Access", "AllowOption", "Approver", "ProfileOption", "YesOption"]

AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="CAPABILITY",
        help="Grant it without asking, this time: fs:read, fs:read=DATA, net:request=:443. May be repeated.",
    ),
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="Grant what a profile grants: a name, or a TOML file.", show_default=False),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Approve what the plugin declares, and remember it.")]


@final
class Access:
    """What a command line grants. Raises BadParameter for what is misspelt.

    With neither option everything that a plugin declares may be granted, and has to be approved. What --allow names is
    approved by that, as narrow as it is named; so is what a profile grants.
    """

    def __init__(self, allow: list[str] | None, profile: str | None) -> None:
        from ringfence.cli.run import grant_of
        from ringfence.plugins.profiles import profile as read_profile
        from ringfence.sandbox.errors import PolicyError

        try:
            self.allowed: list[Grant] = [grant_of(text) for text in allow or ()]
        except PolicyError as error:
            raise typer.BadParameter(str(error), param_hint="--allow") from None
        try:
            self.profile: HostProfile | None = None if profile is None else read_profile(profile)
        except PolicyError as error:
            raise typer.BadParameter(str(error), param_hint="--profile") from None
        if self.profile is not None and self.allowed:
            self.profile = self.profile.with_capabilities(self.profile.capabilities.with_all(self.allowed))

    @property
    def is_given(self) -> bool:
        """Whether the command line says anything about it."""
        return bool(self.allowed) or self.profile is not None

    def loader_config(self, manifest: "Manifest", *, strictly: bool = False) -> "LoaderConfig":
        """Return what this plugin may be granted; `strictly`: nothing but what the command line names.

        Raises InvalidManifest: it asks for a path that leads out of its folder.
        """
        from ringfence.plugins.config import LoaderConfig
        from ringfence.sandbox.capabilities import Capabilities

        if self.profile is not None:
            return LoaderConfig()
        spoken = {grant.capability for grant in self.allowed}
        declared = [] if strictly else [each for each in manifest.grants() if each.capability not in spoken]
        return LoaderConfig().with_capabilities(Capabilities([*self.allowed, *declared]))

    def runtime_config(
        self, manifest: "Manifest", home: Home, *, yes: bool = False, **settings: Any
    ) -> "RuntimeConfig":
        """Return the settings of a runtime for this plugin alone. Raises as `loader_config`."""
        from ringfence.plugins.config import RuntimeConfig

        loader = self.loader_config(manifest).with_approval(Approver(self, yes=yes)).with_lockfile(home.approvals)
        return RuntimeConfig(
            loader_config=loader, profile=self.profile, quarantine_file=Path(home.quarantine), **settings
        )


@final
class Approver:
    """Asks at the terminal about what the command line leaves open; without a terminal that is a no.

    What was granted for one time, by --allow or a profile, is kept for one time only, with all that is answered
    beside it. `remember` makes it say yes to the same wishes again: to whoever edits a plugin that runs.
    """

    def __init__(self, access: Access, *, yes: bool) -> None:
        self._access, self._yes = access, yes
        self._known: frozenset[str] | None = None

    def remember(self, capabilities: tuple[str, ...]) -> None:
        """Say yes to these, whatever the code is, from now on."""
        self._known = frozenset(capabilities)

    def decide(self, request: "ApprovalRequest") -> "Approval":
        """Return the answer."""
        from ringfence.plugins.approval import Approval
        from ringfence.plugins.prompt import PromptApprover

        if self._yes:
            return Approval.ALWAYS
        if self._known is not None and self._known.issuperset(request.capabilities):
            return Approval.ONCE
        left = self._open(request)
        if not left:
            return Approval.ONCE
        answer = PromptApprover().decide(replace(request, capabilities=left, added=left))
        return Approval.SESSION if answer is Approval.ALWAYS and self._access.is_given else answer

    def _open(self, request: "ApprovalRequest") -> tuple[str, ...]:
        """Return what nobody has granted yet: a profile grants nothing where somebody has to be asked."""
        from ringfence.plugins.approval import Reason
        from ringfence.sandbox.capabilities import Grant

        profile = self._access.profile
        if profile is not None and not profile.approval and request.reason is not Reason.PRIVILEGED:
            return ()
        spoken = {grant.capability for grant in self._access.allowed}
        return tuple(text for text in request.questions if Grant.parse(text).capability not in spoken)
