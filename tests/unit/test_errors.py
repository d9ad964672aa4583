"""LiserErrors keep their message when they are pickled and sent between processes.

Ray carries errors from process to process as pickles, and so do these tests: the bytes that they
read are those that they wrote in the same line.
"""

import pickle

from liser_dist.errors import SampleError, ShardError
from liser_dist.records import Reason


def test_what_others_write_into_an_error_is_not_shown() -> None:
    error = ShardError("the shard a.tar was replaced; put it back")
    error.args = (f"{error.args[0]}\nTo change retry attempts, configure ...",)
    assert str(pickle.loads(pickle.dumps(error))) == "the shard a.tar was replaced; put it back"


def test_a_reason_survives_with_its_detail() -> None:
    error = pickle.loads(pickle.dumps(SampleError(Reason.NO_AUDIO, "3 streams")))
    assert (error.reason, error.detail, str(error)) == (
        Reason.NO_AUDIO, "3 streams", "no_audio: 3 streams",
    )  # fmt: skip
