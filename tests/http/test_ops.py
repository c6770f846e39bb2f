"""What /v1/models tells of a model that is served here."""

import pytest

from gateway import config
from gateway.errors import InvalidRequest
from gateway.http.ops import model_object
from gateway.local.parameters import TABLE, read_text

LOCAL = """
[upstreams.local]
kind = "local"
[upstreams.echo]
kind = "echo"
zone = "local"
takes_up_to = "restricted"
[local_models.tiny]
kind = "chat"
weights = "tiny"
[models.tiny]
candidates = [{ upstream = "local", capabilities = ["chat"] }]
[models.echo]
candidates = [{ upstream = "echo", capabilities = ["chat"] }]
[cache]
semantic = false
"""


@pytest.fixture
def shown(tmp_path):
    """An entry of /v1/models, by model."""
    path = tmp_path / "config.toml"
    path.write_text(LOCAL)
    loaded = config.load(path)
    return {name: model_object(loaded, name, 1) for name in loaded.models}


def test_only_a_local_model_says_what_it_makes_of_parameters(shown):
    """What stands elsewhere knows its own."""
    assert "local_parameters" not in shown["echo"]
    assert set(shown["tiny"]["local_parameters"]) == {"chat/completions"}


def test_every_parameter_stands_where_the_code_has_it(shown):
    """Each row of the table once, for the endpoints that the model has."""
    told = shown["tiny"]["local_parameters"]["chat/completions"]
    assert {(name, does) for does, names in told.items() for name in names} == {
        (row.name, row.does) for row in TABLE if "chat/completions" in row.endpoints
    }


def test_what_is_said_to_be_refused_is_refused(shown):
    """By name, whatever else the request holds."""
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    for name in shown["tiny"]["local_parameters"]["chat/completions"]["refused"]:
        with pytest.raises(InvalidRequest) as refused:
            read_text("chat/completions", {**asked, name: {"odd": 1}})
        assert refused.value.param == name
