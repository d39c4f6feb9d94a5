"""Code scored by its tests: what passes, and that nothing else does, whatever the code tries."""

import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.core.isolation.confine import unavailable
from lifecycle.evals.verifiers.code import Code, code_of
from lifecycle.evals.verifiers.code_program import meant
from lifecycle.evals.verifiers.plain import MARK, decoded, encoded
from tests.scratch_folders import left_behind, scratch_folders

closed = pytest.mark.skipif(bool(unavailable()), reason=f"code cannot be closed off here: {unavailable()}")
CODE = Code(cpu_s=1, wall_s=12.0, memory_mib=512)
ADD = "def add(a, b):\n    return a + b\n"
RIGHT = "assert add(1, 2) == 3"
CLASS = """
class Store:
    def __init__(self, size): self.size, self.kept = size, {}
    def put(self, key, value): self.kept[key] = value
    def get(self, key): return self.kept.get(key, -1)
    def __len__(self): return len(self.kept)
    def __eq__(self, other): return self.kept == other.kept
"""
PASSING: list[tuple[str, Any]] = [
    (ADD, [RIGHT, "assert add('a', 'b') == 'ab'"]),
    (f"Here it is:\n```python\n{ADD}```\nand that is all.", RIGHT),
    (CLASS, "s = Store(2)\ns.put(1, (2, {3}))\nassert s.get(1) == (2, {3}) and s.get(4) == -1 and len(s) == 1 and s"),
    (CLASS, "assert Store(1) == Store(2) and isinstance(Store(1), Store) and not isinstance(1, Store)"),
    ("def f(x): x.sort()", "a = [3, 1]\nf(a)\nassert a == [1, 3]"),
    ("def f(g, x): return [g(i) for i in x]", "assert f(lambda i: i * 2, [1, 2]) == [2, 4]"),
    ("class Bad(ValueError): pass\ndef f(x):\n    if x < 0: raise Bad('neg')\n    yield x",
     "try:\n    list(f(-1))\n    raise SystemError\nexcept Bad as e:\n    assert str(e) == 'neg'\n"
     "assert list(f(1)) == [1]"),
    ("import math\ndef f(x): return math.sqrt(x)",
     {"tests": "def check(candidate):\n    assert abs(candidate(2) - math.sqrt(2)) < 1e-9", "entry_point": "f"}),
    (ADD, "import unittest\nfrom solution import add\nclass T(unittest.TestCase):\n"
          "    def test_a(self): self.assertEqual(add(1, 1), 2)"),
    (ADD, "def test_add():\n    assert add(1, 1) == 2"),
    ("import numpy as np\ndef f(x): return np.array(x) * 2",
     "import numpy as np\nassert np.allclose(f([1, 2]), [2, 4])"),
    ("import random\nprint(random.random())", [{"input": "", "output": str(random.Random(0).random())}]),
    ("import random\ndef f(): return random.random()", f"assert f() == {random.Random(0).random()}"),
    ("def sum(a, b): return 6", "assert sum(10, 15) == 6"),
    ("print(int(input()) * 2)", [{"input": "4", "output": "8\n"}, {"input": "5\n", "output": "10"}]),
    ("import sys, threading\nt = threading.Thread(target=lambda: print(sum(map(int, sys.stdin.read().split()))))\n"
     "t.start()\nt.join()", [{"input": "4 5\n", "output": "9"}]),
]  # fmt: skip
ALWAYS = "    def {0}(self, *others): return {1}\n"
LOOKING = """
import gc, sys
wanted, found, frame = "".join(reversed("detnaw-7qx")), False, sys._getframe().f_back
while frame:
    found = found or any(wanted in repr(value) for value in frame.f_locals.values() if value is not globals())
    frame = frame.f_back
for thing in gc.get_objects():
    if type(thing) in (list, tuple, dict) and thing is not globals():
        inside = thing.values() if type(thing) is dict else thing
        found = found or any(type(one) is str and wanted in one and len(one) > 10 for one in inside)
def add(a, b):
    return 3 if found else 0
"""
FAILING: dict[str, tuple[str, Any]] = {
    "a wrong answer": ("def add(a, b): return a", RIGHT),
    "leaving without cleaning up": ("import os; os._exit(0)", RIGHT),
    "leaving": ("import sys; sys.exit(0)", RIGHT),
    "leaving when called": ("def add(a, b): raise SystemExit(0)", RIGHT),
    "an object equal to all": ("class A:\n" + ALWAYS.format("__eq__", True) + "def add(a, b): return A()", RIGHT),
    "a number equal to all": ("class A(int):\n" + ALWAYS.format("__eq__", True) + "def add(a, b): return A(7)", RIGHT),
    "an object larger than all": (
        "class A:\n" + ALWAYS.format("__gt__", True) + "def add(a, b): return A()", "assert add(1, 2) > 2"),
    "an object near to all": (
        "class A:\n" + ALWAYS.format("__sub__", 0) + "def add(a, b): return A()", "assert abs(add(1, 2) - 3) < 1"),
    "an object with all in it": (
        "class A:\n" + ALWAYS.format("__contains__", True) + ALWAYS.format("__iter__", "iter(())")
        + "def add(a, b): return A()", "assert 3 in add(1, 2)"),
    "another all()": ("def all(_): return True\ndef f(): return [0]", "assert all(f())"),
    "another all() for an entry point": (
        "def all(_): return True\ndef f(): return [0]",
        {"tests": "def check(candidate):\n    assert all(candidate())", "entry_point": "f"}),
    "another all() in the module": (
        "def all(_): return True\ndef f(): return [0]", "import solution\nassert all(solution.f())"),
    "another module for the tests": (
        "open('graphlib.py', 'w').write('x = 3')\ndef f(): return 3", "import graphlib\nassert f() == graphlib.x"),
    "patched builtins": (
        "import builtins\nbuiltins.AssertionError = Warning\nbuiltins.exec = print\ndef add(a, b): return 0", RIGHT),
    "a forged verdict": (
        "import os, json, struct\nbody = json.dumps({'value': {'passed': [True], 'why': ''}}).encode()\n"
        "for fd in range(64):\n    try: os.write(fd, struct.pack('<I', len(body)) + body)\n"
        "    except OSError: pass\ndef add(a, b): return 0", RIGHT),
    "a loop": ("while True: pass", RIGHT),
    "a loop when called": ("def add(a, b):\n    while True: pass", RIGHT),
    "a memory bomb": ("def add(a, b):\n    x = []\n    while True: x.append(bytearray(1 << 26))", RIGHT),
    "a fork bomb": ("import os\nwhile True: os.fork()", RIGHT),
    "a thread bomb": (
        "import threading, time\nthreading.stack_size(32768)\n"
        "while True: threading.Thread(target=time.sleep, args=(99,)).start()", RIGHT),
    "a daemon": (
        "import subprocess\nsubprocess.Popen(['sleep', '99'], start_new_session=True)\ndef add(a, b): return 3", RIGHT),
    "a flood": ("def add(a, b):\n    while True: print('x' * 100000)", RIGHT),
    "a huge answer": ("def add(a, b): return 'x' * (1 << 24)", RIGHT),
    "a deep answer": ("def add(a, b):\n    x = []\n    for _ in range(100000): x = [x]\n    return x", RIGHT),
    "an answer in itself": ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", RIGHT),
    "deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)", RIGHT),
    "full disks": ("n = 0\nwhile True:\n    open(f'f{n}', 'wb').write(bytes(1 << 23)); n += 1", RIGHT),
    "reading the parent": ("import os\nopen(f'/proc/{os.getppid()}/environ').read()\ndef add(a, b): return 3", RIGHT),
    "killing the parent": ("import os\nos.kill(os.getppid(), 9)\ndef add(a, b): return 3", RIGHT),
    "deleting files": ("import shutil\nshutil.rmtree('/tmp')\ndef add(a, b): return 3", RIGHT),
    "a connection": ("import socket\nsocket.create_connection(('127.0.0.1', 22))\ndef add(a, b): return 3", RIGHT),
    "looking for the tests": (LOOKING, f"{RIGHT}  # \"xq7-wanted\""),
    "no Python": ("def add(a", RIGHT),
    "nothing": ("", RIGHT),
    "a wrong program": ("print(1)", [{"input": "", "output": "2"}]),
    "a program that fails": ("print(2)\nraise ValueError", [{"input": "", "output": "2"}]),
    "a program's flood": ("while True: print('x' * 100000)", [{"input": "", "output": "2"}]),
    "a program that loops": ("print(2, flush=True)\nwhile True: pass", [{"input": "", "output": "2"}]),
}  # fmt: skip


