import logging

from ringfence.guest import host

log = logging.getLogger("talker")


def process(data):
    print(f"working on {data}")
    log.warning("%s is not much", data)
    return data.upper()


def publish(text):
    return host.publish(text)


def cleanup():
    log.info("goodbye")
