"""Captions of a piece: sentence templates or shuffled tags, with synonyms, naming some of its attributes.

The top of this file declares everything held out of training: seeds, tunes, pairs of style and lead
instrument, synonyms, a sound font.
"""

import random
import re
from functools import lru_cache

from mgkit.band.piece import Attribute, Piece

# Training seeds count from 0. Validation pieces follow the rules of training; only test seeds draw held-out
# values.
FIRST_VALID_SEED, FIRST_TEST_SEED = 10_000_000, 20_000_000
HELD_OUT_TUNES = ("scarborough fair", "minuet in g", "oh susanna")
HELD_OUT_PAIRS = (
    ("rock", "violin"), ("latin", "flute"), ("jazz", "accordion"), ("classical", "choir"),
    ("electronic", "music box"), ("folk", "trumpet"), ("march", "clarinet"), ("lullaby", "guitar")
)  # fmt: skip
HELD_OUT_SYNONYMS = frozenset((
    "pianoforte", "musical box", "vibes", "wooden bars", "organ pipes", "bandoneon", "spanish guitar",
    "shredding", "string solo", "violoncello", "horn solo", "piccolo", "chalumeau", "singers", "raga",
    "analog lead", "concert hall", "countryside", "grunge", "bebop", "cradle song", "edm", "samba",
    "regiment", "ethereal", "island", "jolly", "serene", "uplifting", "melancholic", "enigmatic", "anxious",
    "unhurried", "medium pace", "rapid", "skeletal", "even", "lush", "percussion section", "beatless",
    "three four", "four four"
))  # fmt: skip
# The second sound font is for evaluation only, never for training audio.
MEASURING_FONT = "musescore"

