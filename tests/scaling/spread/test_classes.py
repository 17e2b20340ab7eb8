import pytest

from anyvit.errors import SettingError
from anyvit.scaling.spread.classes import deal_classes, named_groups


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize(("classes", "groups"), [(10, 3), (10, 10), (7, 1), (1, 1), (1000, 999)])
def test_every_class_in_exactly_one_group(classes, groups, seed):
    dealt = deal_classes(classes, groups, seed=seed)
    sizes = [len(group) for group in dealt]
    assert (len(dealt), sum(sizes)) == (groups, classes)
    assert max(sizes) - min(sizes) <= 1
    assert sorted(label for group in dealt for label in group) == list(range(classes))
    assert all(list(group) == sorted(group) for group in dealt)
    assert dealt == deal_classes(classes, groups, seed=seed)


def test_neighbours_together_and_the_first_groups_larger():
    assert deal_classes(10, 4) == ((0, 1, 2), (3, 4, 5), (6, 7), (8, 9))
    assert deal_classes(10, 4, seed=0) != deal_classes(10, 4, seed=1)


@pytest.mark.parametrize("groups", [0, -1, 4])
def test_more_groups_than_classes_or_none(groups):
    with pytest.raises(SettingError, match=f"3 classes cannot be dealt to {groups} groups.*Choose 1 to 3"):
        deal_classes(3, groups)


def test_groups_by_name():
    assert named_groups([["c", "a"], ["b"]], "abc") == ((0, 2), (1,))


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([["a", "b", "c"], []], "group 1 has no classes"),
        ([["a", "b", "x"], ["c"]], "classes unknown: x"),
        ([["a", "b"], ["b", "c"]], "classes in more than one group: b"),
        ([["a"], ["c"]], "classes in no group: b"),
    ],
)
def test_groups_that_are_no_deal(groups, words):
    with pytest.raises(SettingError, match=words):
        named_groups(groups, "abc")
