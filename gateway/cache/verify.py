"""Structural guards: why two texts that look alike cannot share an answer. Pure; knows neither vectors nor thresholds.

An embedding puts "turn on" beside "turn off" and 5 miles beside 50. Each guard looks for one such difference in the words and
names it. Where a guard is unsure it vetoes: a miss costs one request, a wrong hit costs trust. The word lists are English;
docs/cache.md says what each guard does on published pairs, and how that is measured.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d[\d.,]*\d|\d")
_NUMBER = re.compile(r"(?<![\w.])(\d[\d,]*(?:\.\d+)?)\s?(k\b|st\b|nd\b|rd\b|th\b)?", re.IGNORECASE)
_QUOTED = re.compile(r"\"([^\"]{1,200})\"|\u201c([^\u201d]{1,200})\u201d|`([^`]{1,200})`|(?<!\w)'([^']{1,200})'(?!\w)")
_CODE = re.compile(
    r"""(?<!\S)--?[A-Za-z][\w-]*                # -flag, --long-flag
      | (?<!\S)[.~]?/[\w./-]+                  # /a/path
      | \b\w+_\w+\b                           # snake_case
      | \b[a-z]+[A-Z]\w*\b                    # camelCase
      | \b[a-z_]{2,}(?:\.[a-z_]{2,})+\b       # os.path
      | \b(?!\d[\d.,]*(?:k|st|nd|rd|th)\b)(?=\w*\d)(?=\w*[^\W\d])[\w.-]*\w\b  # py3, gpt-4o, v1.2; not 50k, 3rd
      | \b\w+[+#]+(?!\w) | \b\w+\(\)         # C++, C#, main()
    """,
    re.VERBOSE,
)
_TOWARDS = re.compile(r"\b(from|to|into)\s+(?:(?:the|a|an|my)\s+)?([^\W\d_]+)")
_ACROSS = re.compile(r"\b([^\W\d_]+)\s+(?:to|into|than|versus|vs|before|after)\s+(?:(?:the|a|an|my)\s+)?([^\W\d_]+)")
_SYMBOLS = {"%": "percent", "$": "dollar", "€": "euro", "£": "pound"}


def _words(text: str) -> list[str]:
    """A literal's words; keeps long lists readable."""
    return text.split()


def _items(text: str) -> list[list[str]]:
    """Items between commas, each as its words: spellings of one thing."""
    return [item.split() for item in text.split(",")]


def _table(text: str) -> dict[str, str]:
    """Every word, mapped to the first word of its item."""
    return {word: item[0] for item in _items(text) for word in item}


_NUMBER_WORDS = {
    word: str(value)
    for value, item in enumerate(
        _items("""
        zero,, two twice both second, three third thrice, four fourth, five fifth, six sixth, seven seventh, eight eighth,
        nine ninth, ten tenth, eleven, twelve dozen, thirteen, fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty
        """)
    )
    for word in item
} | {word: str(at * 10) for at, word in enumerate(_words("thirty forty fifty sixty seventy eighty ninety hundred"), 3)}
"""`one` is left out: it is a pronoun as often as a number, and a text with another number differs by that one."""

_NEGATORS = frozenset(
    _words("""
    not no never none nor neither nobody nothing nowhere without cannot except unless hardly barely fail fails failed stop
    stops avoid avoids avoiding prevent prevents lack lacks
    """)
)
_NEGATIVE_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "anti", "de", "mis", "ab", "a")
_ANTONYMS = frozenset(
    frozenset(pair.split("/"))
    for pair in _words("""
    on/off enable/disable activate/deactivate before/after pro/con best/worst good/bad better/worse more/less more/fewer
    most/least many/few maximum/minimum max/min increase/decrease increase/reduce raise/lower gain/lose up/down open/close
    start/stop start/end begin/end first/last buy/sell lend/borrow import/export send/receive login/logout add/remove
    add/delete create/delete install/uninstall insert/remove accept/reject accept/decline allow/block allow/deny allow/forbid
    allow/ban approve/reject grant/revoke lock/unlock encrypt/decrypt encode/decode compress/decompress connect/disconnect
    subscribe/cancel join/leave enter/leave enter/exit come/go push/pull upload/download read/write input/output
    ascending/descending asc/desc inside/outside in/out above/below over/under left/right top/bottom front/back north/south
    east/west high/low higher/lower highest/lowest large/small larger/smaller largest/smallest big/small bigger/smaller
    biggest/smallest long/short longer/shorter longest/shortest tall/short tallest/shortest old/young old/new older/younger
    oldest/youngest oldest/newest fast/slow faster/slower fastest/slowest hot/cold hotter/colder warm/cold early/late
    earlier/later easy/hard easy/difficult easiest/hardest cheap/expensive cheapest/expensive rich/poor strong/weak
    safe/dangerous healthy/harmful benefit/risk benefit/drawback benefit/harm strength/weakness true/false positive/negative
    right/wrong win/lose love/hate like/dislike male/female man/woman boy/girl husband/wife father/mother son/daughter
    brother/sister king/queen public/private client/server frontend/backend lossy/lossless sync/async legal/illegal
    guilty/innocent alive/dead birth/death born/die born/dead arrive/depart arrival/departure to/from with/without
    include/exclude always/never all/none gained/lost rise/fall deposit/withdraw credit/debit even/odd serial/parallel
    horizontal/vertical hide/show freeze/unfreeze mute/unmute debt/asset freeze/thaw pass/fail top/worst hire/fire
    """)
)
_KINDS = tuple(
    _table(words)
    for words in (
        # Units, with the spellings that mean the same.
        """
        kilometer kilometre kilometers kilometres km kms, meter metre meters metres, centimeter centimetre centimeters
        centimetres cm, millimeter millimetre millimeters millimetres mm, mile miles, foot feet ft, inch inches, yard yards,
        kilogram kilograms kilo kilos kg kgs, gram grams, pound pounds lb lbs, ounce ounces oz, tonne tonnes ton tons, liter
        litre liters litres, milliliter millilitre milliliters millilitres ml, gallon gallons, celsius centigrade, fahrenheit,
        kelvin, second seconds, minute minutes, hour hours, day days, week weeks, month months, year years, decade decades,
        century centuries, dollar dollars usd, euro euros eur, rupee rupees inr, yen jpy, percent percentage, byte bytes,
        kilobyte kilobytes kb, megabyte megabytes mb, gigabyte gigabytes gb, terabyte terabytes tb
        """,
        # Human languages.
        """
        english, french, german, spanish, italian, portuguese, polish, russian, dutch, swedish, danish, norwegian, finnish,
        greek, turkish, arabic, hebrew, hindi, urdu, bengali, tamil, telugu, marathi, punjabi, chinese mandarin, cantonese,
        japanese, korean, vietnamese, thai, indonesian, malay, latin, czech, hungarian, romanian, ukrainian, swahili, persian
        farsi, irish, welsh
        """,
        # What code or instructions are written for.
        """
        python py, java, javascript js, typescript ts, rust, golang, ruby, perl, php, swift, kotlin, scala, haskell, lua,
        julia, matlab, fortran, cobol, bash, powershell, sql, mysql, postgresql postgres, sqlite, mongodb, redis, oracle,
        html, css, windows, linux, ubuntu, debian, fedora, centos, mac macos osx, android, ios iphone, ipad, chrome, firefox,
        safari, edge, react, angular, vue, django, flask, rails, node nodejs, npm, pip, conda, yarn, apt, brew, docker,
        kubernetes k8s, git, svn, aws, azure, gcp, nginx, apache, pandas, numpy, spark, pytorch, tensorflow, excel, word,
        powerpoint, gmail, outlook
        """,
        # Months, days, seasons, times of day.
        """
        january jan, february feb, march, april, june, july, august aug, september sept, october oct, november nov, december
        dec, monday, tuesday, wednesday, thursday, friday, saturday, sunday, weekday weekdays, weekend weekends, spring,
        summer, autumn, winter, morning, noon, afternoon, evening, night, midnight, easter, christmas, halloween
        """,
        # Shapes an answer is asked for in.
        """
        json, yaml, xml, csv, markdown, plaintext, sentence sentences, paragraph paragraphs, bullet bullets, essay, poem,
        haiku, simple simply, technical technically, detail detailed details, brief briefly short shortly, formal formally,
        informal informally casual casually
        """,
        # Whom a question is about.
        """
        child children kid kids, adult adults, teenager teenagers teen teens, baby babies infant infants newborn newborns,
        toddler toddlers, woman women, man men, boy boys, girl girls, elderly senior seniors, pregnant, dog dogs puppy
        puppies, cat cats kitten kittens, horse horses, bird birds, student students, teacher teachers, beginner beginners,
        expert experts, employee employees, employer employers, customer customers, supplier suppliers, buyer buyers, seller
        sellers, tenant tenants, landlord landlords, parent parents
        """,
        # Colours.
        """
        red, blue, green, yellow, orange, purple violet, pink, brown, black, white, grey gray, gold, silver, bronze
        """,
        # Continents.
        """
        europe, asia, africa, america, australia, antarctica
        """,
    )
)
"""Groups of words that exclude each other, each word with its canonical spelling."""

