"""Probes find what is in the residual stream, and nothing where there is nothing."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import RATE, noise, tiny

from mgkit import MusicGen, audio, edits, trace
from mgkit.band.compose import compose
from mgkit.evals import labelled, probes
from mgkit.evals.probes import Activations, LabelledPiece

PIECES, WIDTH, MOMENTS = 120, 16, 6


@pytest.fixture(scope="module")
def model() -> MusicGen:
    return tiny()


def planted(strength: float, spread: np.ndarray | None = None) -> tuple[Activations, np.ndarray]:
    """Noise in three layers; in layer 1, pieces in minor are moved along a direction [D]."""
    rng = np.random.default_rng(1)
    minor = np.arange(PIECES) % 2 == 1
    direction = rng.normal(size=WIDTH)
    direction /= np.linalg.norm(direction)
    shape = (3, PIECES, MOMENTS, WIDTH)
    moments = rng.normal(size=shape) @ (np.eye(WIDTH) if spread is None else spread)
    moments[1, minor] += strength * direction
    labels = [{"mode": "minor" if each else "major"} for each in minor]
    pieces = [LabelledPiece(torch.zeros(4, MOMENTS), label) for label in labels]
    moments = moments.astype(np.float32)
    return Activations(pieces, (0, 1, 2), moments[:, :, 0], moments, np.arange(MOMENTS), 50, False), direction


# -- the probe ---------------------------------------------------------------------------------------------


def test_a_planted_direction_is_found_in_its_layer_alone():
    activations, direction = planted(6.0)
    found = activations.probe("mode")
    assert found.best.layer == 1 and found.best.accuracy.low > 0.9
    for layer in (0, 2):
        assert abs(found.scores[layer].accuracy.value - 0.5) < 0.15
    towards = found.direction("minor", 1).numpy()
    assert towards @ direction == pytest.approx(6, abs=0.7)
    assert towards @ direction / np.linalg.norm(towards) > 0.95
    assert torch.equal(found.direction("major", 1), -found.direction("minor", 1))


def test_a_direction_does_not_turn_away_from_correlated_noise():
    """Unlike the normal of a classifier's boundary, which would."""
    spread = np.eye(WIDTH) + 1.5 * np.outer(np.ones(WIDTH), np.eye(WIDTH)[0])
    activations, direction = planted(8.0, spread)
    towards = replace(activations, chosen=True).probe("mode").direction("minor", 1).numpy()
    assert towards @ direction / np.linalg.norm(towards) > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_are_at_chance(seed):
    control = planted(6.0)[0].probe("mode", seed).scores[1].control
    assert control.low - 0.05 < 0.5 < control.high + 0.05


def test_a_piece_is_never_in_both_training_and_test():
    """Each piece has its own place in the stream: known from training, its label would be known as well."""
    rng = np.random.default_rng(2)
    # wide enough for a linear probe to know every piece by heart
    own = rng.normal(size=(1, PIECES, 1, 200)) + 0.01 * rng.normal(size=(1, PIECES, MOMENTS, 200))
    labels = rng.permutation(PIECES) % 2
    pieces = [LabelledPiece(torch.zeros(4, MOMENTS), {"coin": "ab"[label]}) for label in labels]
    activations = Activations(pieces, (0,), own[:, :, 0], own, np.arange(MOMENTS), 50, True)
    assert activations.probe("coin").scores[0].accuracy.value < 0.65


def test_labels_of_frames_are_read_at_their_frames_and_nowhere_else():
    """With values that alternate, and moments without a label that would contradict them."""
    rng = np.random.default_rng(3)
    moments = 0.1 * rng.normal(size=(1, PIECES, MOMENTS, WIDTH)).astype(np.float32)
    moments[0, :, ::2, 0] += 1
    labels = ["on", "off", "on", "off", None, None]
    pieces = [LabelledPiece(torch.zeros(4, MOMENTS), {"state": labels}) for _ in range(PIECES)]
    whole = np.zeros((1, PIECES, WIDTH), np.float32)
    found = Activations(pieces, (0,), whole, moments, np.arange(MOMENTS), 50, False).probe("state")
    assert found.best.accuracy.value == 1 and found.samples == 4 * PIECES and found.chance == 0.5


