from __future__ import annotations

from collections.abc import Mapping

import promql_parser as ast
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from canaryrollout.adapters.promql_text import (
    MAX_LENGTH,
    Kind,
    QueryRefused,
    fill,
    literal,
    meaning,
    shorten,
    tokens,
)
from tests.promqlqueries import NASTY, spelled

VALUES: Mapping[str, str] = {
    "namespace": "shop",
    "host": "reviews.shop.svc.cluster.local",
    "stable": "v1",
    "canary": "1.4.2",
    "interval": "1m30s",
    "weight": "30",
}


class TestTokens:
    def test_strings_and_comments_hide_what_is_inside(self) -> None:
        found = tokens('a{b="\'#$x\\"",c=\'"\',d=`\\`} # "$y')
        assert [token.text for token in found if token.kind is Kind.STRING] == ['"\'#$x\\""', "'\"'", "`\\`"]
        assert found[-1].kind is Kind.COMMENT
        assert not [token for token in found if token.kind is Kind.VARIABLE]

    @given(st.text(st.sampled_from("ab1 .:{}[]\"'`\\\n\r#$é=~"), max_size=30))
    def test_nothing_gets_lost(self, text: str) -> None:
        try:
            found = tokens(text)
        except QueryRefused:
            assert {'"', "'", "`"} & set(text), "only strings can be wrong"
        else:
            assert "".join(token.text for token in found) == text

    @pytest.mark.parametrize("text", ['"', "a{b='}", "`", '"\\"', '"a\nb"', "'\\\n'"])
    def test_strings_have_to_be_closed(self, text: str) -> None:
        with pytest.raises(QueryRefused, match="a string that is not closed"):
            tokens(text)


class TestLiterals:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (r'"\a\b\f\n\r\t\v\\\""', '\a\b\f\n\r\t\v\\"'),
            (r"'\'\x41\101\u00e9\U0001F980'", "'AAé🦀"),
            (r'"\xc3\xa9"', "é"),
            ("`\\n\"'\n`", "\\n\"'\n"),
        ],
    )
    def test_meaning(self, text: str, expected: str) -> None:
        assert meaning(text) == expected

    @pytest.mark.parametrize(
        "text",
        [r'"\q"', r'"\x4"', r'"\400"', r'"\ud800"', r'"\U00110000"', r'"\xff"', r'''"\'"''', r"""'\"'""", r'"\8"'],
    )
    def test_what_prometheus_refuses_has_no_meaning(self, text: str) -> None:
        with pytest.raises(QueryRefused):
            meaning(text)

    @given(st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=["C"]))))
    def test_a_literal_means_its_value_to_both_readers(self, value: str) -> None:
        assert meaning(literal(value)) == value
        (matcher,) = ast.parse(f"x{{a={literal(value)}}}").matchers.matchers  # type: ignore[attr-defined]
        assert matcher.value == value

    @given(st.text(st.sampled_from("a\"'`\\\n\té🦀")).flatmap(lambda value: st.tuples(st.just(value), spelled(value))))
    def test_every_spelling_means_the_same(self, pair: tuple[str, str]) -> None:
        value, text = pair
        assert meaning(text) == value

    @pytest.mark.parametrize("value", ["\x00", "a\x1b", "\x7f"])
    def test_control_characters_have_no_literal(self, value: str) -> None:
        with pytest.raises(QueryRefused, match="control character"):
            literal(value)


