# SPDX-License-Identifier: Apache-2.0
"""The grammar of the rendered faces: what a face does in a clip, and the sentence that describes it.

Every sample is a pure function of (seed, split, index). Four emotions, ten pairs of components and three ways of
moving are kept out of everything a model is trained or selected on, so that zero-shot results mean something.
"""

from dataclasses import dataclass, field, replace

import numpy as np

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

# The words are chosen to follow a singular as well as a plural phrase.
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

# MAFW's eleven names in MAFW's order; (component, probability) says what a face that shows the emotion does.
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

# Never in training or validation; each held-out emotion is made of such pairs.
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

# Of each set a face can do one thing at a time.
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

SPLIT_NUMBERS = {"train": 0, "validation": 1, "test": 2, "test_imbalanced": 3, "order_pairs": 4}
STILL_SPLIT_NUMBERS = {"train": 10, "validation": 11}
RESTRICTED_SPLITS = ("train", "validation")
# Clips of each seen emotion in DFEW's first test fold.
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


@dataclass(frozen=True)
class Action:
    """One component over the clip; `start` and `duration` are shares of the clip's length.

    For "flash" they are the centre and the standard deviation, for the periodic dynamics the phase and the period.
    """

    component: str
    intensity: float
    dynamics: str
    start: float
    duration: float

    def curve(self, times):
        """Intensity (T,) at `times` (T,) in 0..1; in -1..1 for the periodic dynamics, else in 0..1."""
        times = np.asarray(times, dtype=np.float64)
        if self.dynamics == "hold":
            shape = np.ones_like(times)
        elif self.dynamics == "flash":
            shape = np.exp(-0.5 * ((times - self.start) / self.duration) ** 2)
        elif self.dynamics in ("onset", "offset"):
            forward = times if self.dynamics == "onset" else 1.0 - times
            ramp = np.clip((forward - self.start) / self.duration, 0.0, 1.0)
            shape = ramp * ramp * (3.0 - 2.0 * ramp)
        else:
            wave = np.sin(2.0 * np.pi * (times / self.duration + self.start))
            shape = np.tanh(4.0 * wave) if self.dynamics == "dart" else wave
        return self.intensity * shape


@dataclass(frozen=True)
class Identity:
    """What a caption can say about the person; the rest of the face is drawn from the clip's own generator."""

    name: str
    gender: str
    hair_color: str
    hair_style: str
    glasses: bool
    beard: bool
    moustache: bool


@dataclass(frozen=True)
class ClipSpec:
    """Everything needed to draw one clip; `targets` are defined in `symptom_targets`."""

    clip_id: str
    identity: Identity
    label: str
    caption: str
    actions: tuple[Action, ...]
    targets: dict[str, float] = field(hash=False)
    rng_key: tuple[int, int, int]
    time_reversed: bool = False


def component_vector(spec):
    """Which of the 25 components occur in the clip: float32 (25,) of 0 and 1, in the order of `COMPONENTS`."""
    present = {action.component for action in spec.actions}
    return np.array([name in present for name in COMPONENT_NAMES], dtype=np.float32)


def forbidden_pairs(components):
    """The forbidden pairs among some component names."""
    return {pair for pair in FORBIDDEN_PAIRS if pair <= set(components)}


def symptom_targets(actions):
    """Three made-up continuous targets of a clip, computed from the true intensities and not from who moves.

    They look like symptom scores so that regression can be tried out; they are NOT clinical measures.
      expressivity         0..1  how much the face does: summed intensity, averaged over time; 0 for a still face
      negative_affect      0..1  unpleasant against pleasant components, averaged over time; 0.5 for a still face
      psychomotor_tension  0..1  tensed muscles plus how much the intensities move in time; 0 for a still face
    """
    times = np.linspace(0.0, 1.0, 33)
    curves = {action.component: action.curve(times) for action in actions}
    amount = {name: float(np.abs(curve).mean()) for name, curve in curves.items()}
    movement = sum(float(np.abs(np.diff(curve)).sum()) for curve in curves.values())
    tonic = sum(amount.get(name, 0.0) for name in TONIC_COMPONENTS)
    valence = sum(NEGATIVE_AFFECT_WEIGHTS.get(name, 0.0) * value for name, value in amount.items())
    return {
        "expressivity": float(1.0 - np.exp(-sum(amount.values()) / 1.5)),
        "negative_affect": float(0.5 + 0.5 * np.tanh(valence)),
        "psychomotor_tension": float(1.0 - np.exp(-(tonic + movement / 4.0) / 1.5)),
    }


