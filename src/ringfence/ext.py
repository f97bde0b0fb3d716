"""Extensions of an instance: declare, find and configure them.

A class that follows StaticPluginEXT and PluginEXT and carries `@define_plugin` can be enabled by its NAME. Nothing else
of ringfence is imported for it, since such a class may also run as a sandboxed plugin, in a worker.
"""

from ringfence.plugins.catalog import (
    CATALOG,
    ExtensionKind,
    PluginCatalog,
    PluginEntry,
    PluginRegistryEntry,
    define_plugin,
    load_plugin_by_name,
)
from ringfence.plugins.extension import DynPluginEXT, PluginEXT, StaticPluginEXT
from ringfence.plugins.opaque import OpaqueList, opaque_object

__all__ = [
    "CATALOG",
    "DynPluginEXT",
    "ExtensionKind",
    "OpaqueList",
    "PluginCatalog",
    "PluginEXT",
    "PluginEntry",
    "PluginRegistryEntry",
    "StaticPluginEXT",
    "define_plugin",
    "load_plugin_by_name",
    "opaque_object",
]
