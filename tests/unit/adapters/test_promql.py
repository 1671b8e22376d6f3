from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import promql_parser as ast
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from canaryrollout.adapters import promql
from canaryrollout.adapters.prometheus_provider import CustomQueries
from canaryrollout.adapters.promql import QueryRefused, check, enforce, own_query, variables_of
from canaryrollout.adapters.promql_text import Token, tokens
from canaryrollout.api.spec import MetricGate
from canaryrollout.domain.evidence import EvidenceRequest
from tests.promqlqueries import Query, queries

REPOSITORY = Path(__file__).resolve().parents[3]
VALUES: Mapping[str, str] = {
    "namespace": "shop",
    "host": "reviews.shop.svc.cluster.local",
    "stable": "v1",
    "canary": "v2",
    "interval": "10s",
    "weight": "30",
}


def selectors(text: str) -> list[ast.VectorSelector]:
    """Return what the parser's own walk finds, which the operator does not use."""
    found: list[ast.VectorSelector] = []

    def visit(node: ast.Expr) -> None:
        if isinstance(node, ast.VectorSelector):
            found.append(node)

    ast.walk(ast.parse(text), visit)
    return found


def problem_with(text: str) -> str:
    try:
        ast.parse(text)
    except ValueError as error:
        return str(error)
    return ""


def confined(selector: ast.VectorSelector, namespace: str = "shop") -> bool:
    ours = [
        matcher
        for matcher in selector.matchers.matchers
        if matcher.op == ast.MatchOp.Equal and (matcher.name, matcher.value) == ("namespace", namespace)
    ]
    return bool(ours) and not selector.matchers.or_matchers


