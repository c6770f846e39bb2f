"""The picture of a replay: a PNG in which new flows stand out."""

import sys

import pytest
from matplotlib.image import imread

from gateway.errors import ConfigError
from gateway.flows import draw
from gateway.replay import NOBODY, Flow, Side

USUAL = [
    Flow(class_="restricted", zone="local", before=Side(requests=30, may_reach=30), after=Side(requests=30, may_reach=30)),
    Flow(class_="public", zone="us", before=Side(requests=60, may_reach=70), after=Side(requests=50, may_reach=70)),
    Flow(class_="public", zone=NOBODY, before=Side(requests=5), after=Side(requests=15)),
]
OPENED = Flow(class_="restricted", zone="us", after=Side(may_reach=20))


def red_share(path):
    """Share of the pixels that are red, as new flows are."""
    pixels = imread(path)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return ((red > 0.7) & (green < 0.6) & (blue < 0.6)).mean()


def test_a_new_flow_is_red_even_where_it_is_nobodys_first_choice(tmp_path):
    """The picture is a PNG with bands; red is in it exactly when something can newly go somewhere."""
    draw(USUAL, tmp_path / "usual.png")
    draw(iter([*USUAL, OPENED]), tmp_path / "opened.png")
    assert (tmp_path / "usual.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert red_share(tmp_path / "usual.png") == 0
    assert red_share(tmp_path / "opened.png") > 0
    assert imread(tmp_path / "usual.png")[..., :3].std() > 0.05, "nothing is drawn"


def test_a_log_without_flows_gives_an_empty_picture(tmp_path):
    """Nothing to draw is no fault."""
    draw([], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_a_picture_that_cannot_be_written_names_its_file(tmp_path):
    """The fault is the operator's to mend, and told as one."""
    with pytest.raises(ConfigError, match=r"nowhere/flows\.png: cannot be written: No such file"):
        draw(USUAL, tmp_path / "nowhere" / "flows.png")


def test_without_matplotlib_the_mend_is_named(tmp_path, monkeypatch):
    """The message says what to install, or what to leave out."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"--png: .*gateway\[plots\].*leave --png out"):
        draw(USUAL, tmp_path / "flows.png")
