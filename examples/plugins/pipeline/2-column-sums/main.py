def sums(rows):
    names, *numbers = rows
    return {name: sum(int(row[at]) for row in numbers) for at, name in enumerate(names)}
