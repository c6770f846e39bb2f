"""What an error tells a client besides its envelope."""

import pytest

from gateway.errors import RateLimited, Unauthorized, Unavailable


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"), [(0.0, "1", "0"), (0.2, "1", "200"), (1.4, "2", "1400"), (3, "3", "3000")]
)
def test_a_client_is_never_told_to_come_too_early(wait_s, seconds, milliseconds):
    """Whole seconds are rounded up, and none is a second; milliseconds say it exactly."""
    assert RateLimited("x", retry_after_s=wait_s).headers() == [("retry-after", seconds), ("retry-after-ms", milliseconds)]


def test_only_what_is_known_about_trying_again_is_said():
    """A key that is not known stays so; of what is down, nothing is said unless somebody knows."""
    assert Unauthorized("x").headers() == [("x-should-retry", "false")]
    assert Unavailable("x").headers() == []
    assert Unavailable("x", should_retry=True).headers() == [("x-should-retry", "true")]
