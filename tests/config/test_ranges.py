import pytest

from jaxfusion.config import Config, override
from jaxfusion.config.ranges import LEAST, check_ranges
from jaxfusion.errors import UserError


def test_the_defaults_are_in_range():
    check_ranges(Config())


@pytest.mark.parametrize("name", LEAST)
def test_a_number_that_means_nothing_is_told_by_its_full_name(name):
    wrong = LEAST[name] - 1
    with pytest.raises(UserError, match=f"^config.{name}: {wrong} is too small; use {LEAST[name]} or more$"):
        override(Config(), {name: str(wrong)})
    override(Config(), {name: str(LEAST[name])})
