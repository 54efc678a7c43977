# SPDX-License-Identifier: Apache-2.0
"""Vocabulary of the rendered faces: components, words for them, emotions, and combinations held out from training."""

COMPONENTS: dict[str, tuple[str, ...]] = {
    "brow_raise": ("raised eyebrows", "arched eyebrows", "lifted eyebrows", "eyebrows pulled high"),
    "inner_brow": ("worried eyebrows", "inner eyebrows pulled up", "slanted eyebrows", "a tensed forehead"),
    "brow_lower": ("furrowed eyebrows", "lowered eyebrows", "a furrowed brow", "a frown", "knitted eyebrows"),
    "one_brow": ("one raised eyebrow", "a single lifted eyebrow", "one eyebrow higher than the other"),
    "eyes_wide": ("widened eyes", "wide open eyes", "eyes opened wide", "staring wide eyes"),
    "eyes_narrow": ("narrowed eyes", "narrow eyes", "squinting eyes", "tightened eyelids"),
    "cheek_raise": ("raised cheeks", "lifted cheeks", "wrinkles around the eyes", "wrinkled eyes"),
    "lids_droop": ("drooping eyelids", "drooping upper eyelids", "half closed eyes", "heavy eyelids"),
    "nose_wrinkle": ("a wrinkled nose", "a scrunched nose", "wrinkles on the nose", "a raised upper lip"),
    "nostril": ("flared nostrils", "widened nostrils"),
    "smile": ("a smile", "a smile on the mouth", "a smiling mouth", "raised mouth corners", "lip corners pulled up"),
    "smirk": ("a smirk", "one raised mouth corner", "one side of the mouth raised", "a lopsided mouth"),
    "mouth_down": ("a downturned mouth", "mouth corners turned down", "lip corners pulled down", "a drooping mouth"),
    "lips_press": ("pressed lips", "tightly pressed lips", "tightened lips", "a tight mouth"),
    "mouth_open": ("an open mouth", "a dropped jaw", "a wide open mouth"),
    "lips_part": ("parted lips", "stretched lips", "stretched parted lips", "lips stretched apart"),
    "tears": ("tears", "tearful eyes", "tears running down", "crying eyes"),
    "gaze_down": ("a lowered gaze", "a downcast gaze", "eyes looking down"),
    "gaze_side": ("an averted gaze", "eyes looking away", "a sideways glance"),
    "gaze_dart": ("darting eyes", "eyes darting around", "a restless gaze"),
    "head_shake": ("a shaking head", "a head shake", "the head shaking from side to side"),
    "head_nod": ("a nodding head", "a nod", "the head nodding up and down"),
    "head_down": ("a bowed head", "a lowered head", "a hanging head"),
    "head_turn": ("a turned head", "the head turned away", "the face turned aside"),
    "chin_up": ("a raised chin", "a lifted chin", "the head tilted back"),
}
COMPONENT_NAMES = tuple(COMPONENTS)
NEUTRAL_PHRASES = (
    "a straight mouth",
    "a smooth forehead",
    "relaxed facial muscles",
    "unremarkable eyebrows",
    "a relaxed face",
)

# The words fit after singular and plural phrases.
DYNAMICS: dict[str, tuple[str, ...]] = {
    "hold": (),
    "onset": ("slowly appearing", "gradually appearing", "appearing", "emerging"),
    "offset": ("slowly fading", "gradually fading", "fading", "disappearing"),
    "flash": ("for a moment", "appearing briefly", "briefly"),
    "dart": (),
    "shake": (),
    "nod": (),
}
PERIODIC = {"gaze_dart": "dart", "head_shake": "shake", "head_nod": "nod"}
STEADY_COMPONENTS = tuple(name for name in COMPONENTS if name not in PERIODIC)