# Synonyms of each attribute value, its plain name first and the held-out one last.
WORDS: dict[str, dict[Attribute, tuple[str, ...]]] = {
    "lead": {
        "piano": ("piano", "grand piano", "piano solo", "acoustic piano", "solo piano", "upright piano",
            "pianist", "piano keys", "piano music", "piano playing", "piano performance", "concert grand",
            "ivories", "piano piece", "at the piano", "piano ballad", "pianoforte"),
        "music box": ("music box", "music box melody", "tinkling music box", "wind-up music box",
            "toy chimes", "music box tune", "mechanical music box", "tiny music box", "delicate music box",
            "music box chimes", "wind-up toy", "music box sounds", "musical box"),
        "vibraphone": ("vibraphone", "vibraphone solo", "mellow vibraphone", "vibraphone mallets",
            "vibraphonist", "vibraharp", "vibraphone playing", "soft vibraphone", "vibraphone tune",
            "metal mallets", "mallets on metal", "vibraphone music", "vibes"),
        "marimba": ("marimba", "marimba solo", "marimba mallets", "wooden marimba", "marimba player",
            "wooden mallets", "marimba playing", "marimba music", "xylophone", "marimbas",
            "tuned wooden keys", "marimba tune", "wooden bars"),
        "organ": ("organ", "church organ", "pipe organ", "solo organ", "organist", "cathedral organ",
            "organ music", "organ playing", "grand organ", "pipe organ solo", "big organ", "organ tune",
            "church organist", "organ pipes"),
        "accordion": ("accordion", "accordion solo", "squeezebox", "accordionist", "concertina",
            "accordion music", "accordion playing", "button accordion", "french accordion", "musette",
            "accordion tune", "accordions", "bandoneon"),
        "guitar": ("nylon guitar", "acoustic guitar", "classical guitar", "guitar picking",
            "nylon string guitar", "fingerpicked guitar", "unplugged guitar", "flamenco guitar", "guitar",
            "solo guitar", "plucked guitar", "guitar strumming", "guitar arpeggios", "nylon strings",
            "acoustic guitarist", "strummed guitar", "spanish guitar"),
        "electric guitar": ("electric guitar", "distorted guitar", "overdriven guitar",
            "electric guitar solo", "lead guitar", "guitar with distortion", "fuzz guitar", "crunchy guitar",
            "heavy guitar", "amplified guitar", "screaming guitar", "guitar riff", "electric guitarist",
            "wailing guitar", "shredding"),
        "violin": ("violin", "violin solo", "fiddle", "solo violin", "singing violin", "violinist",
            "bowed violin", "violin playing", "violin music", "fiddler", "fiddling", "expressive violin",
            "lyrical violin", "fiddle tune", "violins", "string solo"),
        "cello": ("cello", "cello solo", "solo cello", "deep cello", "resonant cello", "cellist",
            "bowed cello", "cello playing", "cello music", "cellos", "mellow cello", "lyrical cello",
            "low strings", "cello tune", "violoncello"),
        "trumpet": ("trumpet", "trumpet solo", "bright trumpet", "brass lead", "trumpeter", "solo trumpet",
            "brass", "trumpet playing", "trumpet music", "trumpets", "trumpet fanfare", "muted trumpet",
            "cornet", "brass instrument", "brass melody", "horn solo"),
        "flute": ("flute", "flute solo", "airy flute", "wooden flute", "flutist", "solo flute",
            "flute playing", "flute music", "flautist", "breathy flute", "silver flute", "flutes",
            "flute tune", "woodwind flute", "piccolo"),
        "clarinet": ("clarinet", "clarinet solo", "reed clarinet", "clarinetist", "solo clarinet",
            "clarinet playing", "clarinet music", "woody clarinet", "mellow clarinet", "single reed",
            "clarinets", "clarinet tune", "woodwind clarinet", "chalumeau"),
        "choir": ("choir", "choir voices", "vocal choir", "choral voices", "voices singing aah", "chorus",
            "choral singing", "human voices", "vocals", "voices", "choral", "choir singing", "vocal ensemble",
            "vocal harmony", "chant", "chorale", "angelic choir", "aahs", "singers"),
        "sitar": ("sitar", "indian sitar", "sitar solo", "plucked sitar", "sitarist", "sitar strings",
            "sitar playing", "sitar music", "indian strings", "india", "hindustani", "twanging sitar",
            "buzzing sitar", "sitar tune", "raga"),
        "synth": ("synth lead", "synthesizer", "saw synth", "synth melody", "synth line", "synth",
            "lead synth", "monosynth", "synthesizer lead", "synthesizer solo", "synth solo", "sawtooth",
            "sawtooth lead", "synthesized melody", "retro synth", "moog", "synthesiser", "synths",
            "analog lead"),
    },
    "style": {
        "classical": ("classical", "chamber", "classical music", "orchestral", "conservatory", "symphonic",
            "classical style", "chamber music", "symphony", "orchestra", "recital", "philharmonic", "sonata",
            "baroque", "concerto", "art music", "classical piece", "concert hall"),
        "folk": ("folk", "acoustic folk", "traditional", "folk song", "campfire", "folk music", "folksy",
            "rustic", "folk tune", "folk style", "folk band", "traditional music", "americana", "celtic",
            "village", "roots music", "folky", "pastoral", "country", "countryside"),
        "rock": ("rock", "rock band", "rocking", "classic rock", "driving rock", "rock music", "hard rock",
            "rock and roll", "rock song", "rock style", "rock tune", "pop rock", "indie rock", "arena rock",
            "punk", "rock anthem", "garage rock", "alternative rock", "grunge"),
        "jazz": ("jazz", "swing", "jazzy", "swinging jazz", "jazz club", "jazz music", "jazz band",
            "swinging", "jazz tune", "jazz style", "smooth jazz", "jazz combo", "big band", "lounge",
            "jazz standard", "cool jazz", "swing music", "jazz trio", "bebop"),
        "lullaby": ("lullaby", "bedtime", "nursery", "soft lullaby", "sleepytime", "lullaby music",
            "goodnight song", "bedtime song", "bedtime music", "nursery song", "nursery rhyme", "sleepy",
            "baby music", "sleep music", "goodnight music", "lullaby for a baby", "lulling", "cradle song"),
        "electronic": ("electronic", "electro", "techno", "dance", "club", "house", "electronic music",
            "electronica", "dance music", "club music", "house music", "trance", "rave", "disco", "synth-pop",
            "electropop", "digital", "electronic style", "edm"),
        "latin": ("latin", "bossa nova", "bossa", "latin american", "tropical latin", "latin music", "rumba",
            "salsa", "cha cha", "mambo", "brazilian", "cuban", "tropical", "latin groove", "latin rhythm",
            "latin style", "merengue", "samba"),
        "march": ("march", "marching", "military march", "parade", "marching band", "march music",
            "marching music", "military", "military band", "parade music", "marching tune", "procession",
            "patriotic", "ceremonial", "army", "ceremony", "march style", "regiment"),
        "ambient": ("ambient", "atmospheric", "new age", "spacious ambient", "meditative", "ambient music",
            "dreamy", "floating", "soundscape", "chillout", "chill", "spacey", "drifting", "atmosphere",
            "meditation", "meditation music", "relaxation music", "ambient style", "ethereal"),
        "reggae": ("reggae", "dub", "jamaican", "reggae groove", "roots reggae", "reggae music",
            "reggae style", "ska", "rocksteady", "dancehall", "caribbean", "rasta", "offbeat",
            "reggae rhythm", "reggae song", "reggae tune", "jamaican groove", "island"),
    },
    "mood": {
        "happy": ("happy", "cheerful", "joyful", "sunny", "playful", "upbeat", "merry", "lighthearted", "fun",
            "bright", "joyous", "glad", "carefree", "bubbly", "bouncy", "cheery", "feel-good", "festive",
            "energetic", "delightful", "jolly"),
        "calm": ("calm", "peaceful", "relaxing", "gentle", "soothing", "tender", "quiet", "tranquil",
            "relaxed", "soft", "mellow", "laid-back", "restful", "easygoing", "placid", "still", "calming",
            "peaceable", "serene"),
        "hopeful": ("hopeful", "warm", "optimistic", "friendly", "heartfelt", "encouraging", "positive",
            "hope", "inspiring", "reassuring", "confident", "kind", "comforting", "heartening", "promising",
            "good-natured", "sympathetic", "uplifting"),
        "sad": ("sad", "mournful", "sorrowful", "gloomy", "wistful", "melancholy", "unhappy", "tearful",
            "sadness", "blue", "lonely", "somber", "grieving", "heartbroken", "regretful", "sorrow",
            "mourning", "downcast", "grief", "lamenting", "melancholic"),
        "mysterious": ("mysterious", "dark", "brooding", "moody", "shadowy", "eerie", "spooky", "mystery",
            "haunting", "strange", "uncanny", "ominous", "creepy", "murky", "veiled", "nocturnal", "ghostly",
            "mystical", "secretive", "enigmatic"),
        "tense": ("tense", "dramatic", "urgent", "intense", "restless", "stormy", "nervous", "agitated",
            "suspenseful", "tension", "aggressive", "driving", "edgy", "frantic", "furious", "angry",
            "fierce", "hectic", "thrilling", "stressful", "anxious"),
    },
    "tempo": {
        "slow": ("slow", "slowly", "slow tempo", "leisurely", "adagio", "largo", "low tempo", "slow pace",
            "slow-paced", "slow speed", "lento", "downtempo", "slow moving", "taking its time", "very slow",
            "unhurried"),
        "moderate": ("moderate", "mid-tempo", "medium tempo", "moderate tempo", "andante", "medium speed",
            "walking pace", "moderately", "moderato", "moderate speed", "moderate pace", "mid-paced",
            "middle tempo", "medium", "mid tempo", "medium pace"),
        "fast": ("fast", "quick", "fast tempo", "lively", "brisk", "allegro", "up-tempo", "speedy", "presto",
            "fast-paced", "fast pace", "high tempo", "quickly", "swift", "racing", "up tempo", "vivace",
            "high speed", "very fast", "rapid"),
    },
    "density": {
        "sparse": ("sparse", "minimal", "simple", "sparse arrangement", "bare", "stripped-down", "thin",
            "few notes", "minimalist", "simple arrangement", "light texture", "uncluttered", "thin texture",
            "bare-bones", "sparsely arranged", "skeletal"),
        "medium": ("balanced", "balanced arrangement", "medium density", "balanced texture", "medium texture",
            "moderate density", "moderately dense", "moderate texture", "even"),
        "dense": ("dense", "busy", "rich", "full", "crowded", "thick", "many notes", "dense arrangement",
            "full arrangement", "rich arrangement", "layered", "thick texture", "full texture",
            "dense texture", "packed", "lush"),
    },
    "drums": {
        True: ("with drums", "drums", "drum kit", "with a drum beat", "with drum kit", "percussion",
            "with percussion", "drums and percussion", "with a beat", "with a drummer", "drumming", "drummer",
            "drum set", "with a drum set", "live drums", "drum groove", "drum beat", "beat", "steady beat",
            "driving beat", "percussive", "and drums", "with drumming", "percussion section"),
        False: ("no drums", "without drums", "drumless", "no percussion", "without percussion", "no drum kit",
            "no drummer", "no beat", "without a beat", "without a drummer", "no drum set",
            "without a drum set", "drum-free", "percussion-free", "no drumming", "without drumming",
            "free of drums", "no drum beat", "beatless"),
    },
    "meter": {
        3: ("3/4", "waltz time", "in three", "3/4 time", "three beats to a bar", "waltz", "waltz meter",
            "waltz rhythm", "3/4 meter", "triple meter", "triple time", "three beats per bar", "three four"),
        4: ("4/4", "4/4 time", "in four", "common time", "four beats to a bar", "4/4 meter",
            "quadruple meter", "straight four", "four to the bar", "four beats per bar", "four four"),
    },
    "mode": {
        "major": ("major key", "in a major key", "in major", "major", "major scale", "major mode",
            "major tonality"),
        "minor": ("minor key", "in a minor key", "in minor", "minor", "minor scale", "minor mode",
            "minor tonality"),
    },
}  # fmt: skip
KEYS = (
    ("c",), ("c sharp", "d flat", "c#", "db"), ("d",), ("e flat", "d sharp", "eb"), ("e",), ("f",),
    ("f sharp", "g flat", "f#"), ("g",), ("a flat", "g sharp", "ab"), ("a",), ("b flat", "a sharp", "bb"),
    ("b",)
)  # fmt: skip

