"""Edits change what a forward pass computes, where and when they say, and nothing else."""

import json
import threading
from collections.abc import Callable

import pytest
import torch
from refusals import refusal
from test_properties import close, run, run_with_manifests
from tiny import RATE, noise, tiny, tune
from torch import Tensor

from mgkit import MusicGen
from mgkit.edits import Add, At, Edit, Patch, ScaleHead
from mgkit.interventions import EditedPass
from mgkit.trace import retrace

LAYOUTS = ("text", "melody", "stereo")
TEXTS = ["calm piano", "", "fast loud drums with a dark choir"]
SECONDS = 0.6


@pytest.fixture(scope="module")
def made() -> dict[str, MusicGen]:
    """A tiny model of each layout."""
    return {name: tiny(melody=name == "melody", channels=1 + (name == "stereo")) for name in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def model(made, request) -> MusicGen:
    """A tiny model with windows of 10 s."""
    made[request.param].max_duration = 10.0
    made[request.param].set_generation_params(duration=SECONDS)
    return made[request.param]


@pytest.fixture
def plain(made) -> MusicGen:
    """The tiny text model."""
    made["text"].max_duration = 10.0
    made["text"].set_generation_params(duration=SECONDS)
    return made["text"]


def direction(seed: int = 0, scale: float = 3.0) -> Tensor:
    """A direction [D] of the residual stream."""
    return scale * torch.randn(128, generator=torch.Generator().manual_seed(seed))


def returned(x: Tensor, at: At) -> Tensor:
    """An edit's function that changes nothing."""
    return x


# --- edits that change nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["prompt", "null", "both"])
def test_an_edit_of_strength_0_changes_no_token(model, streams):
    before = run(model, TEXTS, 5)
    for layer in range(3):
        assert torch.equal(run(model, TEXTS, 5, edits=[Add(layer, direction(), 0.0, streams)]), before)
        # A strength that begins after the piece takes the path of edits.
        later = [Add(layer, direction(), [(5, 0.0), (5, 2.0)], streams)]
        assert torch.equal(run(model, TEXTS, 5, edits=later), before)


def test_an_edit_that_changes_nothing_costs_nothing(plain, monkeypatch):
    """In half precision, the steps of an edited run would also round otherwise."""
    monkeypatch.setattr(EditedPass, "__call__", lambda *_: pytest.fail("an idle edit was applied"))
    idle = [Add(1, direction(), 0.0), ScaleHead(0, 1, 1), Patch(1, torch.zeros(5, 128), [])]
    _, [manifest] = run_with_manifests(plain, ["calm piano"], 5, edits=idle)
    assert len(manifest["edits"]) == 3


@pytest.mark.parametrize("streams", ["prompt", "null", "both"])
def test_a_head_scaled_by_1_changes_no_token(model, streams):
    before = run(model, TEXTS, 5)
    assert torch.equal(run(model, TEXTS, 5, edits=[ScaleHead(1, 0, 1.0, streams)]), before)
    x = torch.randn(2, 2, 5, 64)
    assert torch.equal(ScaleHead(1, 0, 1.0).apply(x, At(1, "attention", range(5)), 50), x)


def test_a_function_that_returns_what_it_gets_changes_no_token(model):
    assert torch.equal(run(model, TEXTS, 5, edits=[Edit(returned)]), run(model, TEXTS, 5))


# --- edits that change something --------------------------------------------------------------------------

EDITS: dict[str, Callable[[], object]] = {
    "add at the embeddings": lambda: Add(0, direction()),
    "add": lambda: Add(1, direction()),
    "add at the end": lambda: Add(2, direction()),
    "schedule": lambda: Add(1, direction(), [(0, 0.0), (0.5, 2.0)]),
    "add to the prompt's stream": lambda: Add(1, direction(), 0.5, "prompt"),
    "add to the null stream": lambda: Add(1, direction(), 0.5, "null"),
    "head": lambda: ScaleHead(0, 1, 0),
    "patch": lambda: Patch(1, 3 * torch.randn(15, 128, generator=torch.Generator().manual_seed(0))),
    "function": lambda: Edit(lambda x, at: -x if at[:2] == (1, "mlp") else x),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_the_tokens_and_the_next_run_is_as_before(model, kind):
    before = run(model, TEXTS, 5)
    assert not torch.equal(run(model, TEXTS, 5, edits=[EDITS[kind]()]), before)
    assert torch.equal(run(model, TEXTS, 5), before)


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("two_step_cfg", [False, True])
def test_an_edit_affects_a_sample_in_a_batch_as_alone(model, kind, two_step_cfg):
    model.set_generation_params(duration=SECONDS, two_step_cfg=two_step_cfg)
    together = run(model, TEXTS, [5, 17, 4], edits=[EDITS[kind]()])
    for i, (text, seed) in enumerate(zip(TEXTS, (5, 17, 4), strict=True)):
        assert torch.equal(run(model, [text], seed, edits=[EDITS[kind]()]), together[i : i + 1])


def test_an_edit_of_both_streams_is_that_of_a_forward_hook(model):
    hook = model.lm.layers[0].register_forward_hook(lambda module, given, x: x + direction())
    hooked = run(model, TEXTS, 5)
    hook.remove()
    # The hook adds to chroma and words too, which only a melody model has in the stream.
    alike = model.conditioner.melody_frames is None
    assert torch.equal(run(model, TEXTS, 5, edits=[Add(1, direction())]), hooked) == alike


@pytest.mark.parametrize(
    ("layout", "cross"), [("text", False), ("text", True), ("stereo", True), ("melody", False)]
)
def test_a_head_switched_off_is_one_without_weights(made, layout, cross):
    model = made[layout]
    model.set_generation_params(duration=SECONDS)
    switched = run(model, TEXTS, 5, edits=[ScaleHead(1, 1, 0, cross=cross)])
    layer = model.lm.layers[1]
    weight = (layer.cross_attention if cross else layer.attention).out_proj.weight
    kept = weight.clone()
    weight[:, 64:].zero_()
    assert torch.equal(run(model, TEXTS, 5), switched)
    weight.copy_(kept)


def test_the_streams_of_guidance_differ_by_an_edit_of_one_of_them(plain):
    """Also without a prompt, where the null stream is otherwise left out because it would be the same."""
    edit = {name: [Add(1, direction(), 0.5, name)] for name in ("prompt", "null", "both")}
    for texts in ([""], ["calm piano"], [{"calm piano": 0.5, "sad": 0.5}]):
        tokens = {name: run(plain, texts, 5, edits=edits) for name, edits in edit.items()}
        assert not torch.equal(tokens["prompt"], tokens["both"])
        assert not torch.equal(tokens["null"], tokens["both"])
        together = [Add(1, direction(), 0.5, "prompt"), Add(1, direction(), 0.5, "null")]
        assert torch.equal(run(plain, texts, 5, edits=together), tokens["both"])


def test_without_guidance_an_edit_of_the_prompts_stream_is_one_of_both(plain):
    plain.set_generation_params(duration=SECONDS, cfg_coef=1.0)
    one, both = (run(plain, TEXTS, 5, edits=[Add(1, direction(), 1.0, name)]) for name in ("prompt", "both"))
    assert torch.equal(one, both)


def test_double_guidance_edits_the_melodys_stream_with_the_null_stream(made):
    model = made["melody"]
    model.set_generation_params(duration=SECONDS, cfg_coef_beta=2.0)
    rows: list[int] = []
    count = Edit(lambda x, at: (rows.append(len(x)), x)[1], "null")
    run(model, ["calm piano"], 5, melody=tune(1), edits=[count])
    assert set(rows) == {2}


# --- time -------------------------------------------------------------------------------------------------


def test_a_strength_that_begins_later_leaves_the_music_before_it_unchanged(model):
    model.set_generation_params(duration=1.2)
    before = run(model, TEXTS, 5)
    after = run(model, TEXTS, 5, edits=[Add(2, direction(), [(0.8, 0.0), (0.8, 4.0)])])
    delays = [k // model.audio_channels for k in range(before.shape[1])]
    for k, delay in enumerate(delays):
        # step 40 predicts frame 40 of codebook 0
        assert torch.equal(before[:, k, : 40 - delay], after[:, k, : 40 - delay])
    assert not torch.equal(before[:, 0, 40:], after[:, 0, 40:])


def test_steps_count_from_the_beginning_of_the_piece_in_every_window(plain):
    plain.max_duration = 0.6
    plain.set_generation_params(duration=1.3, extend_stride=0.4)
    seen: list[range] = []
    note = Edit(lambda x, at: (seen.append(at.steps) if at[:2] == (0, "residual") else None, x)[1])
    run(plain, ["calm piano"], 5, edits=[note])
    assert seen[0] == range(0, 1) and seen[1:30] == [range(s, s + 1) for s in range(1, 30)]
    # the second window begins at frame 20 and reads the frames up to 30 again
    assert range(20, 31) in seen and range(40, 51) in seen
    seen.clear()
    run(plain, ["calm piano"], 5, prompt=noise(1, 6400), edits=[note])
    assert seen[0] == range(0, 11)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_patch_replaces_the_residual_stream_at_its_steps_alone(model, layer):
    source = torch.randn(33, 128, generator=torch.Generator().manual_seed(0))
    _, [manifest] = run_with_manifests(model, ["calm piano"], 5)
    codes = run(model, ["calm piano"], 5)[0]
    before = retrace(model, codes, manifest, keep=("residual",)).residual
    after = retrace(
        model, codes, manifest, keep=("residual",), edits=[Patch(layer, source, range(7, 9))]
    ).residual
    assert torch.equal(after[layer, 7:9], source[7:9])
    assert torch.equal(after[layer, :7], before[layer, :7])
    assert torch.equal(after[layer, 9:], before[layer, 9:])
    assert not close(after[-1, 9:], before[-1, 9:], 1e-3)


# --- sessions and manifests -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", EDITS)
def test_edits_are_recorded_and_replayed(model, kind, tmp_path):
    edit = EDITS[kind]()
    tokens, [manifest] = run_with_manifests(model, ["calm piano"], 5, edits=[edit])
    manifest = json.loads(json.dumps(manifest))
    assert manifest["edits"][0]["edit"] == type(edit).__name__
    assert torch.equal(model.replay(manifest, edits=[edit])[1], tokens)
    if isinstance(edit, ScaleHead):
        assert torch.equal(model.replay(manifest)[1], tokens)
    else:
        refusal(lambda: model.replay(manifest), "edits=[…]", type(edit).__name__)
    refusal(lambda: model.replay(manifest, edits=[]), "not those of the manifest")


def test_other_tensors_and_numbers_are_not_the_recorded_edit(plain):
    _, [manifest] = run_with_manifests(plain, ["calm piano"], 5, edits=[Add(1, direction(), 2.0)])
    for other in (Add(1, direction(1), 2.0), Add(1, direction(), 3.0), Add(2, direction(), 2.0)):
        refusal(lambda other=other: plain.replay(manifest, edits=[other]), "not those of the manifest")
    same = Add(1, direction().double(), 2, "both")
    assert plain.replay(manifest, edits=[same])[1].shape[-1] == 30
    _, [without] = run_with_manifests(plain, ["calm piano"], 5)
    assert without["edits"] == [] and without["logits"] is None
    refusal(lambda: plain.replay(without, edits=[same]), "not those of the manifest")


def test_a_manifest_from_before_edits_is_replayed(plain):
    tokens, [manifest] = run_with_manifests(plain, ["calm piano"], 5)
    old = {name: value for name, value in manifest.items() if name not in ("edits", "logits")}
    old["settings"] = {name: value for name, value in old["settings"].items() if name != "min_p"}
    assert torch.equal(plain.replay(old)[1], tokens)


@pytest.mark.parametrize("kind", ["add", "schedule", "head", "add to the prompt's stream"])
def test_a_streamed_and_a_live_piece_are_edited_too(model, kind):
    edit = [EDITS[kind]()]
    stream = model.stream(["calm piano"], seed=5, edits=edit, chunk_seconds=0.2)
    list(stream)
    assert torch.equal(stream.tokens, run(model, ["calm piano"], 5, edits=edit))
    assert torch.equal(model.replay(stream.manifests[0], edits=edit)[1], stream.tokens)
    session = model.live("calm piano", seed=5, edits=edit, chunk_seconds=0.2)
    for _ in range(4):
        next(session)
    session.close()
    assert torch.equal(session.tokens[..., :20], stream.tokens[..., :20])
    assert torch.equal(model.replay(session.manifests[0], edits=edit)[1], session.tokens)


def test_all_ways_to_generate_take_edits(made):
    model, edit = made["melody"], [Add(1, direction())]
    model.set_generation_params(duration=SECONDS)
    for ways in ({}, {"melody": tune(1)}, {"prompt": noise(1, 6400)}):
        plain = run(model, ["calm piano"], 5, **ways)
        assert not torch.equal(run(model, ["calm piano"], 5, edits=edit, **ways), plain)
    free = [model.generate_unconditional(1, seed=5, return_tokens=True, edits=e)[1] for e in ((), edit)]
    assert not torch.equal(*free)


def test_runs_at_once_on_one_model_have_edits_of_their_own(plain):
    expected = [run(plain, ["calm piano"], 5), run(plain, ["calm piano"], 5, edits=[Add(1, direction())])]
    results: list[Tensor | None] = [None] * 6

    def work(i: int) -> None:
        results[i] = run(plain, ["calm piano"], 5, edits=[Add(1, direction())] if i % 2 else [])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(tokens, expected[i % 2]) for i, tokens in enumerate(results))


# --- the hook on logits -----------------------------------------------------------------------------------


def test_a_hook_on_logits_decides_what_is_drawn(model):
    def only_7(logits: Tensor, step: int) -> Tensor:
        return logits.index_fill(-1, torch.tensor([i for i in range(32) if i != 7]), -torch.inf)

    assert (run(model, TEXTS, 5, logits=only_7) == 7).all()
    model.set_generation_params(duration=SECONDS, use_sampling=False)
    assert (run(model, TEXTS, 5, logits=only_7) == 7).all()


def test_a_hook_on_logits_gets_all_samples_and_the_step(plain):
    seen: list[tuple[int, tuple[int, ...]]] = []

    def note(logits: Tensor, step: int) -> Tensor:
        seen.append((step, tuple(logits.shape)))
        return logits

    assert torch.equal(run(plain, TEXTS, 5, logits=note), run(plain, TEXTS, 5))
    assert seen == [(step, (3, 4, 32)) for step in range(33)]
    seen.clear()
    run(plain, ["calm piano"], 5, prompt=noise(1, 6400), logits=note)
    assert seen[0][0] == 10
    assert (
        list(plain.stream(["calm piano"], logits=note)) and next(plain.live("calm piano", logits=note)).any()
    )


def test_a_hook_on_logits_is_recorded_by_name(plain):
    def warm(logits: Tensor, step: int) -> Tensor:
        return logits / (1 + step / 10)

    tokens, [manifest] = run_with_manifests(plain, ["calm piano"], 5, logits=warm)
    assert not torch.equal(tokens, run(plain, ["calm piano"], 5))
    assert torch.equal(plain.replay(manifest, logits=warm)[1], tokens)
    refusal(lambda: plain.replay(manifest), "warm", "same function")
    refusal(lambda: plain.replay(manifest, logits=returned), "returned", "warm")


# --- mistakes ---------------------------------------------------------------------------------------------

BAD_EDITS = {
    "one edit": (lambda: Add(1, direction()), ["a list"]),
    "a string": (lambda: ["head"], ["'head'", "ScaleHead"]),
    "a layer": (lambda: [Add(3, direction())], ["layer", "0 to 2"]),
    "a negative layer": (lambda: [Add(-1, direction())], ["layer", "0 to 2"]),
    "half a layer": (lambda: [Add(1.5, direction())], ["layer", "0 to 2"]),
    "a layer of a patch": (lambda: [Patch(3, torch.zeros(5, 128))], ["layer", "0 to 2"]),
    "a layer of a head": (lambda: [ScaleHead(2, 0, 0)], ["layer", "0 to 1"]),
    "a head": (lambda: [ScaleHead(0, 2, 0)], ["head", "0 to 1"]),
    "a width": (lambda: [Add(1, torch.zeros(256))], ["width 256", "128"]),
    "a width of a patch": (lambda: [Patch(1, torch.zeros(5, 64))], ["width 64", "128"]),
    "axes": (lambda: [Add(1, torch.zeros(2, 128))], ["[2, 128]", "[D]"]),
    "axes of a patch": (lambda: [Patch(1, torch.zeros(128))], ["[128]", "[S, D]"]),
    "integers": (lambda: [Add(1, torch.zeros(128, dtype=torch.long))], ["int64", "floats"]),
    "a list of numbers": (lambda: [Add(1, [0.0] * 128)], ["direction", "tensor"]),
    "NaN": (lambda: [Add(1, torch.full((128,), torch.nan))], ["NaN"]),
    "a strength": (lambda: [Add(1, direction(), "strong")], ["strength", "'strong'", "[(0, 1.0)"]),
    "falling times": (lambda: [Add(1, direction(), [(4, 1), (0, 2)])], ["strength", "[4, 0]", "rising"]),
    "an empty schedule": (lambda: [Add(1, direction(), [])], ["strength", "[]"]),
    "a factor": (lambda: [ScaleHead(0, 0, None)], ["factor", "None"]),
    "streams": (lambda: [Add(1, direction(), 1.0, "all")], ["'all'", "prompt, null, both"]),
    "steps": (lambda: [Patch(1, torch.zeros(5, 128), range(9))], ["steps", "0 to 4"]),
    "no function": (lambda: [Edit(3)], ["function", "3"]),
    "cross-attention": (lambda: [ScaleHead(0, 0, 0, cross=True)], ["cross=True"]),
    "another shape": (lambda: [Edit(lambda x, at: x[:1])], ["[1, ", "residual of layer 0"]),
    "nothing returned": (lambda: [Edit(lambda x, at: None)], ["None", "residual of layer 0"]),
}


@pytest.mark.parametrize("kind", BAD_EDITS)
def test_a_wrong_edit_is_refused_in_one_sentence(made, kind):
    edits, words = BAD_EDITS[kind]
    model = made["melody"]
    model.set_generation_params(duration=SECONDS)
    refusal(lambda: model.generate(TEXTS, edits=edits()), *words)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (3, ["logits", "3", "function"]),
        (lambda logits, step: None, ["step 0", "None", "[1, 4, 32]"]),
        (lambda logits, step: logits[0], ["step 0", "[4, 32]", "[1, 4, 32]"]),
        (lambda logits, step: logits - torch.inf, ["step 0", "one finite logit"]),
        (lambda logits, step: logits * torch.nan, ["step 0", "NaN"]),
    ],
)
def test_a_wrong_hook_on_logits_is_refused_in_one_sentence(plain, hook, words):
    refusal(lambda: plain.generate(["calm"], logits=hook), *words)


def test_an_edit_of_the_null_stream_needs_guidance(plain):
    plain.set_generation_params(duration=SECONDS, cfg_coef=1.0)
    edit = Add(1, direction(), 1.0, "null")
    refusal(lambda: plain.generate(["calm"], edits=[edit]), "cfg_coef other than 1")


def test_a_wrong_edit_is_refused_before_the_audio_prompt_is_encoded(plain, monkeypatch):
    monkeypatch.setattr(plain.codec, "encode", lambda *_: pytest.fail("encoded too early"))
    bad = [Add(9, direction())]
    refusal(lambda: plain.generate_continuation(noise(1, 6400), RATE, ["calm"], edits=bad), "0 to 2")
