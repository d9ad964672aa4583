"""A child process that may crash: its limits, its end, and what it does not load."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pebble import ProcessExpired, ProcessPool

from liser_dist.child import ChildContext, enter_child

LIMIT_BYTES = 512 * 2**20
SHARED = Path("/dev/shm")
PARENT = """
import sys, time
print("main is loaded", flush=True)
from pebble import ProcessPool
from liser_dist.child import ChildContext, enter_child
import os
if __name__ == "__main__":
    context = ChildContext(preload="liser_dist.child")
    pool = ProcessPool(1, initializer=enter_child, initargs=(2**29,), context=context)
    print(pool.schedule(os.getpid).result(), flush=True)
    if sys.argv[1] == "busy":
        pool.schedule(time.sleep, args=(600,))
    time.sleep(600)
"""

LOUD = """
from pebble import ProcessPool
from liser_dist.child import ChildContext, enter_child
code = "import os, sys; os.write(2, b'native' * 4000); print('python', file=sys.stderr)"
if __name__ == "__main__":
    context = ChildContext(preload="liser_dist.child")
    with ProcessPool(1, initializer=enter_child, initargs=(2**29,), context=context) as pool:
        pool.schedule(exec, args=(code,)).result()
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def pool():
    context = ChildContext(preload="liser_dist.child")
    with ProcessPool(
        1, initializer=enter_child, initargs=(LIMIT_BYTES,), context=context
    ) as started:
        yield started
        started.stop()


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _allocate(size: int) -> int:
    return len(bytes(size))


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_killed_parent_leaves_no_child_and_no_shared_memory(state, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    shared_before = set(SHARED.iterdir())
    parent = subprocess.Popen(
        [sys.executable, str(script), state],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        lines = [parent.stdout.readline().strip() for _ in range(2)]
        mine = {file for file in set(SHARED.iterdir()) - shared_before if _holds(parent, file)}
        assert lines[0] == "main is loaded"
        child = int(lines[1])  # the child itself has not loaded, and announced, the main module
        time.sleep(0.2)
        assert not _gone(child)
    finally:
        parent.kill()
        parent.wait()
    until = time.monotonic() + 5
    while not _gone(child) and time.monotonic() < until:
        time.sleep(0.02)
    assert _gone(child)
    assert not any(file.exists() for file in mine)


def _holds(parent: subprocess.Popen, file: Path) -> bool:
    return str(file) in Path(f"/proc/{parent.pid}/maps").read_text()


def test_memory_beyond_the_limit_is_refused_in_the_child_alone(pool):
    assert pool.schedule(_allocate, args=(LIMIT_BYTES // 4,)).result() == LIMIT_BYTES // 4
    with pytest.raises(MemoryError):
        pool.schedule(_allocate, args=(2 * LIMIT_BYTES,)).result()


def test_a_killed_child_costs_its_own_task_alone(pool):
    first = pool.schedule(os.getpid).result()
    killed = pool.schedule(os.kill, args=(first, signal.SIGKILL))
    queued = [pool.schedule(abs, args=(-n,)) for n in range(4)]
    with pytest.raises(ProcessExpired):
        killed.result()
    assert [task.result() for task in queued] == [0, 1, 2, 3]


def test_native_code_has_no_voice_and_python_has(tmp_path):
    script = tmp_path / "loud.py"
    script.write_text(LOUD)
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert run.stderr == "python\n"


def test_decoding_loads_neither_torch_nor_ray():
    code = (
        "import sys, numpy, liser_dist.decode as d, liser_dist.speech as s;"
        "s.speech_s(numpy.zeros(16000, numpy.int16), 16000);"
        "assert not {'torch', 'ray', 'silero_vad'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True)


def test_it_knows_no_secret_of_its_parent() -> None:
    asked = """eval, args=("dict(__import__('os').environ)",))"""
    code = PARENT.replace("os.getpid)", asked).replace("    time.sleep(600)", "    pool.stop()")
    secrets = {"RAY_AUTH_TOKEN": "a-secret", "AWS_SECRET_ACCESS_KEY": "another"}
    done = subprocess.run(
        [sys.executable, "-c", code, "idle"], env=ENVIRONMENT | secrets | {"PLAIN": "plain"},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "'PLAIN': 'plain'" in done.stdout
    assert "secret" not in done.stdout
    assert "another" not in done.stdout
