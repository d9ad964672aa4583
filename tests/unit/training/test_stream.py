"""A worker passes the error that ended its stream to the other workers."""

import pickle
from collections.abc import Iterator

import pytest
import ray.exceptions

from liser_dist.errors import TeacherError
from liser_dist.training.stream import next_clips

REPLACED = TeacherError("`teachers.speech`: the weights have changed")


def broken(error: Exception) -> Iterator[None]:
    yield from ()
    raise error


@pytest.mark.parametrize(
    "raised",
    [REPLACED, ray.exceptions.RayTaskError("Teach", "a traceback", REPLACED).as_instanceof_cause()],
    ids=["of this process", "of a stage"],
)
def test_an_error_of_the_user_is_passed_on_as_it_was_raised(raised: Exception) -> None:
    rows, failure = next_clips(broken(raised))
    assert rows == []
    assert pickle.dumps(failure)  # so it goes to the others; the class that Ray makes of it cannot
    assert type(failure) is TeacherError
    assert str(failure) == str(REPLACED)


def test_another_error_is_raised() -> None:
    with pytest.raises(ray.exceptions.RayActorError):
        next_clips(broken(ray.exceptions.RayActorError()))
