"""Phases refuse other settings and say which; files and folders are whole or absent."""

import json
from pathlib import Path

import pytest

from fewshard_models.errors import RecipeError
from fewshard_models.files import whole_file, whole_folder
from fewshard_models.recipes.registry import RECIPES, TIERS, find, of_tier
from fewshard_models.recipes.workspace import Workspace, digest


def test_phase_refuses_any_other_setting_and_names_it(tmp_path: Path):
    work = Workspace(tmp_path)
    settings = {"fit": {"epochs": 3, "smoothing": 0.1}, "init": "abc"}
    folder = work.phase("a", settings)
    before = (folder / "asked.json").read_bytes()
    assert work.phase("a", settings) == folder
    with pytest.raises(RecipeError, match=r"fit\.smoothing was 0\.1, is 0\.2"):
        work.phase("a", {**settings, "fit": {"epochs": 3, "smoothing": 0.2}})
    with pytest.raises(RecipeError, match="init was abc, is None"):
        work.phase("a", {**settings, "init": None})
    with pytest.raises(RecipeError, match="seed was 0, is 1"):
        Workspace(tmp_path, seed=1).phase("a", settings)
    assert (folder / "asked.json").read_bytes() == before


def test_digest_follows_the_weights_not_the_path(tmp_path: Path):
    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({}))
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def write_half(context, target: Path) -> None:
    with context(target) as partial:
        (partial / "half" if partial.is_dir() else partial).touch()
        raise KeyboardInterrupt


def test_an_error_while_writing_leaves_what_was_there(tmp_path: Path):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    (folder / "old").touch()
    for context, target in ((whole_file, file), (whole_folder, folder)):
        with pytest.raises(KeyboardInterrupt):
            write_half(context, target)
    assert file.read_text() == "old"
    assert [entry.name for entry in folder.iterdir()] == ["old"]
    with whole_folder(folder) as partial:
        (partial / "new").touch()
    assert [entry.name for entry in folder.iterdir()] == ["new"]


def test_recipes_by_tier_and_by_bare_name():
    assert find("sst2-moe") is find("tiny/sst2-moe")
    assert find("small/sst2-moe").model == "sst2-moe"
    with pytest.raises(RecipeError, match=r"no recipe 'huge/sst2-moe'; there are tiny/sst2-dense, "):
        find("huge/sst2-moe")
    assert sum(len(of_tier(tier)) for tier in TIERS) == len(RECIPES)
    for name, recipe in RECIPES.items():
        assert all(find(start).tier == recipe.tier for start in recipe.starts), name
