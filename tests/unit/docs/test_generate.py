"""The generated pages are current and describe everything."""

import re

import pytest

from docs.generate import REFERENCE, ROOT, SPECS, pages, resumable_fields
from liser_dist.config.base import fields_of, may_change_on_resume
from liser_dist.config.distill import DistillSpec
from liser_dist.records import Reason


@pytest.mark.parametrize("name", ["spec.md", "cli.md", "rejection-reasons.md"])
def test_committed_page_is_current(name: str) -> None:
    assert (REFERENCE / name).read_text() == pages()[name], "run `make docs` and commit the pages"


def test_every_field_of_every_spec_is_on_the_page() -> None:
    page = pages()["spec.md"]
    for kind in SPECS.values():
        for name, _ in fields_of(kind):
            last = name.rpartition(".")[2]
            assert re.search(rf"^\| `[\w.*]*\b{last}` \|", page, re.MULTILINE), name


def test_the_list_of_resumable_fields_is_the_one_that_a_resume_applies() -> None:
    listed = [name.strip("`") for name, jobs in resumable_fields().items() if "distill" in jobs]
    for name, _ in fields_of(DistillSpec):
        is_listed = any(
            f"{name}.".startswith(one.removesuffix("*").rstrip(".") + ".") for one in listed
        )
        assert is_listed == may_change_on_resume(DistillSpec, name), name


def test_every_rejection_reason_is_on_the_page() -> None:
    page = pages()["rejection-reasons.md"]
    assert all(f"| `{reason}` | {reason.description} |" in page for reason in Reason)


def test_every_dependency_has_a_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    page = (ROOT / "docs" / "development" / "dependencies.md").read_text()
    for requirement in [*project["dependencies"], *(one for extra in extras for one in extra)]:
        name = re.split(r"[\[<>=]", requirement)[0]
        assert re.search(rf"[| ,]{name}[ ,|]", page), name