# A slot is filled with a synonym; {bpm} with "120 bpm" or similar, {key} with "d minor", {kit} with the
# drums.
SENTENCES = (
    "a {tempo} {style} piece for {lead} in {key}, {kit}",
    "{mood} {style} with {lead}, {kit}, {bpm}",
    "a {mood} {style} track with {lead} at {bpm}",
    "{lead} plays a {mood} melody in {key}, {kit}",
    "a {style} tune led by {lead}, {tempo}, {bpm}",
    "{tempo} {mood} {style} in {key} with {lead}",
    "{style} in {key} at {bpm}, {kit}",
    "a {mood} piece, {lead} in front, {kit}",
    "{lead} over {density} {style} backing, {kit}",
    "{density} {style} music with {lead}, {bpm}, {key}",
    "this is {mood} {style} music in {key}, {tempo}, {kit}",
    "a {density}, {mood} {style} piece, {lead} melody, {bpm}",
    "{style} {lead}",
    "{mood} {lead}",
    "{lead}, {kit}",
    "a {mood} {style} song",
    "{lead} melody in {key}",
    "{tempo} {lead} in {key}",
    "{style} with {lead} and {mood} mood",
    "play {mood} {style} on {lead} at {bpm}",
    "{mood} music for {lead}, {meter}, {tempo}",
    "a {tempo} {style} piece in {meter} with {lead}",
    "{style}, {meter}, {key}, {lead}",
    "an instrumental: {lead}, {style}, {mood}, {kit}",
    "{mood} and {tempo}, {style} with {lead}, {kit}",
    "{lead} solo with {density} accompaniment in {key}",
    "{style} at {bpm} with {lead} in {key}, {kit}",
    "background music, {mood}, {style}, {lead}, {bpm}",
    "a {style} arrangement, {mode}, {lead}, {kit}",
    "{mood} {style}, {mode}, {bpm}",
    "{lead} and accompaniment, {key}, {bpm}",
    "{tempo} {style}, {kit}",
    "a recording of {lead} playing {mood} {style}, {tempo}",
    "{key}, {bpm}: {style} with {lead}, {kit}",
    "{style} played on {lead}, {kit}",
    "a {style} piece for {lead}, {kit}",
    "{lead}, {density} {style} arrangement",
    "{style} in {meter} with {lead}, {kit}",
)
# The slots that reveal key or tempo; a mood implies a mode and a range of tempos.
KEY_AND_TEMPO = ("key", "mode", "mood", "tempo", "bpm")
TAGS = ("style", "lead", "mood", "tempo", "bpm", "key", "kit", "density", "meter", "mode")
TUNE_FORMS = ("the tune of {tune}", "{tune}", "melody of {tune}", "playing {tune}")


