def deploy(what):
    return f"{what} is everywhere"
