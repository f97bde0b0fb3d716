"""Any bytes are a manifest that is written and read again as it was, or an error of ours that says what is wrong."""

import warnings
from pathlib import Path

import pytest
from fuzzing import Target, explored, inputs, kind_of
from hypothesis import given, settings

from ringfence.errors import PluginError
from ringfence.plugins.manifest import Manifest

_FOLDER = Path(__file__).parent.parent / "data" / "manifests"
_SEEDS = [path.read_bytes() for path in sorted(_FOLDER.rglob("*")) if path.suffix in (".toml", ".json")]
_WORDS = """name version api-version source exports capabilities scopes limits dependencies tags description = [ ] { }
[[dependencies]] [scopes] [limits] \"\"\" ''' \\u202e \\ud800
1e999 -0 nan 1979-05-27T07:32:00Z ../ /etc/passwd fs:read=/
net:request=* 0x 0o 1_0 true false inf ^1.0 >=0.1 # \x00 \x1b \x7f \ufeff " ' . a.b.c.d"""


def check(data: bytes) -> str:
    """Read `data` as TOML, or as JSON where it begins like that, strictly and not."""
    read = Manifest.from_json if data[:1] == b"{" else Manifest.from_toml
    came = []
    for strict in (True, False):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = read(data, strict=strict)
                again = Manifest.from_toml(made.to_toml(), strict=strict)
        except (PluginError, ValueError) as error:
            # Not any ValueError: those of ours, which are PluginErrors or say what was wrong with a policy.
            assert type(error).__module__.startswith("ringfence"), repr(error)
            assert len(str(error)) < 100_000
            came.append(kind_of(error))
            continue
        assert (again.name, again.version, again.capabilities) == (made.name, made.version, made.capabilities)
        assert made.name.isascii()
        assert not set(made.name) & set("/.\\ \n")
        came.append("a manifest")
    return ", ".join(came)


TARGET = Target(check, _SEEDS, [word.encode("utf-8", "surrogatepass") for word in _WORDS.split()] + [b"\n", b"\xff"])


@settings(max_examples=150)
@given(inputs(TARGET))
def test_any_bytes_are_a_manifest_or_an_error_of_ours(data: bytes) -> None:
    """The invariant above."""
    check(data)


@pytest.mark.soak
def test_manifests_for_long() -> None:
    """The same, for as long as is asked for."""
    explored(TARGET, "manifests")
