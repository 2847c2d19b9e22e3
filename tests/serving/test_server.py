"""The server under the client that 3D Slicer, napari and MITK use: each call, and each refusal."""

import asyncio
import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPResponse

import httpx
import numpy as np
import pytest
from nnInteractive.inference.remote.remote_session import (
    ServerAtCapacityError,
    SessionExpiredError,
    nnInteractiveRemoteInferenceSession,
)
from nnInteractive.inference.remote.serialization import pack_array

from segment_anything import SamPredictor3D
from segment_anything.bounds import AdaptiveSettings
from serving_apps import running
from utils.formats.intensity import CT_WINDOWS, scale_percentiles, scale_window
from utils.serving import gate
from utils.serving.app import Server
from utils.serving.leases import Gone, Leases, NoRoom
from utils.serving.session import Session

SHAPE, SPACING = (20, 30, 26), (2.5, 0.8, 0.9)
KEY = "a key"
rng = np.random.default_rng(0)
IMAGE = rng.integers(1, 200, SHAPE).astype(np.int16)
BOX = [[4, 12], [6, 20], [5, 22]]


@pytest.fixture(scope="module")
def model(finding_hybrid):
    return finding_hybrid


@contextmanager
def serving(model, draws=True, **options):
    """The URL of a server in a thread of this process, and the lines of its log."""
    settings, lines = AdaptiveSettings(drawings=draws), []
    window = options.pop("window", None)
    leases = Leases(
        lambda: Session(model, settings, window=window),
        options.pop("most", 4),
        options.pop("idle", 600.0),
        options.pop("liveness", 60.0),
    )
    max_bytes = options.pop("max_bytes", 2**26)
    server = Server(leases, KEY, max_bytes, log=lines.append, draws=draws, **options)
    with running(server.app()) as url:
        yield url, lines


@pytest.fixture(scope="module")
def url(model):
    with serving(model) as (url, _):
        yield url


@pytest.fixture
def client(url):
    with nnInteractiveRemoteInferenceSession(url, api_key=KEY) as client:
        yield client


@pytest.fixture
def begun(client):
    """With an image and a buffer."""
    client.set_image(IMAGE[None], {"spacing": list(SPACING)})
    assert client.original_image_shape == (1, *SHAPE)
    client.set_target_buffer(np.zeros(SHAPE, np.int16))
    return client


@pytest.fixture
def predictor(model):
    predictor = SamPredictor3D(model, AdaptiveSettings(drawings=True))
    predictor.set_image(scale_percentiles(IMAGE), SPACING)
    return predictor


def assert_shows(client, prediction):
    expected = 0 if prediction is None else prediction.mask
    np.testing.assert_array_equal(client.target_buffer, expected)


def test_every_interaction_does_what_the_predictor_does(begun, predictor):
    assert begun.supports_undo and set(begun.supported_interactions.values()) == {True}
    begun.add_bbox_interaction(BOX, True)
    assert_shows(begun, predictor.predict(box=(4, 6, 5, 12, 20, 22)))
    assert begun.target_buffer.any()
    begun.add_point_interaction((8, 12, 13), True)
    assert_shows(begun, predictor.predict(points=[(8, 12, 13)], labels=[1]))
    begun.add_point_interaction([3, 7, 8], False)
    assert_shows(begun, predictor.predict(points=[(3, 7, 8)], labels=[0]))
    line = np.zeros((1, 5, 7), np.uint8)
    line[0, 2, 1:6] = 1
    begun.add_scribble_interaction(line, True, interaction_bbox=[[9, 10], [10, 15], [8, 15]])
    assert_shows(begun, predictor.predict(scribble=((9, 10, 8), line.astype(np.int8))))
    area = np.zeros(SHAPE, np.uint8)
    area[6, 10:16, 9:17] = 1
    begun.add_lasso_interaction(area, False)
    assert_shows(begun, predictor.predict(lasso=-area.astype(np.int8)))
    begun.add_bbox_interaction([[7, 8], [8, 18], [7, 19]], True)
    assert_shows(begun, predictor.predict(box=(7, 8, 7, 8, 18, 19)))
    begun.add_bbox_interaction([[2, 5], [8, 18], [7, 19]], False)
    assert_shows(begun, predictor.predict(box=(2, 8, 7, 5, 18, 19), box_label=0))
    for _ in range(6):
        assert begun.undo()
        assert_shows(begun, predictor.undo())
    assert begun.undo() and not begun.target_buffer.any()
    assert not begun.undo()


