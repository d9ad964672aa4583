"""A page that names a field, file, command or module that does not exist is found."""

import pytest

from docs.references import mistakes_in_messages, mistakes_in_page

SOUND = """
Set `train.batch_size`, `--data.unlabelled`, `loss.fusion: mean` or `teachers.*.kind`; `{"a": 1}`.
Run `python jobs/distill.py my-job.yaml --check`, `make test` or `liser predict --student student/`.
See `jobs/specs/demo.yaml`, `liser_dist/config/`, `result.json`, `liser_dist.load_student`.

```yaml
# my-job.yaml
name: web-av
data: {unlabelled: clips/}
teachers: {speech: {kind: huggingface, model: a/b}}
```

```sh
python jobs/ingest.py --source films/ --output clips/ --watch   # a comment
ray job submit --working-dir . -- python jobs/distill.py my-job.yaml --train.epochs 5
```

```python
from liser_dist.config.distill import DistillSpec
```
"""


def test_a_page_that_names_what_exists_has_no_mistakes() -> None:
    assert mistakes_in_page(SOUND) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("`train.batchsize`", "train.batchsize"),
        ("`trian.batch_size`", "trian.batch_size"),
        ("`--data.unlabeled`", "--data.unlabeled"),
        ("`--teach-once`", "--teach-once"),
        ("`loss.fusion: product`", "fusion"),
        ("`jobs/destill.py`", "jobs/destill.py"),
        ("`liser_dist/desk.py`", "liser_dist/desk.py"),
        ("`liser_dist.load_teacher`", "liser_dist.load_teacher"),
        ("`results.json`", "results.json"),
        ("`make tests`", "make tests"),
        ("`liser distill`", "liser distill"),
        ("`jobs/report.py runs --pages 3`", "--pages"),
        ("```sh\npython jobs/distill.py my-job.yaml --epochs 3\n```", "--epochs"),
        ("```sh\npython jobs/distill.py jobs/specs/dema.yaml\n```", "jobs/specs/dema.yaml"),
        ("```yaml\ntrain: {epoch: 3}\n```", "epoch"),
        ("```yaml\ntrain: {epochs: many}\n```", "epochs"),
        ("```yaml\n# my-job.yaml\nname: web-av\n```", "data"),
        ("```python\nfrom liser_dist.config.distill import Spec2\n```", "Spec2"),
    ],
)
def test_what_does_not_exist_is_found(wrong: str, named: str) -> None:
    (mistake, *_) = mistakes_in_page(f"A line.\n\n{wrong}\n")
    assert mistake.startswith("line 3: ")
    assert named in mistake


def test_a_heading_that_quotes_no_message_is_found() -> None:
    text = (
        "### the student would learn nothing\n\n### the student left the house\n\n### Slow { #x }\n"
    )
    (mistake,) = mistakes_in_messages(text)
    assert "left the house" in mistake
