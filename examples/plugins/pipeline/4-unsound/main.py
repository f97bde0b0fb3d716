def process(data):
    return data