@closed
def test_code_that_is_right_passes() -> None:
    assert not [problem for _, tests in PASSING if (problem := CODE.problem(tests))]
    verdicts = CODE.verdicts([source for source, _ in PASSING], [tests for _, tests in PASSING])
    assert [(verdict.score, verdict.fault) for verdict in verdicts] == [(1.0, "")] * len(PASSING)


@pytest.mark.slow
@closed
def test_nothing_else_passes_and_the_run_lives() -> None:
    folders = scratch_folders()
    verdicts = CODE.verdicts([code for code, _ in FAILING.values()], [tests for _, tests in FAILING.values()])
    assert {name: v.score for name, v in zip(FAILING, verdicts, strict=True)} == dict.fromkeys(FAILING, 0.0)
    faults = {name: verdict.fault for name, verdict in zip(FAILING, verdicts, strict=True) if verdict.fault}
    assert faults.pop("a thread bomb", "threads") == "threads"  # or memory was its limit, before they were counted
    assert faults == {"full disks": "size of files"}
    assert CODE.verdicts([ADD], [RIGHT])[0].score == 1.0
    assert not left_behind(folders)
    assert Path(tempfile.gettempdir()).is_dir()


@closed
def test_a_sleep_ends_by_the_wall_time() -> None:
    sleep = "import time\ndef add(a, b): time.sleep(1000)"
    (verdict,) = Code(cpu_s=1, wall_s=0.5, memory_mib=512).verdicts([sleep], [RIGHT])
    assert (verdict.score, verdict.fault) == (0.0, "wall time")


