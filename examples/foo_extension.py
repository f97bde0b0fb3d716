"""Write an extension: code of your own, in your own process, found by its name, taken up and down in strict order.

python examples/foo_extension.py
"""

import uuid

from ringfence.api import ApplicationInfo, InstanceCreateInfo, Version, create_instance
from ringfence.ext import OpaqueList, PluginEXT, StaticPluginEXT, define_plugin, load_plugin_by_name


@define_plugin
class FooPlugin(StaticPluginEXT, PluginEXT):
    UUID = uuid.UUID("cdb726aa-8656-486f-a5b5-ff09f37a83fb")
    NAME = "__EXT_FOO"
    DESCRIPTION = "Provides foo-related features"

    def __init__(self):
        self.instance = None

    @classmethod
    def new(cls, _ext: OpaqueList):
        print("new: take your configuration from the list, acquire nothing")
        return cls()

    def attach_to(self, instance):
        print("attach_to: every extension exists; keep the weak reference")
        self.instance = instance

    def initialize(self):
        print(f"initialize: every extension is attached; the instance is there: {self.instance() is not None}")

    def teardown(self):
        print("teardown: undo it")

    def foo(self):
        return "foo"


def main():
    version = Version.parse("0.1.0")
    info = InstanceCreateInfo(
        application_info=ApplicationInfo("Notebook", version, "Hyperion", version),
        enabled_extensions=["__EXT_FOO"],
    )
    with create_instance(info) as instance:
        print("in between:", instance.get_plugin_ext(FooPlugin).foo())
    print("by its name alone:", load_plugin_by_name("__EXT_FOO", OpaqueList()).description)


if __name__ == "__main__":
    main()
