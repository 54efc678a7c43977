# SPDX-License-Identifier: Apache-2.0
"""Grammar of the rendered faces: samples the facial movements in a clip and the caption that describes them.

Every sample is a pure function of (seed, split, index). Four emotions, ten pairs of components and three combinations
of component and dynamics are excluded from all data for training and model selection, to make zero-shot tests valid.
"""

from dataclasses import replace
from itertools import zip_longest

import numpy as np

from training.data.face_spec import Action, ClipSpec, Identity, symptom_targets
from training.data.face_vocabulary import (
    ANYONE,
    COMPONENT_NAMES,
    COMPONENTS,
    COMPOUND_NAMES,
    DFEW_SHARES,
    DYNAMICS,
    EMOTION_NAMES,
    EMOTIONS,
    EXCLUSIVE,
    FORBIDDEN_PAIRS,
    HAIR_COLORS,
    HAIR_STYLES,
    HELD_OUT_DYNAMICS,
    NEUTRAL_PHRASES,
    PERIODIC,
    RESTRICTED_SPLITS,
    SEEN_EMOTIONS,
    SPLIT_NUMBERS,
    STEADY_COMPONENTS,
    STILL_SPLIT_NUMBERS,
    SUBJECTS,
)


def forbidden_pairs(components):
    """Returns the forbidden pairs among the given component names."""
    return {pair for pair in FORBIDDEN_PAIRS if pair <= set(components)}


def nearest_recipe(components, labels=EMOTION_NAMES):
    """Returns the emotion whose recipe gives the components the highest likelihood, assuming independence."""
    present = set(components)

    def log_likelihood(label):
        recipe = dict(EMOTIONS[label])
        odds = ((name in present, recipe.get(name, 0.02)) for name in COMPONENT_NAMES)
        return sum(np.log(p if on else 1.0 - p) for on, p in odds)

    return max(labels, key=log_likelihood)


def sample_clip(seed, split, index):
    """Samples the specification of clip `index` of "train", "validation", "test" or "test_imbalanced"."""
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
    """Samples still image `index` of "train" or "validation": 0 to 2 components, all in the caption."""
    key = (seed, STILL_SPLIT_NUMBERS[split], index)
    rng = np.random.default_rng(key)
    identity = _sample_identity(rng, f"still_{split}_{index:06d}")
    components = _free_components(rng, rng.choice(3, p=(0.1, 0.45, 0.45)))
    actions = tuple(Action(name, float(rng.uniform(0.55, 1.0)), "hold", 0.0, 1.0) for name in components)
    label = _free_label(components)
    caption = _caption(rng, identity, actions, drop=0.0, with_dynamics=False)
    return ClipSpec(identity.name, identity, label, caption, actions, symptom_targets(actions), key)


def sample_compound(seed, index):
    """Samples test clip `index` of the compound emotions, combining the typical components of both parts."""
    key = (seed, SPLIT_NUMBERS["compounds_test"], index)
    rng = np.random.default_rng(key)
    identity = _sample_identity(rng, f"compounds_test_{index:06d}")
    label = COMPOUND_NAMES[index % len(COMPOUND_NAMES)]
    chosen = []
    # Alternates between the parts; of two components that exclude each other, such as two mouths, the first one stays.
    for rank, both in enumerate(zip_longest(*(EMOTIONS[part] for part in rng.permutation(label.split("_"))))):
        for name, probability in filter(None, both):
            if (rank == 0 or rng.random() < probability) and _fits(name, chosen, restricted=False):
                chosen.append(name)
    actions = tuple(_sample_action(rng, name, simple=False, restricted=False) for name in chosen)
    caption = _caption(rng, identity, actions, drop=0.15, with_dynamics=True)
    return ClipSpec(identity.name, identity, label, caption, actions, symptom_targets(actions), key)


def sample_order_pair(seed, index, split="order_pairs"):
    """Samples two clips with the same frames, (onset, offset): the second is the first played backwards.

    They differ only in the order of the frames, and in the last word of their captions.
    """
    key = (seed, SPLIT_NUMBERS[split], index)
    rng = np.random.default_rng(key)
    identity = _sample_identity(rng, f"{split}_{index:06d}")
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
    """Returns the clip with time reversed; caption and identifier stay unchanged."""
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
        # Men only: 22 % of all faces have a beard, 12 % a moustache.
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
    """Samples (label, components, simple): 15 % simple clips; of the rest, 60 % recipes and 40 % free combinations."""
    kind = rng.choice(("simple", "recipe", "free"), p=(0.15, 0.51, 0.34))
    if kind == "recipe":
        label = str(rng.choice(SEEN_EMOTIONS))
        return label, _recipe_components(rng, label, restricted=True), False
    components = _free_components(rng, rng.integers(1, 3) if kind == "simple" else rng.integers(0, 5))
    return _free_label(components), components, kind == "simple"


def _free_label(components):
    """Returns the nearest recipe among those that share a component, or "neutral" if none does."""
    sharing = [label for label in SEEN_EMOTIONS if set(components) & set(dict(EMOTIONS[label]))]
    return nearest_recipe(components, sharing or ("neutral",))


def _test_label(split, index):
    if split == "test":
        return EMOTION_NAMES[index % len(EMOTION_NAMES)]
    # Multiples of the golden ratio are spread evenly, so every prefix of the split has nearly DFEW's class shares.
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
