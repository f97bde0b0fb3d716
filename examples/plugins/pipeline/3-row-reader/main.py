import csv
import io


def rows(text):
    return list(csv.reader(io.StringIO(text)))
