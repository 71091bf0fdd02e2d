"""The world's answers, step by step, are those of a plain list of rows."""

from hypothesis import given
from hypothesis import strategies as st

from meshbus.model.keys import Key
from meshbus.model.rows import EndpointShard
from meshbus.model.world import Put, Query, World, membership

NAMES = st.sampled_from("abc")


def key(namespace: str, name: str) -> Key:
    return Key("c", "reg", "endpoints", namespace, name, "1")


PUTS = st.lists(st.tuples(NAMES, NAMES, st.none() | NAMES), max_size=6)


@given(st.lists(PUTS, max_size=6))
def test_answers_and_what_is_touched(steps):
    world, held = World(), {}
    queries = [
        Query("reg.endpoints", by, value)
        for by, value in [
            ("all", None),
            *(("namespace", n) for n in "abc"),
            *(("service", (n, h)) for n in "abc" for h in "abc"),
            *(("key", key(a, b)) for a in "abc" for b in "abc"),
        ]
    ]

    def answer(query: Query) -> list[EndpointShard]:
        chosen = {
            "all": lambda k, r: True,
            "namespace": lambda k, r: k.namespace == query.value,
            "service": lambda k, r: (r.namespace, r.host) == query.value,
            "key": lambda k, r: k == query.value,
        }[query.by]
        return [held[k] for k in sorted(held) if chosen(k, held[k])]

    for step in steps:
        before = {query: world.entries(query) for query in queries}
        expected = {query: answer(query) for query in queries}
        puts = []
        for namespace, name, host in step:
            row = None if host is None else EndpointShard(host, namespace, "1", [])
            puts.append(Put(key(namespace, name), world.sequence + 1, 0.0, row))
            if row is None:
                held.pop(key(namespace, name), None)
            else:
                held[key(namespace, name)] = row
        following, touched = world.apply(puts)
        for query in queries:
            assert [e.row for e in following.entries(query)] == answer(query)
            assert world.entries(query) == before[query], "the old world stays"
            if answer(query) != expected[query]:
                assert query in touched
            if following.keys(query) != world.keys(query) and query.by != "key":
                assert membership(query) in touched
        assert following.tables() == (("reg.endpoints",) if held else ())
        world = following