def test_prompts_that_wait_count_with_the_next_prediction(begun, predictor):
    assert begun.add_bbox_interaction(BOX, True, run_prediction=False) is None
    assert not begun.target_buffer.any()
    bbox = begun.add_point_interaction((8, 12, 13), True)
    expected = predictor.predict(box=(4, 6, 5, 12, 20, 22), points=[(8, 12, 13)], labels=[1])
    assert_shows(begun, expected)
    inside = np.argwhere(begun.target_buffer)
    assert bbox == [[a, b + 1] for a, b in zip(inside.min(0), inside.max(0), strict=True)]
    assert begun._predict() is None  # nothing waits
    begun.add_point_interaction((6, 10, 9), True, run_prediction=False)
    begun._predict()
    assert_shows(begun, predictor.predict(points=[(6, 10, 9)], labels=[1]))


def test_labels_to_correct_and_reset(begun, predictor):
    begun.add_bbox_interaction(BOX, True)
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:11, 8:16, 7:18] = 4
    begun.add_initial_seg_interaction(labels)
    np.testing.assert_array_equal(begun.target_buffer, labels)
    begun.target_buffer[:] = labels > 0
    begun.add_point_interaction((12, 12, 12), True)
    assert_shows(begun, predictor.predict(mask=labels > 0, points=[(12, 12, 12)], labels=[1]))
    begun.reset_interactions()
    assert not begun.target_buffer.any() and not begun.undo()
    begun.add_bbox_interaction(BOX, True)
    assert_shows(begun, predictor.predict(box=(4, 6, 5, 12, 20, 22), obj=2))


def test_coordinates_as_viewers_send_them(begun, predictor):
    """Floats, boxes turned over, that end one voxel outside, or of no extent."""
    begun.add_point_interaction((8.4, 11.5, 13.49), True)
    assert_shows(begun, predictor.predict(points=[(8, 12, 13)], labels=[1]))
    for box, expected in (
        ([[12.2, 3.9], [20, 6], [22, 5]], (4, 6, 5, 12, 20, 22)),
        ([[10, 21], [-1, 31], [-0.6, 27]], (10, 0, 0, 20, 30, 26)),
        ([[7, 7], [8, 18], [7, 19]], (7, 8, 7, 8, 18, 19)),
    ):
        begun.reset_interactions()
        predictor.reset(1)
        begun.add_bbox_interaction(box, True)
        assert_shows(begun, predictor.predict(box=expected))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_images_of_any_type_and_buffers_of_any_type(client, dtype, predictor):
    client.set_image(IMAGE[None].astype(dtype), {"spacing": np.array(SPACING)})
    client.set_target_buffer(np.zeros(SHAPE, dtype))
    client.add_bbox_interaction(BOX, True)
    assert_shows(client, predictor.predict(box=(4, 6, 5, 12, 20, 22)))


def test_grey_levels_are_chosen_by_the_values(model):
    hu = (IMAGE * 8 - 1000).astype(np.int16)
    for window, image, expected in (
        (None, hu, scale_window(hu, *CT_WINDOWS["abdomen"])),
        ((-160.0, 1500.0), hu, scale_window(hu, -160, 1500)),
        (None, IMAGE, scale_percentiles(IMAGE)),
    ):
        session = Session(model, AdaptiveSettings(), window=window)
        (note, *_) = session.set_image(image[None], {"spacing": [1, 1, 1]})
        np.testing.assert_array_equal(session.predictor.volume, expected)
        assert ("percentiles" in note) is (image is IMAGE)


def test_two_clients_have_objects_of_their_own(url, predictor):
    boxes = ([[2, 9], [3, 15], [4, 14]], [[8, 18], [10, 28], [9, 24]])
    with (
        nnInteractiveRemoteInferenceSession(url, api_key=KEY) as first,
        nnInteractiveRemoteInferenceSession(url, api_key=KEY) as second,
    ):

        def play(client, box):
            client.set_image(IMAGE[None], {"spacing": list(SPACING)})
            client.set_target_buffer(np.zeros(SHAPE, np.uint8))
            for _ in range(3):
                client.add_bbox_interaction(box, True)
                client.undo()
            client.add_bbox_interaction(box, True)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(play, (first, second), boxes))
        for number, (client, box) in enumerate(zip((first, second), boxes, strict=True), 1):
            low, high = np.transpose(box)
            assert_shows(client, predictor.predict(box=(*low, *high), obj=number))


