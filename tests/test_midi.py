"""MIDI files as melodies: notes in time, drums left out, damaged files refused in a sentence."""

import random
import sys

import pytest
import torch
from tiny import RATE, tune

from mgkit import audio, melody, midi

mido = pytest.importorskip("mido")

FRAME = melody.HOP / RATE
C, E, G, A = 60, 64, 67, 69


def write(path, *tracks, tempo=500_000):
    """A MIDI file of tracks of messages (type, note, velocity, ticks since the previous one)."""
    file = mido.MidiFile(ticks_per_beat=480)
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)]))
    for channel, messages in tracks:
        made = (
            mido.Message(kind, channel=channel, note=note, velocity=velocity, time=ticks)
            for kind, note, velocity, ticks in messages
        )
        file.tracks.append(mido.MidiTrack(made))
    file.save(path)
    return path


def note(pitch, beats, rest=0):
    return [("note_on", pitch, 64, round(480 * rest)), ("note_off", pitch, 64, round(480 * beats))]


def test_notes_sound_in_the_frames_of_their_time(tmp_path):
    """A beat of 0.512 s is 4 frames; the tempo of the file counts."""
    path = write(tmp_path / "a.mid", (0, [*note(C, 1), *note(E, 2), *note(G, 1, rest=1)]), tempo=512_000)
    chroma = midi.read_chroma(path, RATE)
    assert chroma.argmax(dim=1).tolist() == [0] * 4 + [4] * 8 + [0] * 4 + [7] * 4
    assert (chroma.sum(dim=1) == 1).all()
    write(path, (0, note(C, 1)), tempo=1_024_000)
    assert len(midi.read_chroma(path, RATE)) == 8


def test_voices_sound_together_and_drums_are_left_out(tmp_path):
    path = write(tmp_path / "a.mid", (0, note(C, 4)), (3, note(A, 4)), (midi.DRUMS, note(38, 8)))
    [row] = midi.read_chroma(path, RATE).unique(dim=0)
    assert row.nonzero().flatten().tolist() == [0, 9]


def test_a_short_note_sounds_and_a_note_of_velocity_0_ends(tmp_path):
    messages = [("note_on", E, 64, 0), ("note_on", E, 0, 10), *note(C, 4)]
    chroma = midi.read_chroma(write(tmp_path / "a.mid", (0, messages)), RATE)
    assert chroma[0, 4] == 1 and not chroma[1:, 4].any()


def test_a_note_without_an_end_lasts_to_the_end_of_the_file(tmp_path):
    path = write(tmp_path / "a.mid", (0, [("note_on", E, 64, 0), *note(G, 4)]))
    assert midi.read_chroma(path, RATE)[:, [4, 7]].all()


def test_other_files_are_read_as_audio(tmp_path):
    wave, rate = midi.read_melody(audio.write(tmp_path / "a.wav", tune(0.5), 8000), RATE)
    assert wave.shape == (1, 16000) and rate == 8000


@pytest.mark.parametrize("content", [b"", b"RIFF", b"MThd", b"MThd\0\0\0\6\0\1\0\1\1\xe0MTrk\0\0\0\4\0\xff"])
def test_a_damaged_file_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / "a.mid").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.mid .*(MIDI file|notes)") as caught:
        midi.read_chroma(tmp_path / "a.mid")
    assert "\n" not in str(caught.value)


def test_bytes_changed_at_random_are_read_or_refused(tmp_path):
    path = write(tmp_path / "a.mid", (0, note(C, 1) * 20), (midi.DRUMS, note(38, 1) * 5))
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole[: draw.randrange(len(whole) + 1)] if draw.random() < 0.3 else whole)
        for _ in range(draw.randrange(4)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            chroma = midi.read_chroma(path)
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            assert torch.equal(melody.parse_chroma(chroma), chroma)


def test_a_file_without_notes_or_of_many_hours_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no notes apart from drums"):
        midi.read_chroma(write(tmp_path / "a.mid", (midi.DRUMS, note(38, 1))))
    with pytest.raises(ValueError, match="more than an hour"):
        midi.read_chroma(write(tmp_path / "a.mid", (0, note(C, 9000))))


def test_without_mido_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mid", (0, note(C, 1)))
    monkeypatch.setitem(sys.modules, "mido", None)
    with pytest.raises(ImportError, match="pip install mido"):
        midi.read_chroma(path)
