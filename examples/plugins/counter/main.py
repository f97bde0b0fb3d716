"""One class, two worlds: in your own process as an extension, or in a locked-in worker as a plugin."""

import os
import uuid

from ringfence.api.ext.hylog import hyinfo
from ringfence.ext import OpaqueList, PluginEXT, StaticPluginEXT, define_plugin

steps = []


@define_plugin
class Counter(StaticPluginEXT, PluginEXT):
    UUID = uuid.UUID("1f0b7d7c-53a4-4a4c-9c9c-6f1f5f3a2b10")
    NAME = "__EXT_COUNTER"
    DESCRIPTION = "Counts its own steps"

    def __init__(self):
        steps.append("new")
        self.instance = None

    @classmethod
    def new(cls, _ext: OpaqueList):
        return cls()

    def attach_to(self, instance):
        steps.append("attach_to")
        self.instance = instance

    def initialize(self):
        steps.append("initialize")
        # What is behind `instance` is the application's, or, in a worker, as much of it as the host offers.
        hyinfo(self.instance, "counting, in process {}", os.getpid())

    def teardown(self):
        hyinfo(self.instance, "counted {}", ", ".join([*steps, "teardown"]))


def trace():
    return steps
