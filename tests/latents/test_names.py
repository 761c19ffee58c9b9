"""latents.names: what is in the names of files, and that no two are alike."""

from latents.names import LONGEST_NAME, seeds_name, target_names


def test_names_of_seeds():
    assert seeds_name([0, 1, 2, 5]) == "0000-0002_0005" and seeds_name([3]) == "0003"


def test_targets_are_called_by_their_stems():
    assert target_names(["anna.jpg", "my photo.v2.png", "00000/img1.png"]) == ["anna", "my_photo.v2", "00000_img1"]
    assert target_names(["été.png", "no extension"]) == ["été", "no_extension"]


def test_no_two_targets_have_one_name():
    assert target_names(["a.jpg", "a.png", "b.png"]) == ["a.jpg", "a.png", "b"]
    assert target_names(["a b.png", "a_b.png", "a_b.png"]) == ["a_b.png", "a_b.png-2", "a_b.png-3"]
    assert target_names(["a.png", "a.png", "a.png-2"]) == ["a.png", "a.png-2", "a.png-2-2"]
    many = target_names(["x.png"] * 20_000)
    assert len(set(many)) == 20_000


def test_hostile_names_stay_in_the_folder():
    for name in ("../../etc/passwd", "/etc/a.png", "a\nb\x1b[31m.png", "", "x" * 1000, "a\\b.png", "con\u202egnp"):
        (found,) = target_names([name])
        assert found and not set(found) & set("/\\\n\x1b\u202e") and len(found.encode()) <= LONGEST_NAME