def post(url, path, token="", **options):
    headers = {"Authorization": f"Bearer {KEY}", "X-Lease-Token": token}
    headers |= options.pop("headers", {})
    method = options.pop("method", "POST")
    return httpx.request(method, url + path, headers=headers, timeout=20, **options)


def test_a_network_that_takes_no_drawings_says_so(model):
    with serving(model, draws=False) as (url, _):
        with nnInteractiveRemoteInferenceSession(url, api_key=KEY) as client:
            known = {"points": True, "bbox3d": True}
            assert client.supported_interactions == known | dict.fromkeys(
                ("bbox2d", "scribble", "lasso"), False
            )
            client.set_image(IMAGE[None], {})
            client.set_target_buffer(np.zeros(SHAPE, np.uint8))
            for ask in (
                lambda: client.add_scribble_interaction(np.ones(SHAPE, np.uint8), True),
                lambda: client.add_bbox_interaction([[2, 3], [4, 9], [4, 9]], False),
            ):
                with pytest.raises(httpx.HTTPStatusError) as error:
                    ask()
                assert "the network takes no" in error.value.response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/add_point_interaction", {"coordinates": [1, 2]}, "expected 3 numbers as coordinates"),
        ("/add_point_interaction", {"coordinates": [1, 2, "a"]}, "expected 3 numbers"),
        ("/add_point_interaction", {"coordinates": [1, 2, True]}, "expected 3 numbers"),
        ("/add_point_interaction", {"coordinates": [1, 2, 1e300]}, "expected 3 numbers"),
        ("/add_point_interaction", {"coordinates": [1, 2, 99]}, "expected coordinates within"),
        (
            "/add_point_interaction",
            {"coordinates": [1, 2, 3], "run_prediction": 3},
            "true or false",
        ),
        ("/add_bbox_interaction", {"bbox_coords": [[1, 2]]}, r"expected \[low, high\] along three"),
        ("/add_bbox_interaction", {"bbox_coords": [[1, 2], [3, 4], [5, 99]]}, "coordinates within"),
        ("/set_target_buffer", {"shape": [1, 2, 3], "dtype": "uint8"}, "expected a buffer"),
        ("/set_target_buffer", {"shape": list(SHAPE), "dtype": "object"}, "expected a buffer"),
        ("/set_target_buffer", {"shape": 3, "dtype": "uint8"}, "expected a shape"),
        ("/set_target_buffer", {"shape": [9] * 10**5, "dtype": "uint8"}, "expected a buffer"),
        ("/add_point_interaction", b'{"coordinates": "\\ud800"}', "expected 3 numbers"),
        ("/set_do_autozoom", {"do_autozoom": "x\nPOST /claim 200\x1b[31m"}, "expected do_autozoom"),
        ("/set_do_autozoom", {"do_autozoom": "x"}, "expected do_autozoom as true or false"),
        ("/add_point_interaction", [1], "expected a JSON object"),
    ],
)
def test_calls_that_can_not_be_answered(begun, url, path, body, message):
    sent = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = post(url, path, begun._lease_token, **sent)
    assert answer.status_code == 400 and len(answer.text) < 500
    assert re.search(message, answer.json()["detail"]) and "\n" not in answer.json()["detail"]
    assert begun._predict() is None  # nothing of it waits


@pytest.mark.parametrize(
    ("array", "meta", "message"),
    [
        (np.ones((2, 3, 4, 5), np.uint8), {}, r"expected an image \(1, D, H, W\)"),
        (np.ones((3, 4, 5), np.uint8), {}, r"expected an image \(1, D, H, W\)"),
        (np.full((1, 3, 4, 5), np.nan), {}, "expected finite values"),
        (np.ones((1, 3, 4, 5)), {}, "expected voxels that differ"),
        (IMAGE[None] > 100, {}, "expected voxels that differ"),
        (IMAGE[None], {"image_properties": {"spacing": [1, 2]}}, "expected 3 numbers as spacing"),
        (IMAGE[None], {"image_properties": {"spacing": [1, 2, 0]}}, "a spacing of 0.0001 to"),
        (IMAGE[None], {"image_properties": {"spacing": [9e8, 5e-324, 1]}}, "a spacing of 0.0001"),
    ],
)
def test_images_that_can_not_be_used(client, url, array, meta, message):
    headers = {"X-Meta": json.dumps(meta), "Content-Type": "application/octet-stream"}
    answer = post(
        url, "/set_image", client._lease_token, content=pack_array(array), headers=headers
    )
    assert answer.status_code == 400
    assert re.search(message, answer.json()["detail"])


