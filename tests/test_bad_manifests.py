"""Manifests that cannot be replayed are refused in one clear sentence."""

import base64
import math
import zlib

import pytest
import soundfile
from refusals import GOOD, refusal
from tiny import RATE

from mgkit import audio


@pytest.fixture
def manifest(text):
    _, [manifest] = text.generate_continuation(GOOD, RATE, ["calm"], seed=3, return_manifests=True)
    return manifest


@pytest.mark.parametrize("ending", list(audio.FORMATS))
def test_a_file_without_a_manifest_is_refused(tmp_path, ending):
    for comment in (None, "recorded at home", "[]", '{"title": "song"}', "{"):
        form, encoding = audio.FORMATS[ending]
        with soundfile.SoundFile(tmp_path / f"a{ending}", "w", RATE, 1, encoding, format=form) as file:
            if comment:
                file.comment = comment
            file.write(GOOD.T.numpy())
        refusal(lambda: audio.read_manifest(tmp_path / f"a{ending}"), f"a{ending}", "how it was made")


BAD_VALUES = {
    "weights": [..., None, 5],
    "settings": [..., None, 5, "x", []],
    "text": [..., 5, [], {}],
    "negative": [..., 5, []],
    "seed": [..., None, "x", [], {}, -1, 2**70],
    "melody": [..., None, 5, "x", [], {"x": "eJw="}, {"0": "eJw="}, {"0": 5}],
    "prompt": [..., None, 5, "x", [], "eJw=", "eJwDAAAAAAE="],
    "frames": ["x", [], {}, 5, -1, math.inf, math.nan, 1e300],
    "tokens": [..., None, 5, "x"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, bad in BAD_VALUES.items() for value in bad])
def test_a_broken_manifest_is_refused(text, manifest, key, value):
    broken = {
        name: value if name == key else was for name, was in manifest.items() if (name, value) != (key, ...)
    }
    assert broken != manifest
    refusal(lambda: text.replay(broken))


@pytest.mark.parametrize("manifest", [None, {}, [], "calm", {"mgkit": "9.9"}])
def test_an_object_that_is_not_a_manifest_is_refused(text, manifest):
    refusal(lambda: text.replay(manifest))


def test_a_manifest_with_an_unknown_setting_is_refused_by_name(text, manifest):
    settings = manifest["settings"] | {"reverb": 1}
    refusal(lambda: text.replay(manifest | {"settings": settings}), "reverb")


def test_a_manifest_of_other_weights_is_refused(melody, stereo, manifest):
    for model in (melody, stereo):
        refusal(lambda model=model: model.replay(manifest), "weights")


@pytest.mark.parametrize("key", ["prompt", "melody"])
def test_a_small_manifest_that_unpacks_to_much_is_refused(text, manifest, key):
    bomb = base64.b64encode(zlib.compress(bytes(2**26))).decode()
    assert len(bomb) < 100_000
    refusal(
        lambda: text.replay(manifest | {key: bomb if key == "prompt" else {"0": bomb}}), "unpacks to more"
    )