def test_rare_values_are_left_out_and_chance_is_the_most_frequent_one():
    activations, _ = planted(0.0)
    names = ["rare"] * 4 + ["often"] * 80 + ["seldom"] * (PIECES - 84)
    pieces = [LabelledPiece(torch.zeros(4, MOMENTS), {"name": name}) for name in names]
    found = replace(activations, pieces=pieces).probe("name")
    assert found.values == ("often", "seldom") and found.pieces == PIECES - 4
    assert found.chance == pytest.approx(80 / (PIECES - 4))
    assert "name: 2 values, 116 pieces" in str(found) and str(found).count("\n") == 4


def test_intervals_of_accuracy_cover_the_share_of_later_pieces():
    """A probe with an accuracy of 84 % (two classes, two standard deviations apart), over many draws."""
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(1, 150, 1, 1)).astype(np.float32)
        high = np.arange(150) % 2 == 0
        x[0, high] += 2
        pieces = [LabelledPiece(torch.zeros(4, 1), {"level": "high" if each else "low"}) for each in high]
        activations = Activations(pieces, (0,), x[:, :, 0], x, np.arange(1), 50, False)
        accuracy = activations.probe("level").best.accuracy
        covered.append(accuracy.low <= 0.8413 <= accuracy.high)
    assert np.mean(covered) >= 0.85


# -- activations -------------------------------------------------------------------------------------------


def pieces_of(model: MusicGen, frames: int = 40, count: int = 10) -> list[LabelledPiece]:
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(model.lm.config.codebook_size, (count, 4, frames), generator=rng)
    return [LabelledPiece(each, {"half": "ab"[i % 2]}) for i, each in enumerate(codes)]


def test_a_moment_has_read_its_frame_and_none_after_it(model):
    pieces = pieces_of(model)
    moments = probes.read(model, pieces, at=[0.4]).moments
    frame = round(0.4 * model.frame_rate) - 1
    for changed, same in ((frame + 1, True), (frame, False)):
        others = [replace(piece, codes=piece.codes.clone()) for piece in pieces]
        for other in others:
            other.codes[-1, changed:] = (other.codes[-1, changed:] + 1) % model.lm.config.codebook_size
        equal = np.isclose(probes.read(model, others, at=[0.4]).moments, moments, atol=1e-5)
        assert equal.all() if same else not equal.all(axis=3).any()


def test_one_moment_is_that_of_a_reading_at_it(model):
    pieces = pieces_of(model, frames=100)
    later = probes.read(model, pieces).at(1.04)
    assert np.array_equal(later.moments, probes.read(model, pieces, at=[1.0]).moments) and later.chosen


def test_layers_are_those_of_residuals_and_edits(model):
    activations = probes.read(model, pieces_of(model), layers=[2, 0])
    assert activations.layers == (0, 2)
    everything = probes.read(model, pieces_of(model))
    assert everything.layers == (0, 1, 2)
    assert np.array_equal(activations.moments, everything.moments[[0, 2]])


def test_a_direction_moves_the_stream_where_it_was_read(model):
    """Along it, by the strength, in its own layer; as an edit of generation it changes the music."""
    activations = probes.read(model, pieces_of(model))
    direction = activations.probe("half").direction("a", layer=1)
    codes = activations.pieces[0].codes
    edit = edits.Add(1, direction, 2.0)
    manifest = model.generate(["calm piano"], seed=0, return_manifests=True)[1][0]
    plain, moved = (
        trace.retrace(model, codes, manifest | {"cfg_coef": 1.0}, keep=("residual",), edits=some)
        for some in ((), (edit,))
    )
    difference = moved.residual[1] - plain.residual[1]
    assert torch.allclose(difference, (2 * direction).expand_as(difference), atol=1e-4)
    assert torch.equal(moved.residual[0], plain.residual[0])
    model.set_generation_params(duration=1)
    tokens = [
        model.generate(["calm piano"], seed=0, return_tokens=True, edits=[edits.Add(1, direction, strength)])[
            1
        ]
        for strength in (0.0, 50.0)
    ]
    assert not torch.equal(*tokens)


