"""Thousands of prompts of the kinds that people write and scrapers collect, the same on every machine.

Only characters of old Unicode versions, so that no library's tables matter.
"""

import random
from collections.abc import Callable

_TAGS = """
1girl 2boys solo long_hair blue_eyes looking_at_viewer absurdres highres masterpiece best quality very aesthetic
school_uniform hatsune_miku_(vocaloid) artoria_pendragon_(fate) :d ;) >:( ^_^ o_o +_+ k-on! re:zero fate/stay_night
no_humans 16:9 3d 1990s_(style) rating:general year_2023 artist:someone jojo's_bizarre_adventure nier:automata x-ray
"""
_WORDS = """
a the photo of an astronaut riding horse on moon in style by Greg with very detailed intricate oil painting sunset
over Tokyo at night portrait woman red hair cinematic lighting 35mm film grain bokeh trending concept art dog cat
isn't it's don't they're we've I'll he'd I'm O'Brien rock'n'roll state-of-the-art e.g. U.S.A. Dr. No. 5 1,000 3.14
"""
_PUNCTUATION = (
    "! ? . , ; : ' \" - _ ( ) [ ] { } < > / \\ | @ # $ % ^ & * + = ~ ` ... !! ?! -- '' :: // ''s !'s"
)
TAGS, WORDS, PUNCTUATION = _TAGS.split(), _WORDS.split(), _PUNCTUATION.split()
CURLY = ["“quoted”", "‘single’", "it’s", "„low“", "don’t", "«guillemets»", "it‚s", "“", "’"]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇯🇵", "1️⃣", "❤️", "❤", "🏳️‍🌈", "☺", "✨", "🔥🔥🔥", "♪", "★", "→", "©", "™"]
CJK = [
    "日本語",
    "のプロンプト",
    "青い空",
    "少女、",
    "一人。",
    "中文提示词",
    "漂亮的",
    "한국어",
    "안녕하세요",
    "カタカナ",
    "ー",
    "々",
    "「引用」",
]
WIDE = ["ＦＵＬＬ", "ｗｉｄｔｈ", "１２３", "！？", "（全角）", "ﾊﾝｶｸ", "ｶﾀｶﾅ", "：", "～", "　"]
EMPHASIS = [
    "(word:1.2)", "((word))", "[word]", "{{word}}", "(a cat:0.8)", "<lora:name:0.8>", "BREAK", "AND", "[from:to:0.5]",
    "[a|b]", r"\(escaped\)", "(nested (deep:1.1):1.3)", "word++", "(word)1.4", "__wildcard__", "embedding:bad", "((",
]  # fmt: skip
ACCENTS = [
    "café",
    "naïve",
    "Ångström",
    "señor",
    "Straße",
    "Ærø",
    "łódź",
    "Dvořák",
    "ÉCOLE",
    "œuvre",
    "tiếng Việt",
    "İstanbul",
]
DECOMPOSED = [
    "cafe\u0301",
    "nai\u0308ve",
    "A\u030angstro\u0308m",
    "sen\u0303or",
    "か\u3099",
    "e\u0323\u0302",
    "\u1112\u1161\u11ab",
]
LIGATURES = ["ﬁne", "ﬂower", "eﬀect", "oﬃce", "ﬅ", "Ǆ", "ĳs", "№", "½", "x²", "Ⅷ", "㎏", "…"]
ENTITIES = [
    "&amp;",
    "&quot;quoted&quot;",
    "&#39;s",
    "&lt;b&gt;",
    "&nbsp;",
    "&amp;amp;",
    "&amp;#39;",
    "&eacute;",
    "&#x2014;",
    "AT&T",
]
BLANKS = ["\t", "\n", "\r\n", "  ", "\u00a0", "\u2003", "\u200b", "\ufeff", "\u2028", "\x85", "\x0b", " \n "]
CONTROLS = ["\x00", "\x07", "\x1b[31m", "\x1b[0m", "\x7f", "\x1c", "\x9b", "\u202e", "\u00ad", "\x08"]
SCRIPTS = [
    "Привет",
    "МИР",
    "ΣΟΦΟΣ",
    "Ελλάδα",
    "ΟΔΟΣ",
    "العربية",
    "עברית",
    "ภาษาไทย",
    "हिन्दी",
    "தமிழ்",
    "ქართული",
    "ՀԱՅԵՐԵՆ",
]

Draw = Callable[[random.Random], str]


def _joined(pieces: list[str], most: int = 14, separators: tuple[str, ...] = (" ",)) -> Draw:
    """Up to `most` pieces, joined."""

    def draw(source: random.Random) -> str:
        separator = source.choice(separators)
        return separator.join(source.choice(pieces) for _ in range(source.randint(1, most)))

    return draw


def _among_words(pieces: list[str], separators: tuple[str, ...] = (" ", "", ", ")) -> Draw:
    """Words with at least one of the pieces among them."""

    def draw(source: random.Random) -> str:
        words = [source.choice(WORDS) for _ in range(source.randint(0, 10))]
        for _ in range(source.randint(1, 4)):
            words.insert(source.randint(0, len(words)), source.choice(pieces))
        return source.choice(separators).join(words)

    return draw


def _capitals(source: random.Random) -> str:
    words = [source.choice(WORDS + TAGS) for _ in range(source.randint(1, 12))]
    return " ".join(source.choice((str.upper, str.title, str.swapcase))(word) for word in words)


def _mojibake(source: random.Random) -> str:
    """UTF-8 read as Latin-1 or Windows-1252, once or twice."""
    words = [source.choice(ACCENTS + CURLY + CJK + EMOJI) for _ in range(source.randint(1, 6))]
    text = " ".join(words)
    for _ in range(source.randint(1, 2)):
        text = text.encode("utf-8").decode(source.choice(("latin-1", "cp1252")), errors="ignore")
    return text


def _long(source: random.Random) -> str:
    draw = source.choice((_joined(TAGS, 1, (", ",)), _joined(WORDS, 1), _joined(CJK, 1), _joined(EMOJI, 1)))
    return " ".join(draw(source) for _ in range(source.randint(100, 900)))


KINDS: dict[str, tuple[int, Draw]] = {
    "tags": (700, _joined(TAGS, 30, (", ", " ", ","))),
    "sentences": (700, _joined(WORDS, 25)),
    "punctuation": (400, _among_words(PUNCTUATION)),
    "punctuation alone": (200, _joined(PUNCTUATION, 12, ("", " "))),
    "capitals": (300, _capitals),
    "emphasis": (400, _among_words(EMPHASIS)),
    "emoji": (300, _among_words(EMOJI)),
    "Chinese, Japanese, Korean": (400, _joined(CJK, 12, ("", " ", "、"))),
    "other scripts": (300, _joined(SCRIPTS, 10)),
    "accents": (300, _among_words(ACCENTS)),
    "very long (100 to 900 words)": (100, _long),
    "curly quotes": (200, _among_words(CURLY)),
    "full-width and half-width letters": (200, _among_words(WIDE)),
    "decomposed accents": (200, _among_words(DECOMPOSED)),
    "ligatures and symbols": (200, _among_words(LIGATURES)),
    "HTML entities": (200, _among_words(ENTITIES)),
    "white space": (300, _among_words(BLANKS)),
    "control characters": (200, _among_words(CONTROLS)),
    "mojibake": (200, _mojibake),
}


def prompts_of(kind: str) -> list[str]:
    """The prompts of a kind, drawn with a seed of its own."""
    count, draw = KINDS[kind]
    source = random.Random(f"prompts of kind {kind}")
    return [draw(source) for _ in range(count)]
