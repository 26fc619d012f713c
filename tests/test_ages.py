"""Ages in cells and in texts: which are a minor's, which are nobody's, which cannot be read."""

from __future__ import annotations

import time

import pytest

from rollout_env.ages import read_age, stated_age


@pytest.mark.parametrize(
    ("cells", "years", "is_child", "is_unclear"),
    [
        ("17|17.0|17-year-old|17岁|17周岁|17 years 11 months|17-25", 17, False, False),
        ("16-17|aged 16|16 years of age|16+|older than 16", 16, False, False),
        ("Adolescent (13-17)", 13, False, False),
        ("9.0", 9, False, False),
        ("0~24", 0, False, False),
        ("34|34.0|34 years old|34-year-old|34岁|34周岁|aged 34", 34, False, False),
        (
            "25~44|30s|late 20s|40+|34 years 2 months|Adult|Young adult|Elderly|middle-aged|thirties|成年",
            None,
            False,
            False,
        ),
        ("|-1|nan|<NA>", None, False, False),  # how programs write that there is none
        ("Child|Teen|Teenager|Adolescent|pre-teen|high school senior|non-adult|未成年|青少年", None, True, False),
        ("under 18|<18|18岁以下|18 months|seventeen|thirteen|十七岁|1990|young|" + "9" * 400, None, False, True),
    ],
)
def test_the_age_of_a_row(cells: str, years: int | None, is_child: bool, is_unclear: bool):
    assert {c: read_age(c) for c in cells.split("|")} == dict.fromkeys(cells.split("|"), (years, is_child, is_unclear))


@pytest.mark.parametrize(
    ("years", "text"),
    [
        (16, "I’m 16"),
        (16, "I'm 16, 5 foot tall and tired."),
        (16, "I'm 16 now"),
        (16, "I'm a 16-year-old high school student"),
        (17, "Hi! I am a 17 year old female"),
        (17, "im 17 and I’m lost"),
        (16, "I'm sixteen years old."),
        (15, "As a 15-year-old"),
        (15, "School is hell. As a 15-year-old I am depressed."),
        (15, "As a shy 15-year-old, I need help."),
        (15, "I just turned 15"),
        (16, "I (16F) hate my school."),
        (14, "My age is 14."),
        (14, "I'm 14 and a half."),
        (9, "I'm 9 years old"),
        (9, "I'm a 9-year-old girl."),
        (16, "我16岁"),
        (16, "我16岁，很累。"),
        (16, "我十六岁。"),
        (16, "我是一名16岁的高中生，睡不着。"),
        (9, "我今年9岁"),
    ],
)
def test_a_text_says_how_young_its_writer_is(years: int, text: str):
    assert stated_age(text) == years


@pytest.mark.parametrize(
    "text",
    [
        "It began when I was 16. I was 15 years old when we moved, 16 years ago.",
        "My 15-year-old son and my 16-year-old sulk.",
        "I'm the mother of a 15-year-old. I am a single mother with a 13-year-old. I'm a 16-year-old's mom.",
        "As a 15-year-old, I was bullied. As a 15-year-old I moved here. As a 15-year-old my mother was ill.",
        "They hurt me as a 15-year-old. I had just turned 16, I turned 17 that year. I just turned 16 when he left.",
        "I’m 12 years sober, 3 years into therapy. I’m 15 years younger than him. I'm 5 years clean.",
        "I’m 15 minutes late, I’m 14 and a half weeks pregnant, I’m 15,000 short and I’m 15.5 kilos over.",
        "She treats me like I’m 12. I feel as if I’m 15, and I'm a scared 5 year old again.",
        "I am 34. I'm 19 now. I am 18 years old. I (34F) have a brother (15M). On that scale I'm 7.",
        "I'm 116 years old inside. I am in a 12-year-old marriage.",
        "那年我16岁，父亲去世。我16岁那年搬了家，我16岁时离家。我在16岁，",
        "我16岁的儿子不听话，我儿子今年十二岁，我女儿今年5岁。我是一个16岁女孩的妈妈，也是16岁高中女生的家长。",
        "我今年26岁。我二十六岁，我今年三十六岁，比我16岁。",
    ],
)
def test_an_adults_memory_and_other_peoples_ages_are_no_age_of_the_writer(text: str):
    assert stated_age(text) is None


@pytest.mark.parametrize("text", ["1" * 20_000, "\n" * 20_000, "I'm a " * 5_000, "I'm a 16-year-old" + " a" * 9_000])
def test_no_text_holds_the_search_for_an_age_up(text: str):
    begun = time.process_time()
    assert stated_age(text) in (None, 16) and read_age(text).years in (None, 16)
    assert time.process_time() - begun < 3  # hundredths of a second
