"""The registry: names to things, and help for names that do not exist."""

import pytest

from misfm.errors import ConfigError
from misfm.models.base import NETWORKS
from misfm.pretext.base import PRETEXTS
from misfm.registry import Registry, closest


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """A package of two modules that register what they define."""
    package = tmp_path / "shapes_package"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from misfm.registry import Registry\n\nSHAPES = Registry('shape', __name__)\n"
    )
    (package / "cube.py").write_text(
        "from shapes_package import SHAPES\n\n@SHAPES.register('cube', 'box')\nclass Cube:\n    pass\n"
    )
    (package / "ball.py").write_text("from shapes_package import SHAPES\n\nSHAPES.register('ball')(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import shapes_package

    return shapes_package.SHAPES


def test_a_new_module_is_found_without_a_list_to_edit(shapes):
    assert shapes.names() == ["ball", "box", "cube"]
    assert shapes.get("ball") == 3
    assert shapes.get("cube") is shapes.get("box")


def test_unknown_names_are_answered_with_the_nearest_then_all(shapes):
    with pytest.raises(ConfigError) as error:
        shapes.get("cubes")
    assert str(error.value) == "There is no shape 'cubes'; did you mean 'cube'? Choose from: ball, box, cube."


def test_a_name_like_nothing_gets_the_list_alone(shapes):
    with pytest.raises(ConfigError, match=r"There is no shape 'xyz'; choose from: ball, box, cube\."):
        shapes.get("xyz")


def test_a_name_cannot_be_taken_twice():
    registry = Registry("shape", "nowhere")
    registry.register("cube")(1)
    with pytest.raises(ValueError, match="'cube' is registered twice"):
        registry.register("ball", "cube")(2)


def test_what_misfm_ships_is_registered():
    assert {"unet", "pctnet"} <= set(NETWORKS.names())
    assert {"volume-fusion-v1", "volume-fusion-v2"} <= set(PRETEXTS.names())


def test_closest_tolerates_a_typing_error():
    assert closest("volumefusion-v2", ["volume-fusion-v1", "volume-fusion-v2"]).startswith(
        "did you mean 'volume-fusion-v2'?"
    )
