"""Have an instance's messages brought to a function of yours.

python examples/logger_from_python.py
"""

from ringfence.api import ApplicationInfo, InstanceCreateInfo, InstanceEXT, Version, create_instance
from ringfence.api.ext.hylog import LogCreateInfoEXT, LogLevelEXT, hydebug, hyinfo, hytrace


def show(msg):
    # How long things took is another each time.
    print(f"{msg.level.name:5} {msg.message.partition(' in ')[0]}")


def main():
    create_info = InstanceCreateInfo(
        application_info=ApplicationInfo(
            application_name="Notebook",
            application_version=Version.parse("0.1.0"),
            engine_name="Hyperion",
            engine_version=Version.parse("0.1.1"),
        ),
        enabled_extensions=[InstanceEXT.LOGGER.value],
        ext=[LogCreateInfoEXT(level=LogLevelEXT.DEBUG, callback=show)],
    )
    with create_instance(create_info) as instance:
        hytrace(instance, "below the level: nobody hears this")
        hydebug(instance, "{} of {}", 3, 4)
        hyinfo(instance, "said by {name}, with no arguments: nothing is filled in")


if __name__ == "__main__":
    main()