def test_a_short_piece_among_long_ones_counts_to_its_end(model):
    pieces = pieces_of(model, frames=100)
    pieces[3] = LabelledPiece(pieces[3].codes[:, :60], {"half": "b"})
    activations = probes.read(model, pieces)
    assert activations.moments.shape[2] == 3
    ends = np.isnan(activations.moments).any(axis=(0, 3))
    assert ends.sum() == 1 and ends[3, 2]
    assert not np.isnan(activations.mean).any()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ({"layers": [3]}, "layers is \\[3\\]; give numbers from 0, .* to 2, the output of the last"),
        ({"layers": []}, "layers is \\[\\]"),
        ({"at": [7.0]}, "at is \\[7.0\\]; give moments in seconds, .* longest piece, 0.8 s"),
        ({"at": [0.0]}, "at is \\[0.0\\]"),
    ],
)
def test_impossible_layers_and_moments_are_refused(model, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        probes.read(model, pieces_of(model), **arguments)


def test_impossible_pieces_attributes_and_values_are_refused(model):
    with pytest.raises(ValueError, match="at least 10 pieces, got 3"):
        probes.read(model, pieces_of(model, count=3))
    with pytest.raises(ValueError, match="expected \\[4, T\\] with at most 500 frames"):
        probes.read(model, [LabelledPiece(torch.zeros(2, 9).long(), {})] * 10)
    activations, _ = planted(1.0)
    with pytest.raises(ValueError, match="no piece has the label 'genre'; the labels are mode"):
        activations.probe("genre")
    one = [LabelledPiece(torch.zeros(4, MOMENTS), {"mode": "minor"})] * PIECES
    with pytest.raises(ValueError, match="mode has 1 values with at least 5 pieces each, of 1 in 120 pieces"):
        replace(activations, pieces=one).probe("mode")
    found = activations.probe("mode")
    with pytest.raises(ValueError, match="'blue' is not a value of mode; choose one of major, minor"):
        found.direction("blue", 1)
    with pytest.raises(ValueError, match="layer 7 was not probed; the layers are 0, 1, 2"):
        found.direction("minor", 7)


# -- pieces ------------------------------------------------------------------------------------------------


def test_labels_of_the_band_are_those_of_the_piece():
    piece = compose(5, key=9, mode="minor", tempo=120, meter=4, lead="flute", drums=False, tune=None)
    labels = labelled.band_labels(piece, frames=300, rate=50)
    whole = {name: value for name, value in labels.items() if isinstance(value, str)}
    assert whole["key"] == "A minor" and whole["tonic"] == "A" and whole["mode"] == "minor"
    assert whole["tempo"] == "106 to 121 bpm" and whole["meter"] == "4/4"
    assert whole["lead"] == "flute" and whole["drums"] == "no drums"
    # half a second a beat
    assert labels["beat"][:100:25] == ["1", "2", "3", "4"]
    start, duration, pitch, _ = piece.tracks[0].notes[2]
    assert labels["pitch"][round((start + duration / 2) * 50)][:-1] == labelled.NOTES[pitch % 12]
    for start, chord in piece.chords[:2]:
        assert labels["chord"][round(start * 50) + 5].startswith(labelled.NOTES[chord[0]] + ":")


def test_a_folder_of_labelled_recordings_is_probed(model, tmp_path):
    lines = ["file,place,weather"]
    for i in range(12):
        audio.write(tmp_path / f"{i}.wav", noise(1, RATE * 2, seed=i), RATE)
        lines.append(f"{i}.wav,{'hall' if i % 2 else 'room'},{'dry' if i < 3 else ''}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    pieces = probes.folder_pieces(model, tmp_path)
    assert len(pieces) == 12 and pieces[0].codes.shape == (4, 100)
    assert pieces[1].labels == {"place": "hall", "weather": "dry"} and pieces[5].labels == {"place": "hall"}
    found = probes.probe(model, pieces, "place", layers=[1])
    assert found.pieces == 12 and found.values == ("hall", "room")


@pytest.mark.parametrize(
    "table, sentence",
    [
        (None, "there is no file .*labels.csv': list the recordings there"),
        ("name,key\na.wav,C\n", "must begin with the names of its columns, .* its first line is 'name,key'"),
        ("", "must begin with the names of its columns"),
        ("file,key\na.wav,C,x\n", "has 2 columns, but 3 cells in line 2"),
        ("file,key\na.wav,C\n", "names files that do not exist: a.wav"),
    ],
)
def test_a_malformed_table_of_labels_is_refused_with_its_line(model, tmp_path, table, sentence):
    if table is not None:
        (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        probes.folder_pieces(model, tmp_path)


@pytest.mark.slow
def test_nano_knows_the_key_of_the_band_s_pieces(soundfont):
    nano = MusicGen.get_pretrained("nano", device="cpu")
    pieces = probes.band_pieces(nano, 100, seconds=5.0)
    found = probes.probe(nano, pieces, "tonic")
    assert found.best.accuracy.low > 0.5
    assert all(score.control.low < 0.2 for score in found.scores)


@pytest.mark.parametrize("module", [labelled, probes])
def test_doctests_of_probes_pass(module):
    assert doctest.testmod(module).failed == 0