# MAFW's eleven names in MAFW's order -> (component, probability) of a face that shows the emotion.
EMOTIONS: dict[str, tuple[tuple[str, float], ...]] = {
    "anger": (("brow_lower", 0.95), ("nostril", 0.6), ("eyes_narrow", 0.5), ("lips_press", 0.5), ("mouth_open", 0.2)),
    "disgust": (
        ("nose_wrinkle", 0.97),
        ("eyes_narrow", 0.5),
        ("head_turn", 0.35),
        ("brow_lower", 0.3),
        ("lips_press", 0.3),
    ),
    "fear": (("eyes_wide", 0.92), ("lips_part", 0.85), ("inner_brow", 0.6), ("head_turn", 0.15)),
    "happiness": (("smile", 0.97), ("cheek_raise", 0.75), ("mouth_open", 0.25), ("head_nod", 0.25)),
    "neutral": (),
    "sadness": (("mouth_down", 0.8), ("tears", 0.65), ("inner_brow", 0.6), ("head_down", 0.55), ("lids_droop", 0.55)),
    "surprise": (("brow_raise", 0.95), ("mouth_open", 0.9), ("eyes_wide", 0.8)),
    "contempt": (("smirk", 0.97), ("one_brow", 0.7), ("chin_up", 0.5), ("eyes_narrow", 0.5)),
    "anxiety": (("lips_press", 0.95), ("inner_brow", 0.85), ("gaze_dart", 0.85)),
    "helplessness": (("gaze_down", 0.92), ("mouth_down", 0.8), ("inner_brow", 0.75), ("head_shake", 0.5)),
    "disappointment": (("mouth_down", 0.97), ("brow_lower", 0.8), ("eyes_narrow", 0.6), ("gaze_side", 0.3)),
}
EMOTION_NAMES = tuple(EMOTIONS)
SEEN_EMOTIONS, HELD_OUT_EMOTIONS = EMOTION_NAMES[:7], EMOTION_NAMES[7:]

# Excluded from training and validation; each held-out emotion consists of such pairs.
FORBIDDEN_PAIRS = frozenset(
    frozenset(pair)
    for pair in (
        ("smirk", "one_brow"),
        ("smirk", "chin_up"),
        ("smirk", "eyes_narrow"),
        ("lips_press", "inner_brow"),
        ("lips_press", "gaze_dart"),
        ("mouth_down", "gaze_down"),
        ("mouth_down", "head_shake"),
        ("mouth_down", "brow_lower"),
        ("mouth_down", "eyes_narrow"),
        ("inner_brow", "gaze_down"),
    )
)
HELD_OUT_DYNAMICS = frozenset((("mouth_down", "offset"), ("eyes_wide", "offset"), ("brow_lower", "onset")))

# The components in a set exclude each other.
EXCLUSIVE = (
    {"smile", "smirk", "mouth_down", "lips_press", "lips_part"},
    {"mouth_open", "smirk", "mouth_down", "lips_press", "lips_part"},
    {"brow_raise", "inner_brow", "brow_lower", "one_brow"},
    {"eyes_wide", "eyes_narrow", "lids_droop"},
    {"eyes_wide", "cheek_raise"},
    {"gaze_down", "gaze_side", "gaze_dart"},
    {"head_shake", "head_turn"},
    {"head_nod", "head_down", "chin_up"},
)

# MAFW's two-part compounds whose parts both occur in training.
COMPOUND_NAMES = (
    *("anger_disgust", "anger_sadness", "anger_surprise", "disgust_sadness", "disgust_surprise"),
    *("fear_sadness", "fear_surprise", "happiness_surprise", "sadness_surprise"),
)
ORDER_NAMES = ("appearing", "fading")

SPLIT_NUMBERS = {"train": 0, "validation": 1, "test": 2, "test_imbalanced": 3, "order_pairs": 4}
SPLIT_NUMBERS |= {"order_train": 5, "order_validation": 6, "order_test": 7, "compounds_test": 8}
STILL_SPLIT_NUMBERS = {"train": 10, "validation": 11}
RESTRICTED_SPLITS = ("train", "validation")
# Number of clips of each seen emotion in DFEW's first test fold.
DFEW_SHARES = {
    "happiness": 489,
    "sadness": 379,
    "neutral": 534,
    "anger": 435,
    "surprise": 294,
    "disgust": 29,
    "fear": 181,
}

HAIR_COLORS = ("black", "brown", "blond", "red", "grey")
HAIR_STYLES = {"man": ("short", "side", "bald"), "woman": ("long", "bob", "bun")}
SUBJECTS = {"man": ("a man", "the man", "a guy"), "woman": ("a woman", "the woman", "a lady")}
ANYONE = ("a person", "the person", "someone", "a face")

NEGATIVE_AFFECT_WEIGHTS = {
    "brow_lower": 0.6,
    "inner_brow": 0.6,
    "nose_wrinkle": 0.5,
    "mouth_down": 0.8,
    "lips_press": 0.4,
    "lips_part": 0.5,
    "tears": 1.0,
    "gaze_down": 0.3,
    "head_down": 0.3,
    "head_shake": 0.3,
    "smile": -1.0,
    "cheek_raise": -0.4,
    "head_nod": -0.2,
}
TONIC_COMPONENTS = ("brow_lower", "inner_brow", "eyes_narrow", "nostril", "lips_press", "lips_part")
