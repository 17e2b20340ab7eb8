"""`devices.yaml`: what it says, and what it is refused for."""

from __future__ import annotations

import json
import math

import pytest

from anyvit.errors import DataError, SettingError
from anyvit.scaling.spread.boards import Board, CostTable, read_fleet

TABLE = CostTable("hsvit_c2a2_8", 1000, {"hub": {1: 0.01, 2: 0.02, 4: 0.06}}, {"hub": 0.1}, "0123456789ab")


def written(folder, text):
    path = folder / "devices.yaml"
    path.write_text(text)
    return path


def test_what_a_file_says(tmp_path):
    (tmp_path / "pi.json").write_text(json.dumps(TABLE.to_json()))
    fleet = read_fleet(
        written(
            tmp_path,
            """
            hub: {memory: 2GB, speed: 2}
            devices:
              - {name: pi-1, address: "10.0.0.1:7002", memory: 512MB, speed: 0.1, bandwidth: 10Mbit/s, latency: 20ms}
              - {name: pi-2, memory: 1 GiB, cost_table: pi.json, bandwidth: 1 Gbps}
            """,
        )
    )
    assert fleet.hub == Board("hub", memory=2e9, speed=2)
    assert fleet.boards == (
        Board("pi-1", "10.0.0.1:7002", 512e6, 0.1, None, 1.25e6, 0.02),
        Board("pi-2", "", 2**30, 1.0, TABLE, 1.25e8, 0.0),
    )
    assert [Board.from_json(json.loads(json.dumps(board.to_json()))) for board in fleet.boards] == list(fleet.boards)


def test_without_a_hub_it_has_no_limits(tmp_path):
    hub = read_fleet(written(tmp_path, "devices: [{name: a, memory: 1MB}]")).hub
    assert hub == Board("hub")
    assert Board.from_json(json.loads(json.dumps(hub.to_json()), parse_constant=pytest.fail)) == hub


@pytest.mark.parametrize(
    ("bandwidth", "bytes_per_second"),
    [("10Mbit/s", 1.25e6), ("10 Mbps", 1.25e6), ("800 kbit per second", 1e5), ("1Gbit/s", 1.25e8), ("64 bit/s", 8)],
)
def test_bandwidth(tmp_path, bandwidth, bytes_per_second):
    (board,) = read_fleet(written(tmp_path, f"devices: [{{name: a, memory: 1MB, bandwidth: {bandwidth}}}]")).boards
    assert board.bandwidth == bytes_per_second


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{name: pi, memory: 512}", r"devices.yaml, pi: memory: 512 lacks a unit. Write memory: 512MB. Known: MB"),
        ("{name: pi, memory: 5 bananas}", r"pi: memory: 5 bananas: unknown unit 'bananas' of memory. Known: MB, GB"),
        ("{name: pi, memory: much}", r"pi: memory: much: 'much' is not an amount. Write it like memory: 5MB"),
        ("{name: pi, memory: 0MB}", r"pi: memory: 0MB must be above 0"),
        ("{name: pi, memory: -1MB}", r"pi: memory: -1MB must be a finite amount, and not below 0"),
        ("{name: pi, memory: .inf}", r"pi: memory: inf must be a finite amount"),
        ("{name: pi}", r"pi: memory is missing. Say what it can give to its part, like memory: 512MB"),
        ("{name: pi, memory: 1MB, bandwidth: 10MB/s}", r"unknown unit 'MB/s' of bandwidth. Known: Mbit/s"),
        ("{name: pi, memory: 1MB, latency: -20ms}", r"latency: -20ms must be a finite amount, and not below 0"),
        ("{name: pi, memory: 1MB, speed: fast}", r"speed: fast: 'fast' is not an amount. Write it like speed: 5"),
        ("{name: pi, memory: 1MB, sped: 2}", r"devices.yaml, pi: unknown key 'sped'. Did you mean 'speed'"),
        ("{name: pi, memory: 1MB, address: 10.0.0.1}", r"address '10.0.0.1' is no host and port"),
        ("{name: pi, memory: 1MB, address: 'a:99999'}", r"address 'a:99999' is no host and port"),
        ("{name: pi, memory: 1MB, speed: 1, cost_table: a.json}", r"speed and cost_table both say how fast it is"),
        ("{memory: 1MB}", r"devices.yaml, device 1: a board needs a name, which is text, not None"),
        ("pi", r"device 1: 'pi' is no board. Write its keys: name"),
        ("{name: pi, memory: 1MB}, {name: pi, memory: 1MB}", r"two are called 'pi'"),
        ("{name: hub, memory: 1MB}", r"two are called 'hub'"),
    ],
)
def test_entries_that_are_refused(tmp_path, entry, words):
    with pytest.raises(SettingError, match=words):
        read_fleet(written(tmp_path, f"devices: [{entry}]"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must hold a list of boards under `devices:`"),
        ("devices: []", "must be a list of boards"),
        ("boards: []", "unknown key 'boards'"),
        ("hub: {latency: 1ms}\ndevices: [{name: a, memory: 1MB}]", "hub: latency belongs to a link"),
        ("hub: fast\ndevices: [{name: a, memory: 1MB}]", "hub: 'fast' is no board"),
    ],
)
def test_files_that_are_refused(tmp_path, text, words):
    with pytest.raises(SettingError, match=words):
        read_fleet(written(tmp_path, text))


def test_what_is_no_yaml(tmp_path):
    with pytest.raises(DataError, match="devices.yaml is no YAML"):
        read_fleet(written(tmp_path, "devices: ["))
    with pytest.raises(DataError, match="no.yaml cannot be read"):
        read_fleet(tmp_path / "no.yaml")


@pytest.mark.parametrize("text", ["[]", "{", '{"model": "a"}', json.dumps({**TABLE.to_json(), "hub_s": {"hub": -1}})])
def test_what_is_no_cost_table(tmp_path, text):
    (tmp_path / "pi.json").write_text(text)
    with pytest.raises(DataError, match=r"pi.json is no cost table .*`anyvit measure MODEL --cost-table FILE`"):
        read_fleet(written(tmp_path, "devices: [{name: pi, memory: 1MB, cost_table: pi.json}]"))


def test_between_what_was_measured_time_is_linear():
    assert [TABLE.part_s("hub", count) for count in (1, 2, 3, 4, 5)] == pytest.approx([0.01, 0.02, 0.04, 0.06, 0.08])
    assert CostTable("m", 1, {"heads": {2: 0.5}}, {}, "").part_s("heads", 3) == 0.75
    with pytest.raises(SettingError, match="the cost table of hsvit_c2a2_8 holds nothing for 'boards', only hub"):
        TABLE.part_s("boards", 1)


def test_a_cost_table_survives_its_file(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps(TABLE.to_json()))
    assert CostTable.load(tmp_path / "t.json") == TABLE
    with pytest.raises(DataError, match="cannot be read"):
        CostTable.load(tmp_path / "none.json")
    assert math.isfinite(TABLE.part_s("hub", 10**6))