_ODD_WORDS = 2
"""Words that may differ, of both texts together, for their order to tell something."""

_NOT_NAMES = frozenset(
    _words("""
    a an the this that these those i my me you your we our they it he she his her is are was were do does did can could should
    would will may might must have has had be am not no yes and or but if then so as of in on at by for with to from about
    what which who when where why how please tell give show explain describe list write name let get any some best good
    """)
)
"""Words that a title's spelling capitalises although they name nothing."""

_ASKS = {"who": "who", "whom": "who", "whose": "who", "when": "when", "where": "where", "why": "why", "how": "how"}
_QUANTITIES = frozenset(
    _words("""
    many much long old far often tall big large high deep fast heavy wide hot cold soon late
    """)
)
_ASKED_NOUNS = {
    **dict.fromkeys(("time", "date", "year", "day"), "when"),
    **dict.fromkeys(("place", "country", "city"), "where"),
    **dict.fromkeys(("reason", "reasons", "cause", "causes"), "why"),
    "person": "who",
}


class _Reading(NamedTuple):
    """One text, taken apart once for all guards."""

    raw: str
    """As it was written, with one kind of apostrophe and negations spelt out."""
    words: list[str]
    """Lower case, without a possessive's s, symbols of money and percent as words."""
    known: frozenset[str]
    """The same, each once."""