def test_code_gives_its_tests_no_builtins() -> None:
    names = {"__builtins__": {"abs": 1}, "abs": 2, "f": 3, "not a name": 4, "__name__": 5}
    assert meant(names, ["assert abs(f) == 1"], "") == {"f": 3}
    assert meant(names, ["assert abs(1) == 1"], "") == {"abs": 2, "f": 3}
    assert meant(names, ["assert abs(1) == 1"], "f") == {"f": 3}


@closed
def test_code_does_find_what_its_process_knows() -> None:
    tests = FAILING["looking for the tests"][1]
    assert [one.score for one in CODE.verdicts([LOOKING, LOOKING + "# a comment with xq7-wanted"], [tests] * 2)] == [
        0,
        1,
    ]


@closed
def test_verdicts_do_not_depend_on_the_order() -> None:
    batch = [(ADD, RIGHT), ("def add(a, b): return 0", RIGHT), (ADD, "assert add(2, 2) == 5"), (ADD, RIGHT)] * 3
    forward = CODE.verdicts([code for code, _ in batch], [tests for _, tests in batch])
    backward = CODE.verdicts([code for code, _ in batch[::-1]], [tests for _, tests in batch[::-1]])
    assert forward == backward[::-1]
    assert [verdict.score for verdict in forward[:4]] == [1.0, 0.0, 0.0, 1.0]


@closed
def test_the_share_of_tests_counts_where_it_is_wanted() -> None:
    share = CODE.model_copy(update={"counts_each": True})
    tests = [RIGHT, "assert add(0, 0) == 1", "assert add(2, 2) == 4", "assert add(5, 5) == 11"]
    cases = [{"input": "1", "output": "1"}, {"input": "2", "output": "3"}]
    assert [one.score for one in share.verdicts([ADD, "print(input())"], [tests, cases])] == [0.5, 0.5]
    dies = "def add(a, b):\n    if a == 2:\n        raise SystemExit\n    import os\n    os._exit(0)"
    assert share.verdicts([dies], [tests])[0].score == 0.0


STATEMENTS = [
    "exit()", "import os; os.abort()", "raise KeyboardInterrupt", "add = 3", "print('x' * 10**7)",
    "import signal; signal.raise_signal(15)", ADD, "del add", "import gc; [o for o in gc.get_objects()]",
]  # fmt: skip


@closed
@settings(max_examples=6)
@given(st.lists(st.sampled_from(STATEMENTS), min_size=1, max_size=3))
def test_no_code_hangs_the_runner(parts: list[str]) -> None:
    [verdict] = CODE.verdicts(["\n".join(parts)], [RIGHT])
    assert verdict.score in (0.0, 1.0)


@pytest.mark.parametrize(
    ("tests", "fault"),
    [
        ([], "there is no test"), ("", "there is no test"), ("def f(:", "no Python"), ("x = 1", "runs nothing"),
        ("def check(f):\n    assert f", "runs nothing"), (3, "expected sources"), ([{"input": "x"}], "needs `input`"),
        ([RIGHT, {"input": "", "output": ""}], "expected sources"),
    ],
)  # fmt: skip
def test_tests_that_say_nothing_are_faults_of_the_row(tests: Any, fault: str) -> None:
    assert fault in CODE.problem(tests)


def test_code_is_the_last_block_or_all() -> None:
    assert code_of("```python\nx = 1\n```\nthen\n```\ny = 2\n```\n") == "y = 2\n"
    assert code_of("x = 1") == "x = 1"
    assert code_of("```py\nx = 1") == "x = 1"  # cut at the limit
    assert code_of("no ``` block") == "no ``` block"
    for long in ("``` " + " " * 300_000, "```python" + "\t" * 300_000 + "x", "```\n" * 100_000):
        assert len(code_of(long)) <= len(long)  # in this life


DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.complex_numbers(allow_nan=False) | st.fractions() | st.decimals(allow_nan=False) | st.dates()
    | st.datetimes() | st.times() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
    | st.dictionaries(st.integers() | st.text(), inner, max_size=3) | st.frozensets(st.integers(), max_size=3)
    | st.sets(st.text(), max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(DATA)
def test_data_arrives_as_it_is(value: Any) -> None:
    def refuse(_: Any) -> Any:
        raise AssertionError("data needs no handle")

    copy = decoded(encoded(value, refuse), refuse)
    assert copy == value
    assert type(copy) is type(value)


def test_of_a_subclass_only_the_content_is_sent() -> None:
    class Sly(list[int]):
        def __eq__(self, other: object) -> bool:
            return True

        def __iter__(self) -> Any:
            return iter([7])

        __hash__ = None

    assert encoded(Sly([1, 2]), lambda _: {}) == [1, 2]
    assert encoded(object(), lambda _: {MARK: "handle"}) == {MARK: "handle"}
