"""Words, stems, sentences and negation by hand, and the two lexicons: same lists, no cue in common."""

from __future__ import annotations

import pytest

from tournament.lexicon import cue_stems, load_lexicon, read_lists
from tournament.textfeatures import is_list, parse_sentence, scrambled, sentences, stem, tokens


@pytest.mark.parametrize(
    "forms",
    [
        "worry worries worried",
        "hope hoping hoped",
        "sleep sleeping slept",
        "father dad",
        "morning mornings",
        "safe safely",
    ],
)
def test_forms_of_a_word_share_a_stem(forms):
    assert len({stem(w) for w in forms.split()}) == 1


def test_contractions_are_written_out():
    assert tokens("I can't, it's Ana's; they'll") == ["i", "can", "not", ",", "it", "is", "ana", ",", "they", "will"]


@pytest.mark.parametrize(
    ("text", "word", "negated"),
    [
        ("You are not sad.", "sad", True),
        ("No wonder you are sad.", "sad", False),
        ("You are not only sad.", "sad", False),
        ("It is not easy, and you are sad.", "sad", False),
        ("You do not want rest or any kind of praise.", "praise", True),
        ("Wouldn't it help to rest?", "rest", False),
        ("You never rest.", "rest", True),
    ],
)
def test_negation(text, word, negated):
    s = parse_sentence(text)
    assert s.negated(s.words.index(word)) is negated


def test_sentences():
    found = sentences('Dr. Roth is here. Is he? He said "no."  And then')
    assert [s.text for s in found] == ["Dr Roth is here.", "Is he?", 'He said "no."', "And then"]
    assert [s.is_question for s in found] == [False, True, False, False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("the of you sweep", True), ("you sweep and the", True), ("you sweep the shop", False), ("I are here", True)],
)
def test_scrambled(text, expected):
    assert scrambled(tokens(text)) is expected


def test_a_list_of_cues_is_no_clause():
    assert is_list(tokens("Perhaps, maybe, I wonder, does it fit, it seems."))
    assert not is_list(tokens("You wait, and you hope, and you look out, and nobody comes, and it gets dark."))
    assert not parse_sentence("Feel close, be close, maybe, perhaps, I wonder.").has_clause


# --- the two lexicons ----------------------------------------------------------------------------


def cues(lists: dict, name: str) -> list[tuple[str, ...]]:
    value = lists[name]
    entries = [e for v in value.values() for e in v] if isinstance(value, dict) else value
    return [cue_stems(str(e)) for e in entries]


def test_lexicons_have_the_same_lists_and_no_cue_in_common():
    judge, shadow = read_lists("judge"), read_lists("shadow")
    assert judge.keys() == shadow.keys()
    for name in judge:
        if isinstance(judge[name], dict):
            assert judge[name].keys() == shadow[name].keys()
        for a in cues(judge, name):
            for b in cues(shadow, name):
                x, y = f" {' '.join(a)} ", f" {' '.join(b)} "
                assert x not in y and y not in x, f"{name}: {x!r} and {y!r} overlap"
    everywhere = [{c for name in lists for c in cues(lists, name)} for lists in (judge, shadow)]
    assert not everywhere[0] & everywhere[1]


def test_lexicons_cover_every_key_of_the_contract():
    contract = {
        "affect": "sadness anxiety fear anger shame guilt loneliness hopelessness confusion grief jealousy exhaustion "
        "relief hope pride",
        "need": "belonging approval control safety autonomy competence being_seen rest fairness meaning closeness "
        "forgiveness",
        "technique_step": "empty_chair grounding thought_record letter_writing externalizing exposure role_play "
        "breathing values_cards scaling behavioural_experiment self_compassion",
        "request": "meet_outside gift diagnosis medication are_you_human keep_secret personal_contact romantic",
    }
    for name, keys in contract.items():
        for lists in (read_lists("judge"), read_lists("shadow")):
            assert sorted(lists[name]) == sorted(keys.split())


def test_a_lexicon_key_that_is_not_there_names_the_permitted_ones():
    with pytest.raises(KeyError, match="permitted: sadness"):
        load_lexicon("judge").of("affect", "bliss")