def veto(asked: str, stored: str) -> str | None:
    """The name of the first guard that sees a difference an answer would depend on, or None. About 0.1 ms for a short pair."""
    if asked == stored:
        return None
    one, other = _read(asked), _read(stored)
    for name, differs in _GUARDS:
        if differs(one, other):
            return name
    return None


def _read(text: str) -> _Reading:
    raw = text.replace("\u2019", "'").replace("can't", "cannot").replace("won't", "will not").replace("n't", " not")
    spaced = "".join(f" {_SYMBOLS[char]} " if char in _SYMBOLS else char for char in raw)
    words = [word.lower().removesuffix("'s") for word in _WORD.findall(spaced)]
    return _Reading(raw, words, frozenset(words))


def _stem(word: str) -> str:
    """A rough stem: enough to let "convert" meet "converting" and "cities" "city"."""
    for suffix, put in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("ly", ""), ("s", ""), ("e", "")):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
            stem = word[: -len(suffix)] + put
            return stem[:-1] if len(stem) > 3 and stem[-1] == stem[-2] and suffix in {"ing", "ed"} else stem.removesuffix("e")
    return word


def _numbers_differ(one: _Reading, other: _Reading) -> bool:
    return _numbers(one) != _numbers(other)


def _numbers(reading: _Reading) -> frozenset[str]:
    """Every number, digits and words alike, in one spelling."""
    found = {_NUMBER_WORDS[word] for word in reading.words if word in _NUMBER_WORDS}
    for digits, suffix in _NUMBER.findall(reading.raw):
        value = float(digits.replace(",", "")) * (1000 if suffix.lower() == "k" else 1)
        found.add(f"{value:.10g}")
    return frozenset(found)


def _negations_differ(one: _Reading, other: _Reading) -> bool:
    if sum(word in _NEGATORS for word in one.words) % 2 != sum(word in _NEGATORS for word in other.words) % 2:
        return True
    return _negates(one.known - other.known, other.known - one.known) or _negates(
        other.known - one.known, one.known - other.known
    )


def _negates(some: frozenset[str], others: frozenset[str]) -> bool:
    """Whether a word here is the negative of one there: unsafe and safe, careless and careful, non-fiction and fiction."""
    for word in some:
        for prefix in _NEGATIVE_PREFIXES:
            rest = word.removeprefix(prefix)
            if rest != word and len(rest) >= 3 and any(_stem(rest) == _stem(found) for found in others):
                return True
        if word.endswith("less") and any(found.startswith(word[:-4]) for found in others):
            return True
    return False


def _antonyms_differ(one: _Reading, other: _Reading) -> bool:
    ours, theirs = one.known - other.known, other.known - one.known
    ours, theirs = ours | {_singular(word) for word in ours}, theirs | {_singular(word) for word in theirs}
    return any(frozenset((word, found)) in _ANTONYMS for word in ours for found in theirs)


