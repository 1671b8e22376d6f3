from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from canaryrollout.engine.telemetry import Outcome
from canaryrollout.shell.http import HttpServer, application
from canaryrollout.shell.telemetry import EngineCollector, PrometheusTelemetry


async def test_probes_answer_503_with_the_reason_while_there_is_one() -> None:
    wrong = {"stuck": "", "unready": "not watched yet"}
    app = application(CollectorRegistry(), lambda: wrong["stuck"], lambda: wrong["unready"])
    async with TestClient(TestServer(app)) as client:
        live, ready = await client.get("/healthz"), await client.get("/readyz")
        assert (live.status, await live.text()) == (200, "ok\n")
        assert (ready.status, await ready.text()) == (503, "not watched yet\n")
        wrong |= {"stuck": "a rollout has waited 130 s", "unready": ""}
        assert (await client.get("/healthz")).status == 503
        assert (await client.get("/readyz")).status == 200


async def test_metrics_tell_what_the_engine_does() -> None:
    registry = CollectorRegistry()
    telemetry = PrometheusTelemetry(registry)
    registry.register(EngineCollector(lambda: {"Stable": 2}, lambda: 7))
    telemetry.pass_done(Outcome.ACTED, 0.02)
    telemetry.schedule_lag(0.001)
    telemetry.queue_wait(0.5)
    telemetry.leading(True)
    telemetry.sweep_done(succeeded=False)
    async with TestClient(TestServer(application(registry, str, str))) as client:
        text = await (await client.get("/metrics")).text()
    for line in (
        'canaryrollout_passes_total{outcome="acted"} 1.0',
        'canaryrollout_sweeps_total{outcome="failed"} 1.0',
        'canaryrollout_rollouts{phase="Stable"} 2.0',
        "canaryrollout_queue_depth 7.0",
        "canaryrollout_leader 1.0",
        "canaryrollout_pass_duration_seconds_count 1.0",
    ):
        assert line in text.splitlines()


async def test_a_free_port_is_taken_and_told() -> None:
    server = HttpServer(application(CollectorRegistry(), str, str), "127.0.0.1", 0)
    address = await server.start()
    host, _, port = address.rpartition(":")
    assert host == "127.0.0.1"
    assert int(port) > 0
    await server.close()
