"""Subset names and hosts."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from canaryrollout.domain.naming import fqdn, service_of, subset_name

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
versions = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", fullmatch=True)
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize("version", ["v1", "2", "1-4-2", "a" * 63])
def test_a_version_that_is_a_label_names_its_subset(version: str) -> None:
    assert subset_name(version, ()) == version


@pytest.mark.parametrize(
    ("version", "prefix"), [("1.4.2", "1-4-2-"), ("V2", "v2-"), ("v1_rc.1", "v1-rc-1-"), ("a" * 60 + ".b", "a" * 56)]
)
def test_a_version_that_is_no_label_is_sanitized_and_marked(version: str, prefix: str) -> None:
    name = subset_name(version, ())
    assert name.startswith(prefix)
    assert name != prefix.rstrip("-")


def test_a_taken_name_is_avoided_even_when_the_marked_one_is_taken_too() -> None:
    first = subset_name("v2", {"v2"})
    second = subset_name("v2", {"v2", first})
    assert first.startswith("v2-")
    assert second.startswith("v2-")
    assert len({"v2", first, second}) == 3


@given(version=versions, taken=st.sets(versions, max_size=5), extra=st.booleans())
def test_a_subset_name_is_a_free_label_and_always_the_same(version: str, taken: set[str], extra: bool) -> None:
    if extra:
        taken = taken | {subset_name(version, taken)}
    name = subset_name(version, taken)
    assert LABEL.fullmatch(name)
    assert len(name) <= 63
    assert name not in taken
    assert name == subset_name(version, sorted(taken))


def test_a_version_of_63_characters_is_a_name_and_a_longer_one_is_cut() -> None:
    assert subset_name("v" * 63, ()) == "v" * 63
    cut = subset_name("v" * 64, ())
    assert (len(cut), cut[:56]) == (63, "v" * 56)


@given(first=versions, second=versions)
def test_two_versions_do_not_share_a_name(first: str, second: str) -> None:
    if first != second:
        assert subset_name(first, ()) != subset_name(second, ())


@given(name=labels, namespace=labels)
def test_all_spellings_of_a_service_are_one_host(name: str, namespace: str) -> None:
    full = f"{name}.{namespace}.svc.cluster.local"
    spellings = [name, f"{name}.{namespace}", f"{name}.{namespace}.svc", full, full + ".", name.upper()]
    assert {fqdn(spelling, namespace) for spelling in spellings} == {full}
    assert service_of(full) == (name, namespace)


@pytest.mark.parametrize(
    "host",
    ["example.com", "api.example.com", "api.shop.example.com", "*.example.com", "*", "10.0.0.1", "a.b.svc.other.org"],
)
def test_a_name_outside_the_cluster_stays(host: str) -> None:
    assert fqdn(host, "shop") == host
    assert service_of(host) is None


def test_a_short_name_belongs_to_its_own_namespace() -> None:
    assert fqdn("reviews", "shop") != fqdn("reviews", "web")
    assert fqdn("reviews.shop.svc", "web") == fqdn("reviews", "shop")


def test_another_cluster_domain() -> None:
    assert fqdn("reviews", "shop", "k8s.example") == "reviews.shop.svc.k8s.example"
    assert service_of("reviews.shop.svc.k8s.example", "k8s.example") == ("reviews", "shop")
    assert service_of("reviews.shop.svc.k8s.example") is None


@pytest.mark.parametrize("name", ["*.shop", "reviews", "a.reviews.shop", "Reviews.shop", ".shop"])
def test_a_service_has_a_name_and_a_namespace(name: str) -> None:
    assert service_of(f"{name}.svc.cluster.local") is None


def test_a_marked_name_is_the_same_in_every_release() -> None:
    """A subset that an earlier release added is found again under its name."""
    assert subset_name("1.4.2", ()) == "1-4-2-8ec5a1"
    assert subset_name("1.4.2", {"1-4-2-8ec5a1"}) == "1-4-2-342205"


def test_no_host_is_no_host() -> None:
    assert (fqdn("", "shop"), fqdn(".", "shop")) == ("", "")