def _singular(word: str) -> str:
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _questions_differ(one: _Reading, other: _Reading) -> bool:
    asked, stored = _question(one), _question(other)
    return asked is not None and stored is not None and asked != stored


def _question(reading: _Reading) -> str | None:
    """What the first question word asks for; None for `what` and `which`, which may ask for anything."""
    for at, word in enumerate(reading.words):
        follows = reading.words[at + 1] if at + 1 < len(reading.words) else ""
        if word == "how" and follows in _QUANTITIES:
            return f"how {follows}"
        if word == "how" and follows == "come":
            return "why"
        if word in _ASKS:
            return _ASKS[word]
        if word in {"what", "which"} and follows in _ASKED_NOUNS:
            return _ASKED_NOUNS[follows]
    return None


def _kinds_differ(one: _Reading, other: _Reading) -> bool:
    """Whether one names another unit, language, program, month, shape, group or colour than the other."""
    return any(
        {kinds[word] for word in one.known if word in kinds} != {kinds[word] for word in other.known if word in kinds}
        for kinds in _KINDS
    )


def _entities_differ(one: _Reading, other: _Reading) -> bool:
    return bool(_entities(one) - _plain(other) or _entities(other) - _plain(one))


def _entities(reading: _Reading) -> set[str]:
    """Capitalised words that do not begin a sentence, and abbreviations anywhere; lower case, without a plural's s."""
    found = set()
    for match in _WORD.finditer(reading.raw):
        word = match.group().removesuffix("'s")
        before = reading.raw[: match.start()].rstrip(" \t\"'([")
        begins = not before or before[-1] in ".?!:\n"
        if (len(word) > 1 and word.isupper()) or (word[:1].isupper() and not begins and word.lower() not in _NOT_NAMES):
            found.add(_singular(word.lower()))
    return found


def _plain(reading: _Reading) -> set[str]:
    return {_singular(word) for word in reading.words}


def _quotes_differ(one: _Reading, other: _Reading) -> bool:
    """Both quote, and not the same; what only one of them puts in quotes is compared as words."""
    ours, theirs = _quotes(one), _quotes(other)
    return bool(ours and theirs) and ours != theirs


def _quotes(reading: _Reading) -> set[str]:
    return {"".join(groups).strip().lower() for groups in _QUOTED.findall(reading.raw)}


def _code_differs(one: _Reading, other: _Reading) -> bool:
    return {word.lower() for word in _CODE.findall(one.raw)} != {word.lower() for word in _CODE.findall(other.raw)}


def _directions_differ(one: _Reading, other: _Reading) -> bool:
    """Whether what one comes from is what the other goes to: "from English to German", "metres to feet"."""
    ours, theirs = one.raw.lower(), other.raw.lower()
    if any((right, left) in set(_ACROSS.findall(theirs)) for left, right in _ACROSS.findall(ours)):
        return True
    (ours_from, ours_to), (theirs_from, theirs_to) = _ends(ours), _ends(theirs)
    return bool(ours_from & theirs_to) or bool(ours_to & theirs_from)


def _ends(text: str) -> tuple[set[str], set[str]]:
    """The words that follow `from`, and those that follow `to` and `into`."""
    found = _TOWARDS.findall(text)
    return {word for before, word in found if before == "from"}, {word for before, word in found if before != "from"}


def _order_differs(one: _Reading, other: _Reading) -> bool:
    """Almost the same words, the shared ones in another order: "does a cat eat a dog"."""
    some, others = ([word for word in reading.words if word not in _NEGATORS] for reading in (one, other))
    ours, theirs = Counter(some), Counter(others)
    odd = sum(((ours - theirs) + (theirs - ours)).values())
    if odd > _ODD_WORDS:
        return False
    shared = ours & theirs
    return _only(some, shared) != _only(others, shared)


def _only(words: list[str], wanted: Counter[str]) -> list[str]:
    """The words in their order, each at most as often as wanted."""
    left = Counter(wanted)
    kept = []
    for word in words:
        if left[word] > 0:
            left[word] -= 1
            kept.append(word)
    return kept


_GUARDS: tuple[tuple[str, Callable[[_Reading, _Reading], bool]], ...] = (
    ("numbers", _numbers_differ),
    ("negation", _negations_differ),
    ("antonym", _antonyms_differ),
    ("question", _questions_differ),
    ("quoted", _quotes_differ),
    ("code", _code_differs),
    ("kind", _kinds_differ),
    ("entity", _entities_differ),
    ("order", _order_differs),
    ("direction", _directions_differ),
)
