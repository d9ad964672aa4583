"""A child process has limits, ends with its parent, and loads only what it needs."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pebble import ProcessExpired, ProcessPool

from liser_dist.data.child_process import (
    ChildContext,
    Crashed,
    Done,
    Interrupted,
    Sandbox,
    TimedOut,
    enter_child,
)

LIMIT_BYTES = 512 * 2**20
SHARED = Path("/dev/shm")
PARENT = """
import sys, time
print("main is loaded", flush=True)
from pebble import ProcessPool
from liser_dist.data.child_process import ChildContext, enter_child
import os
if __name__ == "__main__":
    context = ChildContext(preload="liser_dist.data.child_process")
    pool = ProcessPool(1, initializer=enter_child, initargs=(2**29,), context=context)
    print(pool.schedule(os.getpid).result(), flush=True)
    if sys.argv[1] == "busy":
        pool.schedule(time.sleep, args=(600,))
    time.sleep(600)
"""

LOUD = """
from pebble import ProcessPool
from liser_dist.data.child_process import ChildContext, enter_child
code = "import os, sys; os.write(2, b'native' * 4000); print('python', file=sys.stderr)"
if __name__ == "__main__":
    context = ChildContext(preload="liser_dist.data.child_process")
    with ProcessPool(1, initializer=enter_child, initargs=(2**29,), context=context) as pool:
        pool.schedule(exec, args=(code,)).result()
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


@pytest.fixture
def pool():
    context = ChildContext(preload="liser_dist.data.child_process")
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
        "import sys, numpy, liser_dist.data.clip_decoder, liser_dist.data.voice_activity as s;"
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


# ---------------------------------------------------------------- the sandbox

LIMIT_S = 30.0


def _prepare() -> None:
    os.environ["PREPARED"] = "yes"


def _sandbox(**options: object) -> Sandbox:
    return Sandbox(
        memory_bytes=LIMIT_BYTES,
        preload="liser_dist.data.child_process",
        prepare=_prepare,
        **options,
    )


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = _sandbox()
    yield sandbox
    sandbox.close()


def _fail(message: str) -> None:
    raise ValueError(message)


def _pid(sandbox: Sandbox) -> int:
    return sandbox.call(os.getpid, limit_s=LIMIT_S).value


def test_a_call_runs_in_a_prepared_child_and_returns_its_value(sandbox: Sandbox) -> None:
    assert sandbox.call(os.getenv, "PREPARED", limit_s=LIMIT_S) == Done("yes")
    assert _pid(sandbox) not in (os.getpid(), 0)


def test_what_a_call_raises_reaches_the_caller_and_the_child_stays(sandbox: Sandbox) -> None:
    child = _pid(sandbox)
    with pytest.raises(ValueError, match="wrong"):
        sandbox.call(_fail, "wrong", limit_s=LIMIT_S)
    assert _pid(sandbox) == child


@pytest.mark.parametrize(
    ("function", "argument", "reason"),
    [(signal.raise_signal, signal.SIGSEGV, "killed by SIGSEGV"), (os._exit, 3, "exit status 3")],
    ids=["signal", "exit"],
)
def test_a_call_that_kills_its_child_has_crashed(sandbox, function, argument, reason) -> None:
    calls = [sandbox.submit(function, argument, limit_s=LIMIT_S)]
    calls += [sandbox.submit(abs, -number, limit_s=LIMIT_S) for number in range(3)]
    assert [sandbox.wait(call) for call in calls] == [Crashed(reason), Done(0), Done(1), Done(2)]


def test_a_call_beyond_its_time_limit_is_stopped_alone(sandbox: Sandbox) -> None:
    slow = sandbox.submit(time.sleep, 600, limit_s=0.2)
    quick = sandbox.submit(abs, -1, limit_s=LIMIT_S)
    assert sandbox.wait(slow) == TimedOut(started=True)
    assert sandbox.wait(quick) == Done(1)


def test_a_call_that_never_reaches_a_child_is_told_apart() -> None:
    sandbox = _sandbox(start_limit_s=0.2)
    try:
        sandbox.submit(time.sleep, 600, limit_s=600)
        waiting = sandbox.submit(abs, -1, limit_s=LIMIT_S)
        assert sandbox.wait(waiting) == TimedOut(started=False)
    finally:
        sandbox.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_call_whose_child_is_killed_from_outside_is_interrupted(sandbox, number) -> None:
    outcome = sandbox.call(signal.raise_signal, number, limit_s=LIMIT_S)
    assert isinstance(outcome, Interrupted)
    assert outcome.started
    assert sandbox.call(abs, -1, limit_s=LIMIT_S) == Done(1)


def test_a_child_killed_between_two_calls_is_replaced(sandbox: Sandbox) -> None:
    child = _pid(sandbox)
    os.kill(child, signal.SIGKILL)
    outcomes = [sandbox.call(abs, -1, limit_s=LIMIT_S) for _ in range(2)]
    assert outcomes[-1] == Done(1)
    assert outcomes[0] == Done(1) or not outcomes[0].started
    assert _pid(sandbox) != child


def test_memory_beyond_the_limit_is_an_error_of_the_call(sandbox: Sandbox) -> None:
    with pytest.raises(MemoryError):
        sandbox.call(_allocate, 2 * LIMIT_BYTES, limit_s=LIMIT_S)
    assert sandbox.call(abs, -1, limit_s=LIMIT_S) == Done(1)


def test_a_child_is_replaced_after_so_many_calls() -> None:
    sandbox = _sandbox(calls_per_child=2)
    try:
        children = [_pid(sandbox) for _ in range(6)]
    finally:
        sandbox.close()
    assert len(set(children)) == 3


def test_closing_ends_the_child_and_calls_that_wait() -> None:
    before = set(multiprocessing.active_children())
    sandbox = _sandbox()
    assert _pid(sandbox)
    sandbox.submit(time.sleep, 600, limit_s=600)
    sandbox.close()
    sandbox.close()
    assert sandbox.closed
    assert set(multiprocessing.active_children()) <= before


CREDENTIALS = """
import os, sys
from liser_dist.data.child_process import Sandbox
if __name__ == "__main__":
    sandbox = Sandbox(
        memory_bytes=2**29, preload="liser_dist.data.child_process", prepare=os.getpid,
        reads_storage=sys.argv[1] == "True",
    )
    names = ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")
    print(*(sandbox.call(os.getenv, name, limit_s=30).value for name in names))
    sandbox.close()
"""


@pytest.mark.parametrize(("reads_storage", "key"), [(False, "None"), (True, "a-key")])
def test_only_a_child_that_reads_storage_has_the_s3_credentials(reads_storage, key) -> None:
    secrets = {"RAY_AUTH_TOKEN": "a-token", "AWS_SECRET_ACCESS_KEY": "a-key"}
    # In a process of its own: the fork server keeps the environment of the first child.
    done = subprocess.run(
        [sys.executable, "-c", CREDENTIALS, str(reads_storage)], env=ENVIRONMENT | secrets,
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [key, "None"]
