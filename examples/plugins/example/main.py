seen = []


def init():
    seen.append("init")


def process(data):
    seen.append("process")
    return data.upper()


def cleanup():
    seen.append("cleanup")