def test_prompts_before_an_image_and_masks_that_do_not_fit(client, url):
    token = client._lease_token
    answer = post(url, "/add_point_interaction", token, json={"coordinates": [1, 2, 3]})
    assert answer.status_code == 400 and "set_image" in answer.json()["detail"]
    client.set_image(IMAGE[None], {})
    binary = {"Content-Type": "application/octet-stream"}
    for path, array, meta, message in (
        (
            "scribble",
            np.ones((1, 4, 4), bool),
            {"interaction_bbox": [[19, 21], [0, 4], [0, 4]]},
            "",
        ),
        (
            "scribble",
            np.ones((1, 4, 4), bool),
            {"interaction_bbox": [[20, 21], [0, 4], [0, 4]]},
            "within",
        ),
        ("lasso", np.zeros(SHAPE, bool), {}, "not empty"),
        ("initial_seg", np.ones((3, 4, 5), bool), {}, "expected labels"),
    ):
        headers = binary | {"X-Meta": json.dumps(meta)}
        answer = post(
            url, f"/add_{path}_interaction", token, content=pack_array(array), headers=headers
        )
        assert answer.status_code == (400 if message else 200)
        assert message in answer.text
    answer = post(url, "/set_image", token, content=b"no array", headers=binary)
    assert answer.status_code == 400 and "packed array" in answer.json()["detail"]


def test_keys_hosts_origins_and_leases(url, client):
    assert httpx.get(url + "/healthz").json() == {"ok": True}
    for headers, status in (
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer \u00e4".encode()}, 401),
        ({"Host": "evil.example:1527"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": url}, 200),
        ({"Host": "localhost:9"}, 200),
    ):
        answer = post(url, "/capabilities", client._lease_token, headers=headers, method="GET")
        assert answer.status_code == status, headers
    assert "access-control-allow-origin" not in answer.headers
    assert post(url, "/heartbeat", "no such lease").status_code == 410
    assert post(url, "/nothing").status_code == 404
    assert 590 < client.heartbeat() <= 600 and client.lease_status()["idle_timeout_seconds"] == 600
    assert post(url, "/release", client._lease_token).json() == {"released": True}
    with pytest.raises(SessionExpiredError, match="connect again"):
        client.undo()


def test_a_full_server_says_so_and_the_others_go_on(model):
    with serving(model, most=2) as (url, lines):
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: post(url, "/claim").status_code, range(100)))
        assert sorted(answers) == [200] * 2 + [503] * 98
        with pytest.raises(ServerAtCapacityError, match="all 2 sessions are in use"):
            nnInteractiveRemoteInferenceSession(url, api_key=KEY)
        assert httpx.get(url + "/healthz").status_code == 200
        assert sum(line.startswith("POST /claim 503 ") for line in lines) == 99


def test_bodies_beyond_the_limit_are_refused_before_they_are_read(model):
    with serving(model, max_bytes=10_000) as (url, _):
        with nnInteractiveRemoteInferenceSession(url, api_key=KEY) as client:
            with pytest.raises(httpx.HTTPStatusError) as error:
                client.set_image(IMAGE[None], {})
            assert error.value.response.status_code == 400
            assert "expected at most 10000 bytes" in error.value.response.json()["detail"]
            token = client._lease_token
            binary = {"Content-Type": "application/octet-stream"}
            for path, headers in (("predict", binary), ("heartbeat", binary), ("set_image", {})):
                answer = post(url, f"/{path}", token, content=bytes(3 * 2**20), headers=headers)
                assert answer.status_code == 413

            def endless():
                for _ in range(40):
                    yield bytes(2**17)

            assert post(url, "/predict", token, content=endless()).status_code == 413


class Closing:
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_a_lease_that_is_not_used_makes_room():
    now = [0.0]
    leases = Leases(Closing, 2, 600.0, 600.0, spare=60.0, clock=lambda: now[0])
    first, second = leases.claim(), leases.claim()
    now[0] = 30.0
    with pytest.raises(NoRoom):
        leases.claim()
    leases.get(first.token, True)
    now[0] = 70.0
    third = leases.claim()
    assert not leases.is_held(second) and second.session.is_closed
    assert leases.is_held(first) and not third.session.is_closed
    leases.release_all()
    assert first.session.is_closed and third.session.is_closed