class TestEnforce:
    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("up", 'up{namespace="shop"}'),
            ("up{}", 'up{namespace="shop"}'),
            ('up{job="a"}', 'up{namespace="shop",job="a"}'),
            ("up{job='a',}", 'up{namespace="shop",job="a",}'),
            ('{__name__=~"a|b"}', '{namespace="shop",__name__=~"a|b"}'),
            ('{"up"}', '{namespace="shop","up"}'),
            ("rate(up[5m] offset 1h)", 'rate(up{namespace="shop"}[5m] offset 1h)'),
            ("max_over_time((a+b)[5m:1m])", 'max_over_time((a{namespace="shop"}+b{namespace="shop"})[5m:1m])'),
            ("max_over_time(a[5m:]) @ end()", None),
            ("absent(up)", 'absent(up{namespace="shop"})'),
            ("sum by (up) (up)", 'sum by (up) (up{namespace="shop"})'),
            ("sum(up) without (up)", 'sum(up{namespace="shop"}) without (up)'),
            ("a * on (a) group_left (b) b", 'a{namespace="shop"} * on (a) group_left (b) b{namespace="shop"}'),
            ("topk(scalar(k), up)", 'topk(scalar(k{namespace="shop"}), up{namespace="shop"})'),
            ("time() - 1e3 + Inf", "time() - 1e3 + Inf"),
            ("sum - rate", 'sum{namespace="shop"} - rate{namespace="shop"}'),
            (
                'label_replace(up, "a", "$1", "b", "(up)")',
                'label_replace(up{namespace="shop"}, "a", "$1", "b", "(up)")',
            ),
            ("up @ start() # up", 'up{namespace="shop"} @ start()'),
            ('up{namespace=~"s.*|other"}', 'up{namespace="shop",namespace=~"s.*|other"}'),
            ('up{namespace!="shop"}', 'up{namespace="shop",namespace!="shop"}'),
            ('up{namespace="shop"}', 'up{namespace="shop",namespace="shop"}'),
            (r"up{a=`\d`, b='\'', c='\x41'}", r'up{namespace="shop",a="\\d", b="' + "'" + '", c="A"}'),
        ],
    )
    def test_every_selector_gains_the_matcher(self, query: str, expected: str | None) -> None:
        if expected is None:
            with pytest.raises(QueryRefused, match="cannot be read as PromQL"):
                enforce(query, "namespace", "shop")
        else:
            assert enforce(query, "namespace", "shop") == expected

    def test_the_label_is_the_administrators(self) -> None:
        assert enforce("up", "kubernetes_namespace", "shop") == 'up{kubernetes_namespace="shop"}'

    @pytest.mark.parametrize(
        ("query", "why"),
        [
            ('up{namespace="other"}', 'it selects namespace="other"'),
            ("sum(a) / sum(rate(b{namespace='other'}[5m]))", 'it selects namespace="other"'),
            (r'up{namespace="\x6fther"}', 'it selects namespace="other"'),
            ('up{a="b" or c="d"}', "put the or between two selectors"),
            ('{__name__="up" or namespace="other"}', "put the or between two selectors"),
            ("info(up)", r"info\(\) may read more than its arguments"),
            ('sum(info(up, {__name__="secret"}))', r"info\(\) may read more than its arguments"),
            ("secret_function(up)", "unknown function with name 'secret_function'"),
            ("by + 1", 'cannot be proved .* \\{__name__="..."\\}'),
            ("up{", "cannot be read as PromQL"),
            ('up{a="b}', "a string that is not closed"),
            ("", "cannot be read as PromQL: no expression"),
            ("up \u00a0+ up", r"has '\\xa0' outside of quotes"),
            ("up\x0b", r"has '\\x0b' outside of quotes"),
            ("up\x0c+ up", r"has '\\x0c' outside of quotes"),
            ("up; other", "has ';' outside of quotes"),
            ("$canary", "has '\\$canary' outside of quotes"),
            ('up{a="\x00"}', "a control character in the string"),
            (r'up{a="\xff"}', "which is not UTF-8"),
            (r'up{a="\q"}', "an unknown escape"),
            ("up{a=~'('}", "illegal regex"),
            ("\ud800", "a character that is no text"),
            ("up[1e30]", "cannot be read as PromQL"),
            ("up[9999999y]", "cannot be read as PromQL"),
            ("-" * 495 + "x", "is nested too deeply"),
            ("(" * 251 + "x" + ")" * 251, "more than 500 names, numbers and signs"),
        ],
    )
    def test_what_cannot_be_proved_is_refused(self, query: str, why: str) -> None:
        with pytest.raises(QueryRefused, match=why):
            enforce(query, "namespace", "shop")

    @pytest.mark.parametrize(
        ("label", "namespace"),
        [("__name__", "shop"), ("", "shop"), ('a="b",c', "shop"), ("namespace", ""), ("namespace", 'a"'), ("a", "a\n")],
    )
    def test_label_and_namespace_cannot_be_anything(self, label: str, namespace: str) -> None:
        with pytest.raises(QueryRefused, match="is not asked"):
            enforce("up", label, namespace)

    def test_a_matcher_too_few_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The proof does not trust the rewriting."""
        monkeypatch.setattr(promql, "_is_metric", lambda word, follows: word == "a")
        assert enforce("a * a", "namespace", "proof") == 'a{namespace="proof"} * a{namespace="proof"}'
        with pytest.raises(QueryRefused, match="cannot be proved"):
            enforce("a * b", "namespace", "proof")

    def test_so_is_one_where_nothing_but_the_walk_looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(promql, "_shape", lambda *_: ())
        assert enforce("a * a", "namespace", "walk") == 'a{namespace="walk"} * a{namespace="walk"}'
        monkeypatch.setattr(promql, "_is_metric", lambda word, follows: word == "a")
        for text in ("a * b", "max_over_time(b[5m:])", "topk(scalar(b), a)", "rate(b[5m])", "-(b)"):
            with pytest.raises(QueryRefused, match="cannot be proved"):
                enforce(text, "namespace", "walk")

    def test_a_rewriting_that_changes_the_query_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = promql._with_matcher
        for old, new in (("+", "-"), ("5m", "6m"), ("by", "without"), ("1", "2"), ("rate", "delta"), ('"x"', '"y"')):
            swapped = promql._text(
                Token(token.kind, new) if token.text == old else token
                for token in original(promql._plain('sum by (a) (rate(b{c="x"}[5m])) + 1'), 'namespace="swap"')
            )
            monkeypatch.setattr(promql, "_with_matcher", lambda *_, text=swapped: tokens(text))
            with pytest.raises(QueryRefused, match="cannot be proved"):
                enforce(f'sum by (a) (rate(b{{c="x"}}[5m])) + 1 # {old}', "namespace", "swap")

    def test_every_function_is_one_that_the_parser_knows(self) -> None:
        unknown = {name for name in promql.FUNCTIONS if "unknown function" in problem_with(f"{name}(x)")}
        assert unknown == {"holt_winters"}, "renamed by Prometheus 3"

    @given(queries)
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
    def test_every_well_formed_query_is_confined_and_none_is_refused(self, query: Query) -> None:
        guarded = selectors(enforce(query.text, "namespace", "shop"))
        assert len(guarded) == query.selectors
        assert all(map(confined, guarded))

    @given(st.text(st.sampled_from("upab_: {}()[],=~!\"'`\\\n#@5m$or+-"), max_size=40))
    @settings(max_examples=200)
    def test_whatever_is_written_it_is_confined_or_refused(self, text: str) -> None:
        try:
            guarded = enforce(text, "namespace", "shop")
        except QueryRefused:
            return
        assert all(map(confined, selectors(guarded)))

    @given(queries, st.data())
    @settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
    def test_a_query_with_something_put_in_or_left_out_is_confined_or_refused(
        self, query: Query, data: st.DataObject
    ) -> None:
        at = data.draw(st.integers(0, len(query.text)))
        until = data.draw(st.integers(at, min(at + 3, len(query.text))))
        put = data.draw(
            st.sampled_from(["", '"', "'", "`", "\\", "{", "}", " or ", "#", "\n", 'namespace="other"', "by"])
        )
        try:
            guarded = enforce(query.text[:at] + put + query.text[until:], "namespace", "shop")
        except QueryRefused:
            return
        assert all(map(confined, selectors(guarded)))


class TestCheck:
    def test_promql_is(self) -> None:
        check("sum(rate(x{a=`\\d`}[5m]))")

    @pytest.mark.parametrize("text", ["", "up{", "rate(up)", "a b", "x[1e30]", "sum by up", "$canary"])
    def test_else_is_not(self, text: str) -> None:
        with pytest.raises(QueryRefused):
            check(text)


class TestOwnQuery:
    FIELD = "analysis.metrics[failures].query"

    def test_allowed_means_as_it_is_with_its_variables(self) -> None:
        text = 'new_function(x{version="$canary"}[$interval])'
        sent = own_query(text, VALUES, CustomQueries.ALLOWED, "namespace", self.FIELD)
        assert sent == 'new_function(x{version="v2"}[10s])', "servers know functions that the parser does not"

    def test_enforced_means_the_rollouts_namespace(self) -> None:
        text = 'sum(rate(x{version="$canary"}[$interval])) > $weight'
        sent = own_query(text, VALUES, CustomQueries.NAMESPACE_ENFORCED, "ns", self.FIELD)
        assert sent == 'sum(rate(x{ns="shop",version="v2"}[10s])) > 30'

    def test_forbidden_means_not_at_all(self) -> None:
        with pytest.raises(QueryRefused) as refusal:
            own_query("up", VALUES, CustomQueries.FORBIDDEN, "namespace", self.FIELD)
        assert str(refusal.value) == (
            "analysis.metrics[failures].query (up) is not asked: the administrator lets this provider answer the "
            "built-in gates only; remove the metric or name another provider"
        )

    @pytest.mark.parametrize("policy", [CustomQueries.ALLOWED, CustomQueries.NAMESPACE_ENFORCED])
    def test_a_refusal_names_field_and_query(self, policy: CustomQueries) -> None:
        with pytest.raises(
            QueryRefused, match=r"^analysis\.metrics\[failures\]\.query \(x \{ a=\"\$canry\" \} \+ 0"
        ) as found:
            own_query('x\n{ a="$canry" }' + " + 0" * 40, VALUES, policy, "namespace", self.FIELD)
        assert "…) has $canry, which is no variable; there are $namespace, $host" in str(found.value)

    def test_what_was_found_out_before_is_said_again(self) -> None:
        said = []
        for field in ("analysis.metrics[a].query", "analysis.metrics[b].query") * 2:
            with pytest.raises(QueryRefused) as refusal:
                own_query("info(up)", VALUES, CustomQueries.NAMESPACE_ENFORCED, "namespace", field)
            said.append(str(refusal.value).removeprefix(f"{field} (info(up)) is not asked: info() may read"))
        assert len(set(said)) == 1
        assert own_query("up", VALUES, CustomQueries.NAMESPACE_ENFORCED, "a", "") == 'up{a="shop"}'
        assert own_query("up", {**VALUES, "namespace": "b"}, CustomQueries.NAMESPACE_ENFORCED, "a", "") == 'up{a="b"}'
        assert own_query("up", VALUES, CustomQueries.NAMESPACE_ENFORCED, "b", "") == 'up{b="shop"}'
        assert own_query("up", VALUES, CustomQueries.ALLOWED, "b", "") == "up"

    def test_a_namespace_enforced_cannot_be_left_out(self) -> None:
        values = {name: value for name, value in VALUES.items() if name != "namespace"}
        with pytest.raises(QueryRefused, match="'' is no namespace"):
            own_query("up", values, CustomQueries.NAMESPACE_ENFORCED, "namespace", self.FIELD)

    def test_variables_come_from_the_request(self) -> None:
        request = EvidenceRequest(
            "default", "shop", VALUES["host"], "v1", "v2", "version", datetime(2026, 1, 1, tzinfo=UTC),
            timedelta(seconds=90), weight=30,
        )  # fmt: skip
        assert variables_of(request) == {**VALUES, "interval": "1m30s"}

    def test_every_example_of_the_documentation_can_be_sent_confined(self) -> None:
        blocks = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs/metrics.md").read_text(), re.DOTALL)
        found = [yaml.safe_load(block) for block in blocks]
        gates = [
            gate for part in found for gate in (part if isinstance(part, list) else part["spec"]["analysis"]["metrics"])
        ]
        assert len(gates) == 4
        for gate in map(MetricGate.model_validate, gates):
            assert all(rule.holds is not None and rule.holds(gate) for rule in MetricGate.rules)
            for text in filter(None, (gate.query, gate.baseline_query)):
                sent = own_query(text, VALUES, CustomQueries.NAMESPACE_ENFORCED, "namespace", gate.name)
                assert "$" not in sent

    @given(queries)
    @settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
    def test_values_in_the_place_of_matchers_never_leave_it(self, query: Query) -> None:
        text = re.sub(r'"my\.label"', '"$stable"', query.text)
        sent = own_query(text, {**VALUES, "stable": "my.label"}, CustomQueries.NAMESPACE_ENFORCED, "namespace", "f")
        assert len(selectors(sent)) == query.selectors
