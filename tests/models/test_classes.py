"""Classes by number or by name."""

from __future__ import annotations

import pytest

from models.classes import chosen_class, class_names, find_class, names_beside
from models.snapshot import PRETRAINED, load_generator
from networks.generator import NetworkConfig
from torch_utils.errors import UserError

NAMES = ("cat", "Dog", "dogfish", "golden retriever", "7")


@pytest.mark.parametrize(
    ("given", "number"),
    [(0, 0), (4, 4), ("cat", 0), ("CAT", 0), ("dog", 1), ("Dog", 1), ("Golden Retriever", 3), ("7", 4)],
)
def test_found(given, number):
    assert find_class(given, 5, NAMES) == number
    assert chosen_class(given, NetworkConfig(c_dim=5), {"class_names": list(NAMES)}, "model") == number


@pytest.mark.parametrize(
    ("given", "names", "words"),
    [
        ("cta", NAMES, "did you mean cat?"),
        ("dogfsh", NAMES, "did you mean dogfish or Dog?"),
        ("retriever, golden", NAMES, "no class of this name"),
        ("zebra", NAMES, "its classes are cat, Dog, dogfish, golden retriever, 7"),
        ("DOG", ("dog", "Dog", "eel", "x", "y"), "did you mean"),
        ("cat", (), "does not know its classes by name; write a number from 0 to 4"),
        (5, NAMES, "the model has the classes 0 to 4"),
        (-1, (), "the model has the classes 0 to 4"),
    ],
)
def test_not_found(given, names, words):
    with pytest.raises(ValueError) as error:
        find_class(given, 5, names)
    assert words in str(error.value)
    with pytest.raises(UserError) as mistake:
        chosen_class(given, NetworkConfig(c_dim=5), {"class_names": list(names)}, "model")
    assert words in mistake.value.message and f"--class {given}: " in mistake.value.message


def test_of_many_names_ten_are_listed():
    with pytest.raises(ValueError, match="c8, c9 and 90 more"):
        find_class("zebra", 100, [f"c{i}" for i in range(100)])


def test_names_from_a_file_are_not_trusted():
    for names in (
        None,
        "abcde",
        ["a"],
        ["a", "b", "c", "d", 5],
        ["a", "b", "c", "d", "d"],
        ["a", "b", "c", "d", "\x1b"],
    ):
        assert class_names({"class_names": names}, 5) == ()
    assert class_names({}, 5) == () and class_names({"class_names": list(NAMES)}, 5) == NAMES


def test_a_number_that_is_another_classs_name_is_noted(capsys):
    """As where folders are called 0, 1, 10, 2: they are numbered in the order of their names."""
    info = {"class_names": ["0", "1", "10", "2"]}
    assert chosen_class(2, NetworkConfig(c_dim=4), info, "model") == 2
    assert capsys.readouterr().err == (
        "note: --class 2 is the class of that number, named 10; the class with the name 2 has the number 3\n"
    )
    assert chosen_class(1, NetworkConfig(c_dim=4), info, "model") == 1 and capsys.readouterr().err == ""


def test_a_number_in_a_name_that_reads_as_a_range_is_noted(capsys):
    """As of classes by age: `--class 0-1` is the numbers 0 and 1, and never a name."""
    info = {"class_names": ["10-19", "0-1", "20-29"]}
    assert chosen_class(0, NetworkConfig(c_dim=3), info, "model") == 0
    assert capsys.readouterr().err.endswith("named 10-19; the class with the name 0-1 has the number 1\n")
    with pytest.raises(UserError, match="the class with the name 10-19 has the number 0"):
        chosen_class(12, NetworkConfig(c_dim=3), info, "model")
    assert chosen_class(2, NetworkConfig(c_dim=3), info, "model") == 2 and capsys.readouterr().err == ""


def test_without_classes():
    with pytest.raises(UserError, match=r"a\.safetensors was trained without classes; leave out --class"):
        chosen_class("cat", NetworkConfig(), {}, "a.safetensors")


def test_names_are_read_from_a_file_beside_the_model(tmp_path, capsys):
    beside = tmp_path / "net.classes.txt"
    for start in ("", "\ufeff"):  # as editors on Windows begin a file
        beside.write_text(start + "cat\nDog \nsea eel\n")
        assert names_beside(tmp_path / "net.safetensors", 3) == ["cat", "Dog", "sea eel"]
        assert names_beside(tmp_path / "net.pkl", 3) == ["cat", "Dog", "sea eel"]
    assert names_beside(tmp_path / "other.safetensors", 3) == names_beside(tmp_path / "net.safetensors", 0) == []
    assert capsys.readouterr().err == ""
    for text in ("cat\nDog\n", "cat\nDog\n\n", "cat\nDog\nDog\n", "cat\nDog\n\x1b[2J\n", "\n" * (2 << 20)):
        beside.write_text(text)
        assert names_beside(tmp_path / "net.safetensors", 3) == []
        assert (
            capsys.readouterr().err
            == f"note: {beside} is not used; it needs 3 lines of printable text, no two of them alike\n"
        )


def test_the_shipped_generator_knows_its_classes_by_name():
    _, info = load_generator(PRETRAINED / "faces32.safetensors")
    assert chosen_class("Blond hair", NetworkConfig(c_dim=6), info, "model") == 2
    with pytest.raises(UserError, match="did you mean blond hair"):
        chosen_class("blond", NetworkConfig(c_dim=6), info, "model")
