"""The gallery: every artifact in it is small, is shown, and is worth what its card says."""

import json

import pytest
from test_cli import called, no_folder_of_the_users  # noqa: F401

from d3jax import artifact
from experiments import gallery

ENTRIES = sorted(path.parent for path in gallery.GALLERY.glob("*/card.json"))


def card(folder):
    return json.loads((folder / "card.json").read_text())


def test_the_gallery_is_small_and_its_page_is_of_its_cards():
    assert ENTRIES
    for folder in ENTRIES:
        made, said = artifact.load(folder), card(folder)
        assert folder.name == said["entry"]
        assert folder.name in gallery.ENTRIES
        assert made.ledger["bytes"]["total"] == said["bytes"] <= gallery.LARGEST
        assert made.header["method"] == said["method"]
    page = (gallery.GALLERY / "README.md").read_text()
    assert page == gallery.table(), "run python -m experiments.gallery ENTRY"


@pytest.mark.slow
@pytest.mark.parametrize("folder", ENTRIES, ids=lambda folder: folder.name)
def test_an_entry_is_shown_and_reaches_what_its_card_says(folder, capsys, tmp_path):
    """By other students than the card's: within two of their standard deviations, or two points,
    since the deviation of five students is itself off by a third."""
    called(capsys, "show", folder, "--picture", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    out = tmp_path / "judged.json"
    called(capsys, "evaluate", folder, "--seed=11", "--json", out)
    found, said = json.loads(out.read_text())["accuracy"], card(folder)["accuracy"]
    assert abs(found["mean"] - said["mean"]) <= 2 * max(found["sd"], said["sd"], 0.01)