def test_leases_end_when_nobody_is_there():
    now = [0.0]
    leases = Leases(Closing, 2, idle=100.0, liveness=30.0, clock=lambda: now[0])
    first, second = leases.claim(), leases.claim()
    with pytest.raises(NoRoom):
        leases.claim()
    for now[0] in (20.0, 45.0, 70.0, 95.0):
        assert leases.remaining(leases.get(first.token, False)) == 100 - now[0]  # it lives, idle
    with pytest.raises(Gone):
        leases.get(second.token, True)  # 30 s without a word
    third = leases.claim()
    now[0] = 99.0
    leases.get(third.token, True)
    now[0] = 101.0
    with pytest.raises(Gone):
        leases.get(first.token, False)

    async def worked_on() -> None:
        async with third.turn:
            now[0] = 900.0
            leases.expire()
            assert leases.is_held(third)

    asyncio.run(worked_on())
    leases.expire()
    assert not leases.is_held(third) and third.session.is_closed


def test_a_lease_that_is_dropped_in_mid_prediction(begun, url, model, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    decode = model.decode

    def slow(*args, **options):
        started.set()
        assert go_on.wait(20)
        return decode(*args, **options)

    monkeypatch.setattr(model, "decode", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(begun.add_bbox_interaction, BOX, True)
        assert started.wait(20)
        assert post(url, "/release", begun._lease_token).status_code == 200
        assert httpx.get(url + "/healthz").status_code == 200
        go_on.set()
        with pytest.raises(SessionExpiredError, match="ended while this was worked on"):
            asked.result(20)
    with nnInteractiveRemoteInferenceSession(url, api_key=KEY) as other:
        other.set_image(IMAGE[None], {})


def test_a_client_that_stalls_holds_up_nobody(begun, url, monkeypatch):
    monkeypatch.setattr(gate, "STALL", 0.5)
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as stalled:
        head = f"POST /predict HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"X-Lease-Token: {begun._lease_token}\r\nContent-Length: 100\r\n\r\nfew"
        stalled.sendall(head.encode())
        begun.add_bbox_interaction(BOX, True)
        assert begun.target_buffer.any()
        answer = HTTPResponse(stalled, method="POST")
        answer.begin()
        assert answer.status == 408 and "got nothing for" in answer.read().decode()


def test_what_does_not_fit_into_memory_is_refused_and_the_others_go_on(begun, url, monkeypatch):
    def too_large(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr("utils.serving.app.unpack", too_large)
        with pytest.raises(httpx.HTTPStatusError) as error:
            begun.set_image(IMAGE[None], {})
        assert error.value.response.status_code == 413
    begun.add_bbox_interaction(BOX, True)
    assert begun.target_buffer.any()


def test_a_line_is_logged_for_each_request(model):
    with serving(model) as (url, lines):
        with nnInteractiveRemoteInferenceSession(url, api_key=KEY) as client:
            client.set_image((IMAGE * 8 - 1000)[None], {"spacing": list(SPACING)})
        post(url, "/predict", "no lease")
    assert [line.rsplit(" ms", 1)[0].rsplit(" ", 1)[0] for line in lines] == [
        "POST /claim 200",
        "GET /capabilities 200",
        "POST /set_image 200",
        "POST /release 200",
        "POST /predict 410",
    ]
    assert "; 20x30x26 int16, grey levels by window 40,400" in lines[2]


def test_a_buffer_that_shows_something_is_kept_right(begun):
    """One that is registered again, and one that is kept when another image comes."""
    buffer = begun.target_buffer
    begun.add_bbox_interaction(BOX, True)
    begun.set_target_buffer(buffer)
    assert begun.undo() and not buffer.any()
    begun.add_bbox_interaction(BOX, True)
    assert buffer.any()
    begun.set_image(IMAGE[None], {"spacing": list(SPACING)})
    begun.add_bbox_interaction([[14, 18], [22, 28], [18, 24]], True)
    fresh = np.zeros(SHAPE, np.int16)
    begun.reset_interactions()
    begun.set_target_buffer(fresh)
    begun.add_bbox_interaction([[14, 18], [22, 28], [18, 24]], True)
    assert not buffer.any() and fresh.any()
    before = fresh.copy()
    begun.set_target_buffer(buffer := before.copy())
    begun.undo()
    assert not buffer.any()


def test_hosts_may_be_named(model):
    with serving(model, hosts=("MyBox", "192.168.1.7")) as (url, _):
        for host, status in (
            ("mybox:1", 200),
            ("MYBOX", 200),
            ("192.168.1.7", 200),
            ("other", 403),
        ):
            assert post(url, "/claim", headers={"Host": host}).status_code == status