def nearest_recipe(components, labels=EMOTION_NAMES):
    """The emotion under whose recipe this set of components is most likely, taking components as independent."""
    present = set(components)

    def log_likelihood(label):
        recipe = dict(EMOTIONS[label])
        odds = ((name in present, recipe.get(name, 0.02)) for name in COMPONENT_NAMES)
        return sum(np.log(p if on else 1.0 - p) for on, p in odds)

    return max(labels, key=log_likelihood)


def sample_clip(seed, split, index):
    """Specification of clip `index` of "train", "validation", "test" or "test_imbalanced"."""
    key = (seed, SPLIT_NUMBERS[split], index)
    rng = np.random.default_rng(key)
    identity = _sample_identity(rng, f"{split}_{index:06d}")
    restricted, simple = split in RESTRICTED_SPLITS, False
    if restricted:
        label, components, simple = _training_components(rng)
    else:
        label = _test_label(split, index)
        components = _recipe_components(rng, label, restricted=False)
    actions = tuple(_sample_action(rng, name, simple, restricted) for name in components)
    caption = _caption(rng, identity, actions, drop=0.15, with_dynamics=True)
    return ClipSpec(identity.name, identity, label, caption, actions, symptom_targets(actions), key)


def sample_still(seed, split, index):
    """Specification of still image `index` of "train" or "validation": 0 to 2 components, all in the caption."""
    key = (seed, STILL_SPLIT_NUMBERS[split], index)
    rng = np.random.default_rng(key)
    identity = _sample_identity(rng, f"still_{split}_{index:06d}")
    components = _free_components(rng, rng.choice(3, p=(0.1, 0.45, 0.45)))
    actions = tuple(Action(name, float(rng.uniform(0.55, 1.0)), "hold", 0.0, 1.0) for name in components)
    label = _free_label(components)
    caption = _caption(rng, identity, actions, drop=0.0, with_dynamics=False)
    return ClipSpec(identity.name, identity, label, caption, actions, symptom_targets(actions), key)


def sample_order_pair(seed, index):
    """Two clips of the same frames, (onset, offset): the second is the first played backwards.

    Only the order of the frames tells them apart, and only the last words of their captions.
    """
    key = (seed, SPLIT_NUMBERS["order_pairs"], index)
    rng = np.random.default_rng(key)
    identity = _sample_identity(rng, f"order_pairs_{index:06d}")
    component = str(rng.choice(STEADY_COMPONENTS))
    phrase = str(rng.choice(COMPONENTS[component]))
    action = Action(component, float(rng.uniform(0.75, 1.0)), "onset", *_ramp(rng))
    label = nearest_recipe([component])
    onset = ClipSpec(
        clip_id=f"{identity.name}_onset",
        identity=identity,
        label=label,
        caption=f"{phrase} slowly appearing",
        actions=(action,),
        targets=symptom_targets([action]),
        rng_key=key,
    )
    twin = replace(backwards(onset), clip_id=f"{identity.name}_offset", caption=f"{phrase} slowly fading")
    return onset, twin


def backwards(spec):
    """The same clip with time running backwards; the caption and the identifier stay as they are."""
    swapped = {"onset": "offset", "offset": "onset"}
    actions = []
    for action in spec.actions:
        if action.dynamics == "flash":
            action = replace(action, start=1.0 - action.start)
        elif action.dynamics in ("dart", "shake", "nod"):
            # sin(2 pi ((1 - t) / d + s)) = sin(2 pi (t / d + (1/2 - s - 1/d)))
            action = replace(action, start=0.5 - action.start - 1.0 / action.duration)
        actions.append(replace(action, dynamics=swapped.get(action.dynamics, action.dynamics)))
    actions = tuple(actions)
    return replace(spec, actions=actions, targets=symptom_targets(actions), time_reversed=not spec.time_reversed)


def _sample_identity(rng, name):
    gender = str(rng.choice(tuple(SUBJECTS)))
    return Identity(
        name=name,
        gender=gender,
        hair_color=str(rng.choice(HAIR_COLORS)),
        hair_style=str(rng.choice(HAIR_STYLES[gender])),
        glasses=bool(rng.random() < 0.18),
        # Men only, so that it is 22 and 12 % of all faces.
        beard=gender == "man" and bool(rng.random() < 0.44),
        moustache=gender == "man" and bool(rng.random() < 0.24),
    )


def _fits(name, chosen, restricted):
    if name in chosen or any({name, other} <= group for group in EXCLUSIVE for other in chosen):
        return False
    return not (restricted and any(frozenset((name, other)) in FORBIDDEN_PAIRS for other in chosen))