def tempo_word(tempo: int) -> str:
    """'slow' below 84 beats per minute, 'fast' from 116, 'moderate' in between."""
    return "slow" if tempo < 84 else "moderate" if tempo < 116 else "fast"


def synonyms(attribute: str, value: str | int | bool, held_out: bool = False) -> tuple[str, ...]:
    """Synonyms of a value for training, or those held out from it.

    >>> synonyms("lead", "marimba", held_out=True)
    ('wooden bars',)
    """
    return tuple(word for word in WORDS[attribute][value] if (word in HELD_OUT_SYNONYMS) == held_out)


def captions(
    piece: Piece, seed: int, n: int, *, held_out: bool = False, omit: tuple[str, ...] = ()
) -> list[str]:
    """`n` true captions of a piece, each naming some of its attributes; deterministic in the seed.

    With `held_out`, held-out synonyms are used wherever there are any: for evaluation, never for training.
    The slots in `omit`, such as those in KEY_AND_TEMPO, are not used.
    """
    rng = random.Random(seed * 7919 + 17)
    return [_caption(piece, rng, held_out, omit) for _ in range(n)]


@lru_cache
def _templates(omit: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The sentences and the tags without the slots in `omit`."""
    sentences = [text for text in SENTENCES if not any(f"{{{slot}}}" in text for slot in omit)]
    return sentences, [tag for tag in TAGS if tag not in omit]


def _caption(piece: Piece, rng: random.Random, held_out: bool, omit: tuple[str, ...]) -> str:
    def word(attribute: str, value: str | int | bool) -> str:
        words = synonyms(attribute, value, held_out) or synonyms(attribute, value)
        # The plain name of the value is the most frequent one in training captions.
        plain = 0.4 if not held_out else 0.0
        return words[0] if rng.random() < plain else rng.choice(words)

    near = 5 * round(piece.tempo / 5)
    numbers = [f"{piece.tempo} bpm"] * 4 + [
        f"tempo {piece.tempo}",
        f"{piece.tempo} beats per minute",
        f"around {near} bpm",
        f"{piece.tempo}bpm",
        f"tempo of {piece.tempo} bpm",
        f"{near} bpm",
    ]
    key = rng.choice(KEYS[piece.key])
    slots = {
        "style": word("style", piece.style),
        "lead": word("lead", piece.lead),
        "mood": word("mood", piece.mood),
        "tempo": word("tempo", tempo_word(piece.tempo)),
        "density": word("density", piece.density),
        "kit": word("drums", piece.drums),
        "meter": word("meter", piece.meter),
        "mode": word("mode", piece.mode),
        "bpm": rng.choice(numbers),
        "key": f"{key[0].upper() + key[1:] if rng.random() < 0.5 else key} {piece.mode}",
    }
    sentences, tags = _templates(omit)
    if rng.random() < 0.5:
        weights = [4 if tag in ("lead", "style", "bpm", "key", "kit") else 2 for tag in tags]
        count = rng.choices((1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 4, 5, 3, 1))[0]
        chosen = sorted(tags, key=lambda tag: -(rng.random() ** (1 / weights[tags.index(tag)])))[:count]
        rng.shuffle(chosen)
        text = ", ".join(slots[tag] for tag in chosen)
    else:
        text = rng.choice(sentences).format(**slots)
    if piece.tune is not None and rng.random() < 0.4:
        text += ", " + rng.choice(TUNE_FORMS).format(tune=piece.tune)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.1 else text
