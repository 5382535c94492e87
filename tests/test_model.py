"""d3jax train, and the network that it keeps."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from test_artifact import PIXELS, make

import d3jax
from d3jax import artifact, cli
from d3jax.artifact.model import save_model
from d3jax.types import InputError

DARK, LIGHT = 40, 200
ZCA = {"epsilon": 0.1, "images": "0" * 16, "train_limit": None, "validation": 0, "seed": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run left that distilled dark images as its class 0 and light ones as its class 1."""
    out = tmp_path_factory.mktemp("run")
    levels = jnp.asarray([DARK, DARK, LIGHT, LIGHT], jnp.float32) / 255
    images = jnp.broadcast_to((levels[:, None, None, None] - 0.5) / 0.25, (4, 8, 8, 1))
    made = make(
        PIXELS, {"data": {"images": images}}, architecture={"network": "mlp", "width": 4},
        protocol={"epochs": 20, "augmentation": []}, student_learning_rate=0.05,
        class_names=("1", "0"),
    )  # fmt: skip
    artifact.save(made, out / artifact.NAME)
    return out


@pytest.fixture(scope="module")
def model(folder):
    """The file that the command wrote."""
    cli.main(["train", str(folder), "--out", str(folder / "model.safetensors")])
    return folder / "model.safetensors"


def pixels(*levels):
    return np.stack([np.full((8, 8, 1), level, np.uint8) for level in levels])


def test_a_network_is_a_function_of_images(model):
    found = d3jax.load_model(model)
    assert found(pixels(DARK, LIGHT, LIGHT)).tolist() == [0, 1, 1]
    assert found.class_names == ["1", "0"]
    assert found(pixels(DARK)[:0]).shape == (0,)
    assert {"architecture", "normalization", "image_shape", "method", "dataset"} <= {*found.header}
    images = pixels(*range(0, 255, 4))
    normalized = jnp.asarray((images / 255 - 0.5) / 0.25, jnp.float32)
    expected = found.network.apply(found.params, normalized)
    np.testing.assert_allclose(found.logits(images), expected, rtol=1e-4, atol=1e-5)


def test_it_is_tested_where_a_data_set_is_named(folder, tmp_path, capsys):
    """Classes are those of the artifact, by name: its class 1 is called 0."""
    labels = {"train_labels": np.array([0, 1]), "test_labels": np.array([0, 1, 0])}
    images = {"train_images": pixels(LIGHT, DARK), "test_images": pixels(LIGHT, DARK, DARK)}
    np.savez(tmp_path / "levels.npz", **images, **labels)
    out = str(tmp_path / "m.safetensors")
    cli.main(["train", str(folder), "--out", out, "--dataset", str(tmp_path / "levels.npz")])
    assert "test accuracy 66.67 % on 3 images of" in capsys.readouterr().out
    assert d3jax.load_model(out).header["test"]["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "images",
    [pixels(1)[0], pixels(1).astype(np.float32), pixels(1)[:, :7], np.zeros((1, 8, 8, 3), "u1")],
)
def test_images_that_are_not_its_own(images, model):
    with pytest.raises(InputError, match=r"takes images uint8\[N, 8, 8, 1\], not"):
        d3jax.load_model(model)(images)


def test_weights_that_are_not_finite_are_not_kept(folder, model, capsys):
    before, out = model.read_bytes(), ["--out", str(model)]
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(folder), "--learning-rate", "1e30", *out])
    assert caught.value.code == 1
    assert "give a lower --learning-rate" in capsys.readouterr().err
    assert model.read_bytes() == before


def test_files_that_are_no_network(model, folder, tmp_path):
    def refused(content):
        path = tmp_path / "m.safetensors"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            d3jax.load_model(path)
        return str(caught.value)

    whole = model.read_bytes()
    assert "not a sound" in refused(whole[:-1])
    assert "no network of d3jax" in refused((folder / artifact.NAME).read_bytes())
    arrays = safetensors.numpy.load_file(model)
    header = d3jax.load_model(model).header

    def packed(arrays=arrays, **changes):
        text = json.dumps({**header, **changes})
        return safetensors.numpy.save(arrays, metadata={"d3jax_model": text})

    assert "format version 9" in refused(packed(format_version=9))
    assert "not JSON" in refused(packed(origin=float("nan")))
    assert "not those of the network" in refused(
        packed(architecture={"network": "mlp", "width": 5})
    )
    assert "cannot be built" in refused(packed(architecture={"network": "mlp", "colour": 5}))
    assert "give it to load_model" in refused(packed(architecture={"network": "nets:own"}))
    null = {"mean": [0.5], "sd": [None]}
    assert "needs one sd for each channel" in refused(packed(normalization=null))
    nan = {name: np.full_like(x, np.nan) for name, x in arrays.items()}
    assert "not finite" in refused(packed(nan))
    with pytest.raises(InputError, match="there is no model at"):
        d3jax.load_model(tmp_path / "none")


def test_a_network_is_saved_as_it_was(model, tmp_path):
    found = d3jax.load_model(model)
    save_model(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": {"mean": [0.5], "sd": [0.25], "zca": ZCA}}, "whitened"),
        ({"architecture": {"network": "nets:own"}}, "say yourself --network"),
    ],
)
def test_artifacts_of_which_no_network_can_be_kept(changes, message, tmp_path, capsys):
    artifact.save(make(PIXELS, **changes), tmp_path / "a.safetensors")
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "m")])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