class TestFill:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('x{version="$canary"}', 'x{version="1.4.2"}'),
            ("x{version='${canary}_a'}", "x{version='1.4.2_a'}"),
            ("x{version!=`$canary`}", "x{version!=`1.4.2`}"),
            ('x{pod=~"reviews-$canary-.*"}', r'x{pod=~"reviews-1\\.4\\.2-.*"}'),
            ("x{pod!~'$canary|$stable'}", r"x{pod!~'1\\.4\\.2|v1'}"),
            ("x{pod=~ # why\n `$host$`}", r"x{pod=~ # why" + "\n" + r" `reviews\.shop\.svc\.cluster\.local$`}"),
            ('x{a="$weight % of $namespace every $interval"}', 'x{a="30 % of shop every 1m30s"}'),
            ("rate(x[$interval] offset $interval)", "rate(x[1m30s] offset 1m30s)"),
            ("max_over_time(x[$interval:${interval}])", "max_over_time(x[1m30s:1m30s])"),
            ("max_over_time(x[1h:$interval])", "max_over_time(x[1h:1m30s])"),
            ("x*100/$weight-$weight", "x*100/30-30"),
            ("x-$weight", "x-30"),
            ("-(${weight})", "-(30)"),
            ("x # $canary $unknown", "x # $canary $unknown"),
            ('label_replace(x, "a", "$1-$canary", "b", "(.*)$")', 'label_replace(x, "a", "$1-1.4.2", "b", "(.*)$")'),
            ('label_replace(x, "a", "$name ${other}", "b", "(?P<name>.*)")',) * 2,
            ('x{a=~"b|c$"}', 'x{a=~"b|c$"}'),
            ('x{a="$"}', 'x{a="$"}'),
            (r"x{a=~`\$metadata`}", r"x{a=~`\$metadata`}"),
            (r'x{a="\x24canary"}', r'x{a="\x24canary"}'),
            ("x", "x"),
        ],
    )
    def test_values_in_their_places(self, text: str, expected: str) -> None:
        assert fill(text, VALUES) == expected

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("x{version=$canary}", 'has $canary outside of quotes; write "$canary"'),
            ("sum by ($canary) (x)", "has $canary outside of quotes"),
            ("${host}_total", "has $host outside of quotes"),
            ("x$weight", "has something right beside $weight"),
            ("$weight.5", "has something right beside $weight"),
            ("2$weight", "has something right beside $weight"),
            ("${weight}${weight}", "has something right beside $weight"),
            ("${weight}0", "has something right beside $weight"),
            ("x:${weight}", "has something right beside $weight"),
            ("1e-$weight", "has something right beside $weight"),
            ("x[1h$interval]", "has something right beside $interval"),
            ('x{version="$canaryfoo"}', "has $canaryfoo, which is no variable; there are $namespace, $host, $stable"),
            ('x{version="${canary_foo}"}', "has $canary_foo, which is no variable"),
            ('{"$metric"}', "has $metric, which is no variable"),
            ("rate(x[$__interval])", "has $__interval, which is no variable"),
            ("$", None),
            (r'x{version="\$canary"}', "has a backslash before $canary"),
            (r"x{version=~`\$canary`}", "has a backslash before $canary"),
            (r'x{version="a\\$canary"}', "has a backslash before $canary"),
            ('x{version="$canary}', "a string that is not closed"),
        ],
    )
    def test_what_cannot_be_filled_in_is_refused(self, text: str, why: str | None) -> None:
        if why is None:
            assert fill(text, VALUES) == text, "no variable: the server says what is wrong with it"
            return
        with pytest.raises(QueryRefused) as refusal:
            fill(text, VALUES)
        assert why in str(refusal.value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("canary", 'v2"} or secret{a="'),
            ("canary", ""),
            ("canary", "v2\n"),
            ("canary", "v2\\"),
            ("canary", "$host"),
            ("canary", "é"),
            ("namespace", "Shop"),
            ("namespace", "a.b"),
            ("host", "reviews:80"),
            ("interval", "5m] or secret[1m"),
            ("interval", "-5m"),
            ("interval", "5"),
            ("weight", "1e9"),
            ("weight", "-1"),
        ],
    )
    def test_values_that_could_break_out_are_refused(self, name: str, value: str) -> None:
        text = f'x{{a="${name}"}}'
        with pytest.raises(QueryRefused, match="cannot stand in a query"):
            fill(text, {**VALUES, name: value})
        assert fill("x", {**VALUES, name: value}) == "x", "a variable that is not used does no harm"

    def test_a_variable_without_value_is_refused(self) -> None:
        with pytest.raises(QueryRefused, match=r"has \$weight, and its value here is ''"):
            fill("x > $weight", {})

    def test_a_query_may_not_grow_without_end(self) -> None:
        text = 'x{a="' + "$host" * 2_000 + '"}'
        with pytest.raises(QueryRefused, match=f"characters long .* at most {MAX_LENGTH} go"):
            fill(text, {**VALUES, "host": "a" * 200})

    PIECES = ("x", "{", "}", "a", "=", "=~", "!=", "[", "]", "(", ")", " ", "\n", "5m", "1e", "-", "+", ":", ",", "#",
              '"$canary"', "'$host $1 '", "`$stable`", '"$interval"', "$interval", "${weight}", "$weight", "$canary",
              '"', "'", "`", "\\", "$", "or", "3", ".5")  # fmt: skip

    ANY: Mapping[str, st.SearchStrategy[str]] = {
        "namespace": st.sampled_from(["shop", "a-1", *NASTY]),
        "host": st.sampled_from(["reviews.shop.svc.cluster.local", "a", *NASTY]),
        "stable": st.sampled_from(["v1", "1", "x41", *NASTY]),
        "canary": st.sampled_from(["1.4.2", "a_b-c", "n", *NASTY]),
        "interval": st.sampled_from(["10s", "1h30m", *NASTY]),
        "weight": st.sampled_from(["0", "100", *NASTY]),
    }

    @given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.fixed_dictionaries(dict(ANY)))
    @settings(max_examples=300)
    def test_no_token_becomes_two_and_no_two_become_one(self, text: str, values: dict[str, str]) -> None:
        try:
            filled = fill(text, values)
        except QueryRefused:
            return
        before, after = tokens(text), tokens(filled)
        assert len(before) == len(after)
        for was, now in zip(before, after, strict=True):
            if was.kind is Kind.VARIABLE:
                assert now.text == values[was.text.strip("${}")]
            elif was.kind is not Kind.STRING:
                assert now == was
            else:
                assert (now.kind, now.text[0], now.text[-1]) == (Kind.STRING, was.text[0], was.text[-1])


def test_messages_show_the_beginning_of_a_query() -> None:
    assert shorten(" sum(\n  x )") == "sum( x )"
    assert shorten("x" * 61) == "x" * 59 + "…"
