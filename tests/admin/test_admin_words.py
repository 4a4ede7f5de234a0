"""The catalogue: whatever a page or a script says is said in Chinese too, with the same places to fill in."""

import re
from typing import get_args

from api.admin.jobs import SUITS
from api.admin.render import NAVIGATION, ROOM, THEMES, catalogue
from api.admin.schema_form import fields_of
from core.records.lineage import Bond, Kind
from core.records.tables import JOB_STATES
from core.specs.assignment import Phase
from core.specs.dataset import DatasetFormat
from core.specs.method import SPECS
from core.specs.training import HyperparametersRequest, TrainingRequest

SAID = re.compile(r"""\bt\(\s*(?:"([^"]+)"|'([^']+)')\s*[,)]""")


def said_in(pattern):
    texts = (path.read_text(encoding="utf-8") for path in ROOM.glob(pattern) if ".min." not in path.name)
    return {one or other for text in texts for one, other in SAID.findall(text)}


def chosen():
    """What is said by a name that is found out while a page is made."""
    fields = [
        field
        for spec in (*SPECS, HyperparametersRequest, TrainingRequest)
        for field in fields_of(spec, without={"early_stopping"})
    ]
    return {
        *(name for _, name in NAVIGATION),
        *THEMES,
        *JOB_STATES,
        *get_args(Phase),
        *SUITS.values(),
        *(f"method.{spec.model_fields['type'].default}" for spec in SPECS),
        *(f"format.{name}" for name in get_args(DatasetFormat)),
        *(f"kind.{name}" for name in get_args(Kind)),
        *(f"{part}.{name}" for part in ("bond", "sentence") for name in get_args(Bond)),
        *(field.description for field in fields if field.description),
        *(f"word.{word}{said}" for field in fields for word in field.words for said in ("", ".says")),
        *(ROOM / "script_words.txt").read_text(encoding="utf-8").splitlines(),
    }


def test_whatever_is_said_is_said_in_chinese():
    said = said_in("templates/*.html") | said_in("static/*.js") | said_in("*.py") | chosen()
    assert len(said) > 250
    assert sorted(said - catalogue("zh").keys()) == []


def test_a_translation_has_the_same_places_to_fill_in():
    def places(text):
        return sorted(re.findall(r"\{\w+\}", text))

    english = catalogue("en")
    zh = catalogue("zh").items()
    assert {text: said for text, said in zh if places(english.get(text, text)) != places(said)} == {}


def test_what_scripts_say_is_given_to_them():
    given = set((ROOM / "script_words.txt").read_text(encoding="utf-8").splitlines())
    assert sorted(said_in("static/*.js") - given) == []


def test_names_of_methods_and_formats_are_words_in_english_too():
    prefixes = ("method.", "word.", "format.", "tier.", "kind.", "bond.", "sentence.")
    keys = {key for key in catalogue("zh") if key.startswith(prefixes)}
    assert keys <= catalogue("en").keys()
