"""Evaluate formulas that strangers typed in: the wrong, the endless and the hostile ones fail alone.

python examples/formulas.py
"""

import math

from ringfence import Limits, Pool, RingfenceError

FORMULAS = [
    "sum(i * i for i in range(1000))",
    "math.comb(60, 30)",
    "1 / 0",
    "9 ** 9 ** 9",
    "'x' * 10 ** 10",
    "open('/etc/passwd').read()",
    "__import__('subprocess').run('id')",
    "__import__('ctypes').string_at(0)",
    "2 ** 0.5",
]


def evaluate(formula):
    return eval(formula, {"math": math})


def main():
    with Pool(2, limits=Limits(memory="128MiB"), timeout="1s") as pool:
        futures = [(formula, pool.submit(evaluate, formula)) for formula in FORMULAS]
        for formula, future in futures:
            try:
                answer = future.result()
            except (RingfenceError, OSError, ArithmeticError) as error:
                answer = f"{type(error).__name__}: {error}"
            print(f"{formula:35} {str(answer).splitlines()[0][:90]}")


if __name__ == "__main__":
    main()
