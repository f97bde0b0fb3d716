import os

# Which process this is: each has its own view of the system, in which its number is 1 as often as not.
ME = os.urandom(4).hex()


def process(number):
    return [number * number, ME]