def _extend(rng, chosen, count, restricted):
    for name in rng.permutation(COMPONENT_NAMES):
        if count == 0:
            break
        if _fits(str(name), chosen, restricted):
            chosen.append(str(name))
            count -= 1
    return chosen


def _free_components(rng, count):
    return _extend(rng, [], count, restricted=True)


def _recipe_components(rng, label, restricted):
    chosen = []
    for name, probability in EMOTIONS[label]:
        if rng.random() < probability and _fits(name, chosen, restricted):
            chosen.append(name)
    incidental = int(rng.random() < 0.3)
    return _extend(rng, chosen, incidental, restricted)


def _training_components(rng):
    """(label, components, simple): 15 % simple clips, and of the rest 60 % from recipes and 40 % free combinations."""
    kind = rng.choice(("simple", "recipe", "free"), p=(0.15, 0.51, 0.34))
    if kind == "recipe":
        label = str(rng.choice(SEEN_EMOTIONS))
        return label, _recipe_components(rng, label, restricted=True), False
    components = _free_components(rng, rng.integers(1, 3) if kind == "simple" else rng.integers(0, 5))
    return _free_label(components), components, kind == "simple"


def _free_label(components):
    """The nearest recipe that shares a component; "neutral" where none does."""
    sharing = [label for label in SEEN_EMOTIONS if set(components) & set(dict(EMOTIONS[label]))]
    return nearest_recipe(components, sharing or ("neutral",))


def _test_label(split, index):
    if split == "test":
        return EMOTION_NAMES[index % len(EMOTION_NAMES)]
    # Multiples of the golden ratio spread evenly: every prefix of the split has nearly DFEW's shares.
    ends = np.cumsum(tuple(DFEW_SHARES.values())) / sum(DFEW_SHARES.values())
    position = (index * 0.6180339887498949 + 0.5) % 1.0
    return tuple(DFEW_SHARES)[int(np.searchsorted(ends, position, side="right"))]


def _ramp(rng):
    return float(rng.uniform(0.12, 0.40)), float(rng.uniform(0.15, 0.40))


def _sample_action(rng, name, simple, restricted):
    intensity = float(rng.uniform(0.75 if simple else 0.55, 1.0))
    if name in PERIODIC:
        return Action(name, intensity, PERIODIC[name], float(rng.random()), float(rng.uniform(0.38, 0.62)))
    shares = (0.2, 0.35, 0.35, 0.1) if simple else (0.5, 0.25, 0.15, 0.1)
    dynamics = str(rng.choice(("hold", "onset", "offset", "flash"), p=shares))
    if restricted and (name, dynamics) in HELD_OUT_DYNAMICS:
        dynamics = "hold"
    if dynamics == "flash":
        return Action(name, intensity, dynamics, float(rng.uniform(0.3, 0.7)), float(rng.uniform(0.09, 0.15)))
    return Action(name, intensity, dynamics, *_ramp(rng))


def _phrase(rng, action, with_dynamics):
    words = str(rng.choice(COMPONENTS[action.component])).split()
    first = 1 if words[0] in ("a", "an") else 0
    gradable = first == 1 or words[0].endswith("ed")
    if gradable and action.intensity < 0.62 and rng.random() < 0.4:
        words.insert(first, "slightly" if words[first].endswith("ed") else "slight")
        words[:first] = ["a"] * first
    dynamics = DYNAMICS[action.dynamics]
    if with_dynamics and dynamics and rng.random() < 0.9:
        words.append(str(rng.choice(dynamics)))
    return " ".join(words)


def _attributes(identity):
    hair = "a bald head" if identity.hair_style == "bald" else f"{identity.hair_color} hair"
    worn = (("glasses", identity.glasses), ("a beard", identity.beard), ("a moustache", identity.moustache))
    return [hair] + [phrase for phrase, present in worn if present]


def _caption(rng, identity, actions, drop, with_dynamics):
    phrases = [_phrase(rng, action, with_dynamics) for action in actions]
    if not phrases:
        phrases = [str(phrase) for phrase in rng.permutation(NEUTRAL_PHRASES)[: rng.integers(1, 4)]]
    phrases = [phrase for phrase in phrases if rng.random() >= drop] or phrases[:1]
    phrases += [phrase for phrase in _attributes(identity) if rng.random() < 0.12]
    phrases = [str(phrase) for phrase in rng.permutation(phrases)]
    subjects = SUBJECTS[identity.gender] if rng.random() < 0.6 else ANYONE
    listed = " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
    return f"{rng.choice(subjects)} {rng.choice(('with', 'has', 'shows'))} {listed}"
